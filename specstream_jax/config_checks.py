# SPDX-License-Identifier: Apache-2.0
"""What config dataclasses check with; messages name value and bounds."""

import numbers
from typing import Any


def check(condition: bool, message: str) -> None:
  """Raises ValueError(message) unless `condition`."""
  if not condition:
    raise ValueError(message)


def one_of(name: str, value: Any, accepted: tuple[Any, ...]) -> None:
  """Raises ValueError unless `value` is one of `accepted`."""
  check(
    value in accepted,
    f'{name} is {value!r}; accepted: {", ".join(map(repr, accepted))}',
  )


def at_least(name: str, value: Any, bound: float) -> None:
  """Raises ValueError unless `value` is a number of at least `bound`.

  An integer bound asks for an integer.
  """
  kind = numbers.Integral if isinstance(bound, int) else numbers.Real
  is_one = isinstance(value, kind) and not isinstance(value, bool)
  noun = 'an integer' if isinstance(bound, int) else 'a number'
  check(
    is_one and value >= bound,
    f'{name} is {value!r}; it must be {noun} >= {bound}',
  )
