# SPDX-License-Identifier: Apache-2.0
"""Small files read with clear errors, and written whole or not at all."""

from collections.abc import Callable
import hashlib
import itertools
import json
import math
import os
import shutil
from typing import Any

from specstream_jax.outputs import scratch, writing

MAX_DEPTH = 64  # of JSON; what is read here stays below ten


_FIX = 'write or download it again'


def read_text(path: str | os.PathLike, fix: str = _FIX) -> str:
  """The text of a file.

  Args:
    path: the file.
    fix: what to do about a damaged one, for messages.

  Raises:
    ValueError: there is no such file, it cannot be read, or is not UTF-8.
  """
  path = os.fspath(path)
  try:
    with open(path, encoding='utf-8') as file:
      return file.read()
  except FileNotFoundError:
    raise ValueError(f'{path!r} does not exist') from None
  except OSError as error:
    raise ValueError(
      f'{path!r} cannot be read ({error.strerror}); accepted: a readable file'
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path!r} is not UTF-8 text ({error.reason} at byte {error.start}); '
      f'{fix}'
    ) from error


def loads(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: it is not JSON, is nested more than `MAX_DEPTH` deep, or gives a
      name two values.
  """
  try:
    value = json.loads(text, object_pairs_hook=_object)
    depth = _depth(value)
  except RecursionError:
    depth = math.inf
  if depth > MAX_DEPTH:
    raise ValueError(f'nested more than {MAX_DEPTH} deep')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """The object of these fields; of one that stands there twice, none is right."""
  found = dict(pairs)
  if len(found) < len(pairs):
    for name, value in pairs:
      if value is not found[name] and value != found[name]:
        raise ValueError(f'{name!r} stands there twice, with different values')
  return found


def _depth(value: Any) -> int:
  """How deep lists and objects are nested; no recursion."""
  depth, level = 0, [value]
  while level := [v for v in level if isinstance(v, list | dict)]:
    depth += 1
    inner = (v.values() if isinstance(v, dict) else v for v in level)
    level = list(itertools.chain.from_iterable(inner))
  return depth


def read_json(path: str | os.PathLike, fix: str = _FIX) -> dict[str, Any]:
  """The JSON object in a file; arguments as in `read_text`.

  Raises:
    ValueError: there is no such file, or it is not a JSON object; see `loads`.
  """
  path = os.fspath(path)
  text = read_text(path, fix)
  try:
    value = loads(text)
    if '\\ud' in text.lower():  # perhaps half of a surrogate pair
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except ValueError as error:
    raise ValueError(f'{path!r} is not JSON ({error}); {fix}') from error
  if not isinstance(value, dict):
    raise ValueError(
      f'{path!r} holds a JSON {type(value).__name__}, not an object; {fix}'
    )
  return value


def sha256(path: str | os.PathLike) -> str:
  """sha256 of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def sha256_of(content: bytes) -> str:
  """sha256 of bytes in memory."""
  return hashlib.sha256(content).hexdigest()


def write_all(folder: str, writers: dict[str, Callable[[str], None]]) -> None:
  """Writes several files; on any failure all old ones stay as they were.

  Every file is written under a temporary name first; the renames come last, in
  the order of `writers`.

  Args:
    folder: made if it is not there.
    writers: by file name, a function that writes to the path it is given; a /
      in a name is a folder below.

  Raises:
    WriteError: the folder cannot be written, the disk is full, for example.
  """
  with (
    writing.readable(folder),
    scratch.folder(folder, os.path.basename(next(iter(writers)))) as place,
  ):
    for name, write in writers.items():
      os.makedirs(os.path.dirname(os.path.join(place, name)), exist_ok=True)
      write(os.path.join(place, name))
      _finish(os.path.join(place, name))
    for name in writers:
      os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
      os.replace(os.path.join(place, name), os.path.join(folder, name))


def write_json(path: str, value: Any) -> None:
  """Indented JSON with a final newline."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_bytes(path: str, content: bytes) -> None:
  """`content` as it is."""
  with open(path, 'wb') as file:
    file.write(content)


def write_text(path: str, text: str) -> None:
  """UTF-8 text."""
  with open(path, 'w', encoding='utf-8') as file:
    file.write(text)


def _finish(path: str) -> None:
  """Gives the file the mode of any new file, and waits until it is on disk."""
  reference = f'{path}.mode'
  with open(reference, 'wb'):
    shutil.copymode(reference, path)  # Some writers make private files.
  os.remove(reference)
  with open(path, 'rb+') as file:
    os.fsync(file.fileno())
