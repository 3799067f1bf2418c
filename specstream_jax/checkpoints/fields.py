# SPDX-License-Identifier: Apache-2.0
"""Values that a file must hold, checked by type before anything uses them.

JSON and GGUF files say what they like: any field may be null, a word, a list or
a number that no machine can hold.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

_REQUIRED: Any = object()
_SHOWN = 80  # characters of a value that a message repeats


class Kind(NamedTuple):
  """What is accepted for a value.

  Attributes:
    noun: for messages.
    fits: whether a value is one.
  """

  noun: str
  fits: Callable[[Any], bool]


def integers(least: int, most: int | None = None) -> Kind:
  """Whole numbers from `least` to `most`; without it, to the largest int32."""
  bound = 2**31 - 1 if most is None else most
  noun = f'an integer from {least:,} to {bound:,}'
  if most is None:
    noun = f'an integer >= {least:,} that fits 32 bits'
  return Kind(noun, lambda value: is_integer(value) and least <= value <= bound)


def lists(item: Kind, noun: str) -> Kind:
  """Lists of items of a kind, which `noun` names in the plural."""
  return Kind(
    f'a list of {noun}',
    lambda value: isinstance(value, list) and all(map(item.fits, value)),
  )


def is_integer(value: Any) -> bool:
  """Whether it is a whole number; true and false are none."""
  return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """Whether it is a number that a float64 can hold."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return abs(value) <= _LARGEST if is_integer(value) else math.isfinite(value)


_LARGEST = 10**308

TEXT = Kind('a text', lambda value: isinstance(value, str))
BOOL = Kind('true or false', lambda value: isinstance(value, bool))
COUNT = integers(0)
SIZE = integers(1)
NUMBER = Kind('a finite number', is_number)
POSITIVE = Kind(
  'a number above 0 that float32 holds',
  lambda value: is_number(value) and 1e-38 <= value <= 3e38,
)
OBJECT = Kind('an object', lambda value: isinstance(value, dict))
TEXTS = lists(TEXT, 'texts')
COUNTS = lists(COUNT, 'integers >= 0')
NUMBERS = lists(NUMBER, 'finite numbers')


def shown(value: Any) -> str:
  """`repr`, cut where it is long."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'


def problem(name: str, value: Any, kind: Kind) -> str:
  """What is wrong with a value; empty if nothing is."""
  if kind.fits(value):
    return ''
  return f'{name} is {shown(value)}; accepted: {kind.noun}'


def get(
  values: Mapping[str, Any],
  name: str,
  kind: Kind,
  source: str,
  default: Any = _REQUIRED,
) -> Any:
  """The value of a field.

  Args:
    values: of all fields.
    name: of the field.
    kind: what is accepted.
    source: the file, for messages.
    default: what is taken if the field is absent or null; a field without one
      is required.

  Raises:
    ValueError: it is missing, or of another kind.
  """
  value = values.get(name)
  if value is None and default is not _REQUIRED:
    return default
  if name not in values:
    raise ValueError(f'{source} has no {name}; accepted: {kind.noun}')
  if found := problem(name, value, kind):
    raise ValueError(f'{source}: {found}')
  return value
