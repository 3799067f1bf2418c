# SPDX-License-Identifier: Apache-2.0
"""Files written whole or not at all, and what went wrong in one line."""

from collections.abc import Iterator
import contextlib
import errno
import os

from specstream_jax.outputs import scratch

_CODES = (
  *('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EACCES', 'EPERM', 'EIO'),
  *('ENOTDIR', 'EISDIR', 'ENAMETOOLONG'),
)
_REASONS = tuple(os.strerror(getattr(errno, name)) for name in _CODES)


class WriteError(ValueError):
  """Something could not be written: no space, no permission."""


def reason(error: BaseException) -> str | None:
  """Why something could not be written; None if `error` is of another kind.

  Libraries wrap what the operating system says in exceptions of their own.
  """
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return next((text for text in _REASONS if text in str(error)), None)


@contextlib.contextmanager
def readable(path: str | os.PathLike) -> Iterator[None]:
  """Turns what is raised while `path` is written into one line.

  Raises:
    WriteError: names the path, the reason and what to do.
  """
  try:
    yield
  except WriteError:
    raise
  except Exception as error:
    why = reason(error)
    if why is None:
      raise
    raise WriteError(
      f'cannot write {os.fspath(path)}: {why}; what was there before is '
      'untouched; free some space, or give a folder that can be created and '
      'written'
    ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
  """A path to write to, which takes the place of `path` at the end.

  Raises:
    WriteError: see `readable`; or `path` is a device or a pipe, whose place a
      file would take.
  """
  if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
    raise WriteError(
      f'cannot write {os.fspath(path)}: it is a device or a pipe; name a file'
    )
  folder, name = os.path.split(os.path.abspath(path))
  with readable(path), scratch.folder(folder, name) as place:
    yield os.path.join(place, name)
    os.replace(os.path.join(place, name), path)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a UTF-8 file so that a reader sees all of it or none.

  Raises:
    WriteError: its folder cannot be made or written.
  """
  with replacing(path) as place, open(place, 'w', encoding='utf-8') as file:
    file.write(text)
