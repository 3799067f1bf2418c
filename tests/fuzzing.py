# SPDX-License-Identifier: Apache-2.0
"""Ways to damage a good file, and what a reader may do with the result.

A reader takes it or says in a ValueError or OSError which file is wrong. It
never raises anything else, hangs, or asks for gigabytes.
"""

from collections.abc import Callable, Iterator
import contextlib
import copy
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings, strategies as st
import pytest

_SECONDS, _BYTES = 60, 2**30
_UNCHECKED = list(HealthCheck)
_QUICK = settings(
  max_examples=40,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=_UNCHECKED,
)
_LONG = settings(
  max_examples=1000,
  deadline=None,
  database=None,
  suppress_health_check=_UNCHECKED,
)
modes = pytest.mark.parametrize(
  'mode',
  [
    pytest.param(_QUICK, id='quick'),
    pytest.param(_LONG, id='long', marks=pytest.mark.slow),
  ],
)

_DEEP = '[' * 200 + ']' * 200
_WRONG = (
  *(None, True, False, 0, -1, 1, 7, 10**9, 10**30, -(10**30), 2**63, 10**400),
  *(0.5, 1e308, -1e-320, float('nan'), float('inf'), '', 'x', '\x00', '€'),
  *('../up', 'x' * 5000, [], {}, [None], [[1]], ['a', 'b'], {'a': {'b': 1}}),
  *([5, -5], [10**30]),
)
# Ends a file's reading before any field is looked at.
_UNREADABLE = (json.loads(_DEEP), '\ud800')


class Damage(NamedTuple):
  """What becomes of a file.

  Attributes:
    content: its bytes, None where `place` says all.
    place: `file`, `folder`, `loop` (of symbolic links), `missing` or `locked`.
    names: fields of which a refusal must name one; () if it need not.
    what: was done, for people.
  """

  content: bytes | None
  place: str = 'file'
  names: tuple[str, ...] = ()
  what: str = ''


places = st.sampled_from(
  [Damage(None, name) for name in ('folder', 'loop', 'missing', 'locked')]
)


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
  """Places within nested lists and dicts; of a long list its first items."""
  if path:
    yield path
  if isinstance(value, dict):
    for key in list(value)[:200]:
      yield from _paths(value[key], (*path, key))
  elif isinstance(value, list):
    for i in range(min(len(value), 3)):
      yield from _paths(value[i], (*path, i))


def _kind(value: Any) -> str:
  if isinstance(value, bool):
    return 'bool'
  return 'number' if isinstance(value, int | float) else type(value).__name__


@st.composite
def values(draw, good: Any) -> tuple[Any, tuple[str, ...], str]:
  """(a nested value with one thing changed, names, what)."""
  value = copy.deepcopy(good)
  path = draw(st.sampled_from(list(_paths(good))))
  owner = value
  for key in path[:-1]:
    owner = owner[key]
  last = path[-1]
  how = draw(
    st.sampled_from(['replace', 'replace', 'replace', 'delete', 'add'])
  )
  if how == 'delete':
    del owner[last]
    return value, (), f'{path} deleted'
  wrong = draw(st.sampled_from(_WRONG + _UNREADABLE))
  if how == 'add' and isinstance(owner, dict):
    owner['unheard_of'] = wrong
    return value, (), f'{path[:-1]} has more'
  names = ()
  is_read = wrong is not None and wrong not in _UNREADABLE
  if is_read and _kind(owner[last]) != _kind(wrong):
    names = tuple(key for key in path if isinstance(key, str))
  owner[last] = wrong
  return value, names, f'{path} = {wrong!r}'[:120]


@st.composite
def json_damage(draw, good: Any) -> Damage:
  """A JSON text of wrong fields, of a field twice, or that is no JSON."""
  how = draw(
    st.sampled_from(['value'] * 6 + ['twice', 'deep', 'bytes', 'bytes'])
  )
  if how == 'value':
    value, names, what = draw(values(good))
    return Damage(json.dumps(value).encode(), names=names, what=what)
  if how == 'twice' and isinstance(good, dict):
    name = draw(st.sampled_from(list(good)))
    text = json.dumps({'_twice_': draw(st.sampled_from(_WRONG))} | good)
    text = text.replace('"_twice_"', json.dumps(name), 1)
    return Damage(text.encode(), what=f'{name} twice')
  if how == 'deep':
    depth = draw(st.sampled_from([60, 100, 900, 5000, 200000]))
    return Damage(b'{"a":' * depth + b'1' + b'}' * depth, what='deep')
  return draw(bytes_damage(json.dumps(good).encode()))


@st.composite
def bytes_damage(draw, good: bytes, head: int | None = None) -> Damage:
  """Bytes cut short, flipped, zeroed, or with a number that is far too large.

  Args:
    draw: of hypothesis.
    good: what is damaged.
    head: only the first so many are.
  """
  most = max(min(head or len(good), len(good)) - 1, 0)
  data, place = bytearray(good), draw(st.integers(0, most))
  how = draw(
    st.sampled_from(['cut', 'empty', 'flip', 'flip', 'huge', 'zero', 'more'])
  )
  if how == 'cut':
    del data[place:]
  elif how == 'empty':
    data.clear()
  elif how == 'flip':
    for _ in range(draw(st.integers(1, 3)) if data else 0):
      data[draw(st.integers(0, most))] = draw(st.integers(0, 255))
  elif how == 'huge':
    number = draw(st.sampled_from([2**64 - 1, 2**63, 2**32, 2**31, 10**12]))
    data[place : place + 8] = struct.pack('<Q', number)
  elif how == 'zero':
    data[place : place + 16] = bytes(16)
  else:
    data[place:place] = draw(
      st.sampled_from([b'\xff\xfe', b'\x00', b'"', b'{'])
    )
  return Damage(bytes(data), what=f'{how} at {place}')


@st.composite
def lines_damage(draw, good: list[Any]) -> Damage:
  """Lines of JSON, one of them damaged."""
  lines = [json.dumps(value).encode() for value in good]
  index = draw(st.integers(0, len(good) - 1))
  damage = draw(json_damage(good[index]))
  lines[index] = damage.content
  content = b''.join(line + b'\n' for line in lines)
  return Damage(content, what=f'line {index + 1}: {damage.what}')


@st.composite
def tensor_damage(draw, good: bytes):
  """A safetensors file of other bytes, or with another header before them."""
  (size,) = struct.unpack('<Q', good[:8])
  if draw(st.booleans()):
    return draw(bytes_damage(good, head=size + 100))
  header = json.loads(good[8 : 8 + size])
  damage = draw(json_damage(header))
  text = damage.content
  content = struct.pack('<Q', len(text)) + text + good[8 + size :]
  return Damage(content, what=damage.what)


@contextlib.contextmanager
def inflicted(path: str | os.PathLike, damage: Damage) -> Iterator[None]:
  """The file as the damage leaves it; the good one comes back afterwards."""
  path = pathlib.Path(path)
  good = path.read_bytes()
  path.unlink()
  try:
    if damage.place == 'folder':
      path.mkdir()
    elif damage.place == 'loop':
      path.symlink_to(path)
    elif damage.place != 'missing':
      path.write_bytes(good if damage.content is None else damage.content)
    if damage.place == 'locked':
      path.chmod(0)
    yield
  finally:
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
    path.write_bytes(good)


class TooSlowError(BaseException):
  """A reader did not come back."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
  """A minute and a gigabyte, both far more than any reader needs."""

  def stop(*_):
    raise TooSlowError(f'no end after {_SECONDS} s')

  with open('/proc/self/statm') as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
  before = resource.getrlimit(resource.RLIMIT_AS)
  handler = signal.signal(signal.SIGALRM, stop)
  signal.alarm(_SECONDS)
  resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


def attempt(
  mode: settings,
  damages: st.SearchStrategy[Damage],
  path: str | os.PathLike,
  read: Callable[[], Any],
  *,
  prepare: Callable[[], None] = lambda: None,
  is_named: bool = True,
  other: str = '',
  cost: int = 1,
) -> None:
  """Damages a file in many ways, and reads it each time.

  Args:
    mode: of `modes`.
    damages: what may become of the file.
    path: of the file, which is good.
    read: reads it.
    prepare: called when the file is damaged, before it is read.
    is_named: refusals must name a field of the wrong type.
    other: part of a refusal that is about two files, so that it names neither.
    cost: how much longer than others it takes; as many fewer examples.
  """
  read()
  folder = str(pathlib.Path(path).parent)

  @given(st.one_of(*[damages] * 9, places))
  def reads(damage):
    with inflicted(path, damage):
      prepare()
      try:
        with limits():
          read()
      except (ValueError, OSError) as error:
        message = str(error)
        if other and other in message:
          return
        assert folder in message, message
        if is_named and damage.names:
          assert any(name in message for name in damage.names), message

  settings(mode, max_examples=mode.max_examples // cost)(reads)()
