# SPDX-License-Identifier: Apache-2.0
"""Hidden folders for files in the making, which the dead leave to the living."""

from collections.abc import Iterator
import contextlib
import fcntl
import glob
import os
import shutil
import tempfile

_ALIVE = '.alive'


@contextlib.contextmanager
def folder(parent: str, name: str) -> Iterator[str]:
  """A folder beside what it is for, gone at the end unless it was renamed.

  Those that dead processes have left for the same name go first.

  Args:
    parent: where it lies; made if it is not there.
    name: of the file or folder in the making.
  """
  os.makedirs(parent, exist_ok=True)
  prefix = f'.{name[:100]}.writing-'
  _sweep(os.path.join(glob.escape(parent), glob.escape(prefix) + '*'))
  # Locked under another name, so that no sweep finds it without its lock.
  made = tempfile.mkdtemp(prefix='.new-', dir=parent)
  place = os.path.join(parent, prefix + made[-8:])
  try:
    with open(os.path.join(made, _ALIVE), 'wb') as alive:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
      os.rename(made, place)
      yield place
  finally:
    for left in (made, place):
      shutil.rmtree(left, ignore_errors=True)


def release(place: str) -> None:
  """Makes a folder of `folder` ready to be renamed for good."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(place, _ALIVE))


def _sweep(pattern: str) -> None:
  """Removes folders whose process is gone; where that cannot be told, none."""
  for place in glob.glob(pattern):
    try:
      with open(os.path.join(place, _ALIVE), 'rb+') as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      continue
    shutil.rmtree(place, ignore_errors=True)
