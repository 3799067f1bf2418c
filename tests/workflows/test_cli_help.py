# SPDX-License-Identifier: Apache-2.0
"""Help, flags and gin bindings of the commands, without a model."""

import subprocess
import sys

import pytest

from specstream_jax.cli import main


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', 'specstream_jax.cli.main', *args],
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize('name', ['generate', 'train', 'bench', 'distill'])
def test_help_lists_the_flags_of_a_command(name):
  done = run(name, '--help')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'usage: specstream {name} [flags]')
  own = {'generate': 'stop', 'train': 'remat', 'bench': 'tasks'}
  for flag in (own.get(name, 'shard'), 'model', 'gin_file', 'debug'):
    assert f'\n  --{flag}' in done.stdout


def test_help_into_a_closed_pipe_is_not_an_error():
  process = subprocess.Popen(
    [sys.executable, '-m', 'specstream_jax.cli.main', 'bench', '--help'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()  # before anything was written
  with process.stderr:
    errors = process.stderr.read()
  assert process.wait(120) == 0, errors
  assert 'BrokenPipe' not in errors


def test_every_command_can_describe_its_flags():
  # Flags are global to a process and two commands share names, so they are
  # cleared in between.
  code = (
    'import importlib, sys\n'
    'from absl import flags\n'
    'from specstream_jax.cli import help_texts, main\n'
    'for name in main.COMMANDS:\n'
    "  command = importlib.import_module(f'specstream_jax.cli.{name}')\n"
    '  flags.FLAGS.__dict__.clear()\n'
    '  flags.FLAGS.__init__()\n'
    '  own = main._defined_by(command.define_flags)\n'
    '  text = help_texts.command_usage(name, command.__doc__, {"x": own})\n'
    "  assert all(f'  --{flag}' in text for flag in own), name\n"
    '  print(name, len(own))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == len(main.COMMANDS)


def test_words_that_are_no_flags_are_refused():
  done = run('generate', '--prompt=x', 'more', 'words')
  assert done.returncode == 1
  assert done.stderr.count('\n') == 1 and "'more'" in done.stderr
