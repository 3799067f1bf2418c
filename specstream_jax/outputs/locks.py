# SPDX-License-Identifier: Apache-2.0
"""One run at a time in an output folder; the runs of one job share it.

A lock is a small hidden file that says who holds it. What counts is the lock of
the operating system on that file, which ends with its process, however that
ends: a file left behind by a dead process is free to take. NFS passes such
locks on to its server, so they hold between machines. Where the file system has
none, the process that the file names decides.
"""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import glob
import json
import os
import pathlib
import re
import shlex
import socket
import sys
import time
from typing import Any, NoReturn

from specstream_jax.outputs import writing

_BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id')
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class HeldError(ValueError):
  """Another process holds what was asked for."""


@contextlib.contextmanager
def hold(
  folder: str | os.PathLike, task: str, number: int = 0, count: int = 1
) -> Iterator[None]:
  """Holds `task` in a folder, or one of `count` parts of it.

  Parts of one task go together; a part twice, or parts of another count, do
  not.

  Args:
    folder: of the output; made if it is not there.
    task: letters and dashes.
    number: of this part.
    count: of all parts.

  Raises:
    HeldError: another process holds it; says which, and since when.
    ValueError: the folder cannot be written.
  """
  folder = os.path.abspath(folder)
  path = os.path.join(folder, f'.{task}-{number}-of-{count}.lock')
  with writing.readable(path):
    os.makedirs(folder, exist_ok=True)
    file = _take(path)
    if file is None:
      _refuse(folder, path)
  with file:
    try:
      for other in glob.glob(
        os.path.join(glob.escape(folder), f'.{glob.escape(task)}-*-of-*.lock')
      ):
        part = re.fullmatch(
          rf'\.{re.escape(task)}-\d+-of-(\d+)\.lock', os.path.basename(other)
        )
        if part and int(part[1]) != count and is_held(other):
          _refuse(folder, other)
      with writing.readable(path):
        file.truncate(0)
        file.write(json.dumps(_identity()).encode())
        file.flush()
      yield
    finally:
      with contextlib.suppress(OSError):
        os.remove(path)  # before the lock goes, so that nobody's is removed


def is_held(path: str) -> bool:
  """Whether a living process holds the lock file at `path`."""
  try:
    with open(path, 'rb+') as file:
      return not _lock(file)
  except OSError:
    return False


def _take(path):
  """The locked file, or None where another process has it."""
  while True:
    # It stays open for as long as it is held.
    file = open(path, 'ab+')  # noqa: SIM115
    try:
      if not _lock(file):
        file.close()
        return None
      # The one before may have removed the file between these two lines.
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    except FileNotFoundError:
      pass
    except BaseException:
      file.close()
      raise
    file.close()


def _lock(file) -> bool:
  """Locks an open file, unless a living process has it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      return False
    if error.errno not in _UNSUPPORTED:
      raise
    return not _is_alive(_read(file.name))
  return True


def _identity() -> dict[str, Any]:
  """Who this process is, for people and for `_is_alive`."""
  now = datetime.datetime.now().astimezone()
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'since': now.isoformat(sep=' ', timespec='seconds'),
    'command': shlex.join(sys.argv)[:300],
    'boot': _boot(),
    'started': _started(os.getpid()),
  }


def _boot() -> str:
  return _BOOT.read_text().strip() if _BOOT.is_file() else ''


def _started(pid: int) -> str:
  """When a process began, in ticks since boot; empty if it is not there."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  return text.rpartition(')')[2].split()[19]


def _is_alive(holder: dict[str, Any]) -> bool:
  """Whether a process lives; of another machine that is not known, so yes."""
  if not holder:
    return False
  if holder.get('host') != socket.gethostname():
    return True
  return holder.get('boot') == _boot() and holder.get('started') == _started(
    holder.get('pid', 0)
  )


def _read(path: str) -> dict[str, Any]:
  """What a lock file says; empty while it is being written."""
  try:
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _refuse(folder: str, path: str) -> NoReturn:
  for _ in range(10):  # one that has just begun is still to write who it is
    if holder := _read(path):
      break
    time.sleep(0.1)
  who = 'another process'
  if holder:
    who = (
      f'process {holder.get("pid")} on {holder.get("host")} '
      f'(`{holder.get("command")}`, since {holder.get("since")})'
    )
  raise HeldError(
    f'{folder} is in use by {who}; wait until it has ended, or give another '
    f'folder. If there is no such process, remove {path}'
  )
