# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all; what goes wrong is one line."""

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

from array_record.python import array_record_module
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tokenizers

from specstream_jax.outputs import names, scratch, writing

FULL = f'no file is full: {os.strerror(errno.ENOSPC)} (os error 28)'


@pytest.fixture
def small_files():
  """No file may grow past 4 KiB: writes fail as on a full disk."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, old)
  signal.signal(signal.SIGXFSZ, before)


def write_array_record(path):
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
  for _ in range(1000):
    writer.write(os.urandom(100))
  writer.close()


def write_tokenizer(path):
  words = {f'word{i}': i for i in range(3000)}
  model = tokenizers.models.WordLevel(words, unk_token='word0')
  tokenizers.Tokenizer(model).save(path)


def write_tensors(path):
  safetensors_numpy.save_file({'a': np.zeros(9999, np.float32)}, path)


@pytest.mark.parametrize(
  'write',
  [
    lambda path: pathlib.Path(path).write_bytes(b'x' * 9999),
    write_array_record,
    write_tokenizer,
    write_tensors,
  ],
  ids=['bytes', 'array_record', 'tokenizer', 'tensors'],
)
def test_what_libraries_say_of_a_full_disk_becomes_one_line(
  tmp_path, small_files, write
):
  (tmp_path / 'a').write_text('old')
  with (
    pytest.raises(
      writing.WriteError,
      match=r'^cannot write .*/a: File too large; .* untouched; free some space',
    ),
    writing.replacing(tmp_path / 'a') as place,
  ):
    write(place)
  assert os.listdir(tmp_path) == ['a']
  assert (tmp_path / 'a').read_text() == 'old'


@pytest.mark.parametrize(
  ('error', 'found'),
  [
    (OSError(errno.EROFS, 'Read-only file system', 'a'), 'Read-only'),
    (RuntimeError(FULL), 'No space left on device'),
    (OSError('nothing known'), None),
    (KeyError('a'), None),
  ],
)
def test_reasons(error, found):
  text = writing.reason(error)
  assert text is found is None or text.startswith(found)


def test_other_errors_stay_what_they_are():
  with pytest.raises(KeyError, match='x'), writing.readable('a'):
    raise KeyError('x')


HOLD = """
import sys, time
from specstream_jax.outputs import scratch
with scratch.folder(sys.argv[1], 'records') as place:
  open(place + '/half', 'w').close()
  print('ready', flush=True)
  time.sleep(60)
"""


def test_folders_of_dead_processes_go_and_those_of_the_living_stay(tmp_path):
  start = lambda: subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  hidden = lambda: {p for p in tmp_path.iterdir() if p.name[0] == '.'}
  (tmp_path / '.records.writing-by-hand').mkdir()
  first = start()
  assert first.stdout.readline() == 'ready\n'
  of_first = {p for p in hidden() if (p / 'half').exists()}
  second = start()
  assert second.stdout.readline() == 'ready\n'
  assert len(hidden()) == 3 and of_first < hidden()
  first.kill()
  first.wait()
  with scratch.folder(str(tmp_path), 'records') as place:
    assert len(hidden()) == 3 and not of_first & hidden()
    assert pathlib.Path(place) in hidden()
  second.kill()
  second.wait()
  with scratch.folder(str(tmp_path), 'other'):
    assert len(hidden()) == 3  # of another name
  with scratch.folder(str(tmp_path), 'records'):
    pass
  assert [p.name for p in hidden()] == ['.records.writing-by-hand']


@pytest.mark.parametrize(
  'name', ['../up', '/root', '', '.hidden', 'a/b', 'a' * 101, 'a\n', None, 3]
)
def test_names_that_are_no_file_of_the_folder(name):
  with pytest.raises(ValueError, match=r'--split is .*, which names a file'):
    names.check('--split', name)
  assert not names.is_plain(name)


@pytest.mark.parametrize('name', ['train', 'a-1.b_c', 'model-00001-of-2.x'])
def test_plain_names(name):
  names.check('--split', name)


def test_a_pipe_keeps_its_place(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  with pytest.raises(writing.WriteError, match='device or a pipe; name a file'):
    writing.write_text(path, 'text')
  assert path.is_fifo()
  assert os.listdir(tmp_path) == ['pipe']
