# SPDX-License-Identifier: Apache-2.0
"""Small files read with clear errors, and written whole or not at all."""

from collections.abc import Callable
import hashlib
import json
import os
import shutil
import tempfile
from typing import Any


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    ValueError: there is no such file, or it is not a JSON object; names it.
  """
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except FileNotFoundError:
    raise ValueError(f'{path!r} does not exist') from None
  except (ValueError, RecursionError) as error:  # or nested without end
    raise ValueError(
      f'{path!r} is not JSON ({error}); write or download it again'
    ) from error
  if not isinstance(value, dict):
    raise ValueError(
      f'{path!r} holds a JSON {type(value).__name__}, not an object; write or '
      'download it again'
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
    writers: by file name, a function that writes to the path it is given.

  Raises:
    ValueError: the folder cannot be written, the disk is full, for example.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as scratch:
      for name, write in writers.items():
        write(os.path.join(scratch, name))
        _finish(os.path.join(scratch, name))
      for name in writers:
        os.replace(os.path.join(scratch, name), os.path.join(folder, name))
  except OSError as error:
    raise ValueError(
      f'cannot write {folder!r} ({error}); what was there before is untouched; '
      'free some space, or choose another folder'
    ) from error


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
