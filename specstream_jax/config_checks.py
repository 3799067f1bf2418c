# SPDX-License-Identifier: Apache-2.0
"""What config dataclasses check with; messages name value and bounds."""

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


def at_least(name: str, value: float, bound: float) -> None:
  """Raises ValueError if `value` is below `bound`."""
  check(value >= bound, f'{name} is {value}; it must be >= {bound}')
