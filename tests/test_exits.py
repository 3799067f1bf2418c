# SPDX-License-Identifier: Apache-2.0
"""How commands end: exit status, one line or none, nothing left behind."""

import os
import signal
import subprocess
import sys

import pytest

from specstream_jax.cli import exits

# A command whose body is the test's.
COMMAND = """
from specstream_jax.cli import info, main
def body(argv):
  {body}
info.main = body
main.run(['info'])
"""
MANY = '\n  '.join(['for _ in range(9999):', "  print('x' * 1000)"])


def start(body, **options):
  command = [sys.executable, '-c', COMMAND.format(body=body)]
  return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
  process = start(MANY, stdout=subprocess.PIPE)
  assert process.stdout.readline() == 'x' * 1000 + '\n'
  process.stdout.close()
  assert process.stderr.read() == ''
  assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
@pytest.mark.parametrize('body', [MANY, "print('a')"], ids=['many', 'one'])
def test_output_that_cannot_be_written_is_one_line(body):
  with open('/dev/full', 'w') as full:
    process = start(body, stdout=full)
    error = process.stderr.read()
  assert process.wait() == 1
  assert error == (
    'specstream info: cannot write to the standard output: No space left on '
    'device\n'
  )


@pytest.mark.parametrize(
  ('error', 'status', 'line'),
  [
    (KeyboardInterrupt(), 130, 'specstream bench: interrupted\n'),
    (ValueError('wrong'), 1, 'specstream bench: wrong\n'),
  ],
)
def test_status_and_line(error, status, line, capsys):
  assert exits.report('bench', error) == status
  assert isinstance(error, exits.CAUGHT)
  assert capsys.readouterr().err == line


TEMPORARY = """
import sys, time
from specstream_jax.cli import bench, main
from specstream_jax.outputs import locks, scratch
folder = sys.argv[1]
def work(argv):
  with locks.hold(folder, 'results'), scratch.folder(folder, 'records'):
    print('ready', flush=True)
    time.sleep(60)
bench.main = work
main.run(['bench'])
"""


def test_sigterm_takes_what_is_temporary_along(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', TEMPORARY, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  assert len(os.listdir(tmp_path)) == 2
  process.terminate()
  assert process.wait() == 143
  assert os.listdir(tmp_path) == []


STOPPED = """
import sys
from specstream_jax.cli import main, train_flags
from specstream_jax.workflows import (
  dry_run, train, train_dart, train_draft_model, train_medusa, train_run
)
train_flags.announce = dry_run.warn_if_large = lambda *_, **__: None
number = int(sys.argv[1])
for module in (train, train_dart, train_draft_model, train_medusa):
  module.train = lambda *_, **__: train_run.Trained(None, 5, {}, number)
main.run([*sys.argv[2:], '--data_dir=a', '--output_dir=b'])
"""


@pytest.mark.parametrize(
  'number',
  [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_training_that_a_signal_stopped_does_not_count_as_done(number):
  commands = (
    *(('train',), ('train', '--draft_model_layers=1')),
    *(('train_medusa',), ('train_dart',)),
  )
  code = [sys.executable, '-c', STOPPED, str(int(number))]
  running = [
    subprocess.Popen([*code, *command], stdout=subprocess.PIPE, text=True)
    for command in commands
  ]
  for process in running:
    text, _ = process.communicate()
    assert 'stopped at step 5; run the same command to resume\n' in text
    assert process.returncode == 128 + number
