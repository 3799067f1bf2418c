# SPDX-License-Identifier: Apache-2.0
"""What config dataclasses check with; messages name value and bounds."""

from collections.abc import Callable, Iterable
import difflib
import functools
import inspect
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


def text(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is text that UTF-8 can spell."""
  check(isinstance(value, str), f'{name} is {value!r:.80}; it must be text')
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{name} is not valid UTF-8: character {error.start + 1} is '
      f'{value[error.start]!r}, half of a surrogate pair or a stray byte; give '
      'it as UTF-8'
    ) from None


def seed(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a seed that no other one equals.

  The generator takes 32 bits: a larger number would draw what a smaller one
  does.
  """
  is_one = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  check(
    is_one and -(2**31) <= value < 2**32,
    f'{name} is {value!r}; it must be an integer from -2147483648 to '
    '4294967295',
  )


def known(what: str, given: Iterable[str], accepted: Iterable[str]) -> None:
  """Raises ValueError if a name is not among those accepted.

  Args:
    what: whose names they are.
    given: names.
    accepted: names.
  """
  accepted = sorted(accepted)
  for name in given:
    near = difflib.get_close_matches(name, accepted, 1, 0.5)
    check(
      name in accepted,
      f'{what} has no option {name!r}'
      + (f'; did you mean {near[0]!r}?' if near else ';')
      + f' accepted: {", ".join(accepted)}',
    )


def names_options(target: Callable[..., Any]) -> Callable[..., Any]:
  """A function, or a class, that answers an unknown option with `known`."""
  is_class = isinstance(target, type)
  inner = target.__init__ if is_class else target
  accepted = set(inspect.signature(target).parameters)

  @functools.wraps(inner)
  def checked(*args, **kwargs):
    known(target.__name__, kwargs, accepted)
    return inner(*args, **kwargs)

  if not is_class:
    return checked
  target.__init__ = checked
  return target
