# SPDX-License-Identifier: Apache-2.0
"""The `specstream` program within this process, so that many runs are cheap."""

import contextlib
import io
import re
import sys
from typing import NamedTuple

from absl import flags
import gin

from specstream_jax.cli import main


class Done(NamedTuple):
  """What a run came to."""

  status: int
  out: str
  err: str


def run(*args: str) -> Done:
  """Runs a command; its flags and gin bindings are forgotten afterwards."""
  before, argv = set(flags.FLAGS), list(sys.argv)
  out, err, status = io.StringIO(), io.StringIO(), 0
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      main.run([*args, '--compilation_cache='])
  except SystemExit as error:
    status = error.code or 0
  finally:
    sys.argv[:] = argv
    gin.clear_config()
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
  return Done(status, out.getvalue(), err.getvalue())


def refusal(command: str, *args: str, match: str) -> None:
  """Runs a command that must refuse, in one message and no traceback.

  Args:
    command: its name.
    args: of the command.
    match: pattern that the message has.
  """
  done = run(command, *args)
  assert done.status == 1, (done.status, done.out, done.err)
  assert_message(command, done.err)
  assert re.search(match, done.err, re.DOTALL), done.err


def assert_message(command: str, text: str) -> None:
  """Stderr of a command that refused: what it says, and nothing else."""
  text = re.sub(r'\Aresults will be in .*\n', '', text)
  start = f'specstream {command}: '
  assert text.startswith(start) and text.count(start) == 1, text
  assert 'Traceback' not in text, text
