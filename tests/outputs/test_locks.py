# SPDX-License-Identifier: Apache-2.0
"""Two runs do not work in one folder; parts of one do; the dead hold nothing."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from specstream_jax.outputs import locks

HOLD = """
import sys, time
from specstream_jax.outputs import locks
folder, task, *place = sys.argv[1:]
with locks.hold(folder, task, *map(int, place)):
  print('ready', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
  """Starts a process that holds a lock in the folder; kills it at the end."""
  started = []

  def start(*args):
    started.append(
      subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
      )
    )
    assert started[-1].stdout.readline() == 'ready\n'
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.wait()


def test_a_second_process_is_told_of_the_first(tmp_path, hold):
  first = hold('train')
  with (
    pytest.raises(
      ValueError,
      match=f'{tmp_path} is in use by process {first.pid} on '
      rf'{socket.gethostname()} \(`.*`, since 2.*\); wait until it has ended',
    ),
    locks.hold(tmp_path, 'train'),
  ):
    pass
  with locks.hold(tmp_path, 'results'):
    pass
  first.kill()
  first.wait()
  assert os.listdir(tmp_path) == ['.train-0-of-1.lock']
  with locks.hold(tmp_path, 'train'):
    said = json.loads((tmp_path / '.train-0-of-1.lock').read_text())
    assert said['pid'] == os.getpid()
  assert os.listdir(tmp_path) == []


def test_parts_of_a_task_share_its_folder(tmp_path, hold):
  hold('distill', 0, 3)
  with locks.hold(tmp_path, 'distill', 1, 3):
    pass
  for place in ((0, 3), (0, 2), (0, 1)):
    with (
      pytest.raises(ValueError, match='is in use by process'),
      locks.hold(tmp_path, 'distill', *place),
    ):
      pass
  assert os.listdir(tmp_path) == ['.distill-0-of-3.lock']


def test_a_dead_part_of_another_count_is_in_nobodys_way(tmp_path, hold):
  first = hold('distill', 0, 3)
  first.kill()
  first.wait()
  with locks.hold(tmp_path, 'distill', 0, 2):
    pass


def test_an_error_inside_lets_go(tmp_path):
  with pytest.raises(KeyError), locks.hold(tmp_path / 'new', 'train'):
    raise KeyError('x')
  with locks.hold(tmp_path / 'new', 'train'):
    pass


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(
      ValueError, match=r'cannot write .*: (Not a dir|File exists)'
    ),
    locks.hold(tmp_path / 'file', 'train'),
  ):
    pass


@pytest.mark.parametrize(
  ('changes', 'is_held'),
  [
    ({}, True),
    ({'started': '1'}, False),  # the number of a process that is gone
    ({'boot': 'another'}, False),
    ({'host': 'another'}, True),
    (None, False),
  ],
)
def test_without_locks_of_the_file_system_the_named_process_decides(
  tmp_path, monkeypatch, changes, is_held
):
  def unsupported(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(locks.fcntl, 'flock', unsupported)
  text = '' if changes is None else json.dumps(locks._identity() | changes)
  path = tmp_path / '.train-0-of-1.lock'
  path.write_text(text)
  assert locks.is_held(str(path)) == is_held
  if is_held:
    with (
      pytest.raises(ValueError, match=rf'remove {path}'),
      locks.hold(tmp_path, 'train'),
    ):
      pass
  else:
    with locks.hold(tmp_path, 'train'):
      pass


def test_one_that_has_just_begun_is_named_as_well(tmp_path, monkeypatch):
  path = tmp_path / '.train-0-of-1.lock'
  said = json.dumps(locks._identity() | {'pid': 123})
  with open(path, 'ab') as first:
    locks.fcntl.flock(first, locks.fcntl.LOCK_EX)
    monkeypatch.setattr(locks.time, 'sleep', lambda _: path.write_text(said))
    with (
      pytest.raises(ValueError, match='in use by process 123 on'),
      locks.hold(tmp_path, 'train'),
    ):
      pass


def test_a_task_whose_name_begins_with_anothers_is_another(tmp_path):
  with (
    locks.hold(tmp_path, 'distill-train-extra'),
    locks.hold(tmp_path, 'distill-train', 1, 2),
  ):
    pass
