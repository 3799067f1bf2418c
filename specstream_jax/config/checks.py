# SPDX-License-Identifier: Apache-2.0
"""What config dataclasses check with; messages name value and bounds."""

import ast
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import os
import re
import types
import typing
from typing import Any, TypeVar, cast

import numpy as np

from specstream_jax.config import bounds

# A function, or a class, that comes back with its own signature.
Target = TypeVar('Target', bound=Callable[..., Any])
_LARGEST = 3e38  # that float32 holds
_WRONG = object()
_NOUNS = {
  bool: ('True or False', 'booleans'),
  int: ('an integer', 'integers'),
  float: ('a number', 'numbers'),
  str: ('a text', 'texts'),
  dict: ('a dict', 'dicts'),
  type(None): ('None', 'None'),
}
_EXAMPLES = {bool: True, int: 1, float: 0.5, str: '', dict: {}}


def check(condition: bool, message: str) -> None:
  """Raises ValueError(message) unless `condition`."""
  if not condition:
    raise ValueError(message)


def message(error: BaseException) -> str:
  """An error's text without the call that gin appends."""
  return str(error).partition('\n  In call to configurable')[0]


def one_of(name: str, value: Any, accepted: tuple[Any, ...]) -> None:
  """Raises ValueError unless `value` is one of `accepted`."""
  check(
    value in accepted,
    f'{name} is {value!r}; accepted: {", ".join(map(repr, accepted))}',
  )


def pattern(name: str, value: str) -> None:
  """Raises ValueError unless `value` is a regular expression."""
  try:
    re.compile(value)
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(
      f'{name} is {value!r:.80}, which is no regular expression: {error}'
    ) from error


def not_empty(name: str, values: Sequence[Any]) -> None:
  """Raises ValueError unless there is something in `values`."""
  check(
    len(values) > 0, f'{name} is empty, so nothing would be done; name some'
  )


def at_least(name: str, value: Any, bound: float) -> None:
  """Raises ValueError unless `value` is a number of at least `bound`.

  An integer bound asks for an integer, another for what float32 holds.
  """
  kind = numbers.Integral if isinstance(bound, int) else numbers.Real
  is_one = _is_number(value, kind)
  noun = 'an integer' if isinstance(bound, int) else 'a number'
  check(
    is_one and value >= bound,
    f'{name} is {value!r}; it must be {noun} >= {bound}',
  )
  if not isinstance(bound, int):
    at_most(name, value, _LARGEST)


def _is_number(value: Any, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def count(name: str, value: Any, least: int, most: int) -> None:
  """Raises ValueError unless `value` is an integer from `least` to `most`."""
  at_least(name, value, least)
  at_most(name, value, most)


def shard(number: int, num_shards: int) -> None:
  """Raises ValueError unless a shard is one of so many."""
  text = f'shard is {number} of {num_shards}; accepted:'
  check(1 <= num_shards <= bounds.SHARDS, f'{text} 1 to {bounds.SHARDS} shards')
  check(0 <= number < num_shards, f'{text} 0 to {num_shards - 1}')


def at_most(name: str, value: float, bound: float) -> None:
  """Raises ValueError unless a number is no larger than `bound`."""
  check(value <= bound, f'{name} is {value}; it must be <= {bound}')


def config_types(cfg: Any) -> None:
  """Holds every field of a gin-configurable dataclass to its annotation.

  What means the same is made the same: an integer where a float belongs
  becomes one, NumPy's scalars become Python's, lists become tuples. A bool is
  no integer, a text no number and not a tuple of letters.

  Raises:
    ValueError: names the field, the value, what is accepted and how to write
      it.
  """
  name = type(cfg).__name__
  _check_types(cfg, f'{name}.', f'in gin: {name}.%s = %s')


def option_types(options: Any) -> None:
  """`config_types` of a dataclass that gin does not know."""
  _check_types(options, '', 'write %s=%s')


def _check_types(cfg: Any, prefix: str, example: str) -> None:
  hints = _hints(type(cfg))
  for field in dataclasses.fields(cfg):
    value, hint = getattr(cfg, field.name), hints[field.name]
    found = _as(hint, value)
    if found is _WRONG:
      shown = _spelt(hint, value, field.default)
      raise ValueError(
        f'{prefix}{field.name} is {_described(value)}; accepted: '
        f'{_accepted(hint)} ({example % (field.name, shown)})'
      )
    if found is not value:
      object.__setattr__(cfg, field.name, found)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def nested_config(cls: type, name: str) -> type | None:
  """The dataclass that a field of `cls` holds, None where it holds none."""
  hint = _hints(cls).get(name)
  kinds = filter(dataclasses.is_dataclass, _kinds(hint))
  return next((kind for kind in kinds if isinstance(kind, type)), None)


def _kinds(hint: Any) -> tuple[Any, ...]:
  """The members of a union; of any other hint, itself."""
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  return typing.get_args(hint) if is_union else (hint,)


def _as(hint: Any, value: Any) -> Any:
  """`value` as the type that a hint asks for, or `_WRONG`."""
  if hint is Any:
    return value
  kinds = _kinds(hint)
  if len(kinds) > 1:
    found = (_as(kind, value) for kind in kinds)
    return next((v for v in found if v is not _WRONG), _WRONG)
  origin = typing.get_origin(hint) or hint
  if origin is tuple:
    return _as_tuple(typing.get_args(hint), value)
  if origin in (int, float):
    return _as_number(origin, value)
  if origin is bool and isinstance(value, np.bool_):
    return bool(value)
  return value if isinstance(value, origin) else _WRONG


def _as_number(kind: type, value: Any) -> Any:
  asked = numbers.Integral if kind is int else numbers.Real
  if isinstance(value, np.bool_) or not _is_number(value, asked):
    return _WRONG
  if type(value) is kind and value == value:
    return value
  try:
    return _WRONG if math.isnan(value) else kind(value)
  except OverflowError:
    return _WRONG


def _as_tuple(kinds: tuple[Any, ...], value: Any) -> Any:
  """A tuple of such members: (int, ...) is of any length, (int, int) of two."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if not isinstance(value, Sequence) or isinstance(value, str | bytes):
    return _WRONG
  if kinds[-1] is Ellipsis:
    kinds = (kinds[0],) * len(value)
  if len(kinds) != len(value):
    return _WRONG
  found = tuple(_as(kind, member) for kind, member in zip(kinds, value))
  if any(member is _WRONG for member in found):
    return _WRONG
  # A tuple that is right stays the same object.
  is_same = isinstance(value, tuple) and all(map(_is, found, value))
  return value if is_same else found


def _is(first: Any, second: Any) -> bool:
  return first is second


def _described(value: Any) -> str:
  text = repr(value)
  text = text if len(text) <= 80 else f'{text[:77]}…'
  return f'the text {text}' if isinstance(value, str) else text


def _accepted(hint: Any, *, is_plural: bool = False) -> str:
  """A hint in words."""
  words = [_words(kind, is_plural) for kind in _kinds(hint)]
  return ' or '.join(words)


def _words(kind: Any, is_plural: bool) -> str:
  origin = typing.get_origin(kind) or kind
  if origin is tuple:
    members = typing.get_args(kind)
    noun = 'tuples' if is_plural else 'a tuple'
    if members[-1] is Ellipsis:
      return f'{noun} of {_accepted(members[0], is_plural=True)}'
    return f'{noun} of ({", ".join(map(_accepted, members))})'
  one, many = _NOUNS.get(origin, (f'a {origin.__name__}', origin.__name__))
  return many if is_plural else one


def _spelt(hint: Any, value: Any, default: Any) -> str:
  """How to write a value: what was meant, if that is clear, else the default."""
  meant = _meant(hint, value)
  if meant is not _WRONG:
    return repr(meant)
  if default is not dataclasses.MISSING and default is not None:
    is_config = dataclasses.is_dataclass(default)
    return f'{type(default).__name__}(…)' if is_config else repr(default)
  kind = _kinds(hint)[0]
  origin = typing.get_origin(kind) or kind
  if origin is tuple:
    return '(…,)'
  return repr(_EXAMPLES[origin]) if origin in _EXAMPLES else _words(kind, False)


def _meant(hint: Any, value: Any) -> Any:
  """The value of the right type that a wrong one reads like, or `_WRONG`."""
  kinds = _kinds(hint)
  guesses = [(value,)]
  if isinstance(value, str):
    try:
      guesses = [ast.literal_eval(value.strip().capitalize())]
      guesses = [*guesses, ast.literal_eval(value.strip())]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      guesses = [*guesses, (value,)]
  elif isinstance(value, float) and value.is_integer():
    guesses = [int(value)]
  elif str in kinds and isinstance(value, int | float):
    guesses = [str(value)]
  elif bool in kinds and value in (0, 1):
    guesses = [bool(value)]
  found = (_as(hint, guess) for guess in guesses)
  return next((v for v in found if v is not _WRONG), _WRONG)


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
  is_one = _is_number(value, numbers.Integral)
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


def names_options(target: Target) -> Target:
  """A function, or a class, that answers an unknown option with `known`."""
  is_class = isinstance(target, type)
  inner: Callable[..., Any] = target.__init__ if is_class else target
  accepted = set(inspect.signature(target).parameters)

  @functools.wraps(inner)
  def checked(*args, **kwargs):
    known(target.__name__, kwargs, accepted)
    return inner(*args, **kwargs)

  if not is_class:
    return cast(Target, checked)
  cast(Any, target).__init__ = checked
  return cast(Target, target)


def path(name: str, value: Any) -> str:
  """A name or path as text; raises ValueError if it is none."""
  found = os.fspath(value) if isinstance(value, str | os.PathLike) else None
  if not isinstance(found, str):
    raise ValueError(f'{name} is {value!r:.80}; it must be a name or a path')
  return found
