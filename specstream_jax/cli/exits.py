# SPDX-License-Identifier: Apache-2.0
"""How a command ends: one line about what went wrong, and an exit status."""

import errno
import os
import signal
import sys

from absl import flags

from specstream_jax import memory
from specstream_jax.config import checks
from specstream_jax.outputs import writing

CAUGHT = (ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt)
# Flags that make a command need less memory, and what to set them to.
_SMALLER = {
  'batch': '',
  'batch_size': '',
  'batch_sizes': '',
  'max_new_tokens': '',
  'max_prompt_tokens': '',
  'remat': '=full',
  'dtype': '=bfloat16',
}
_SMALLER_TRAINING = ('DataConfig.sequence_length', 'ObjectiveConfig.chunk_size')


def report(command: str, error: BaseException) -> int:
  """Prints what an error of CAUGHT means; returns the exit status.

  Args:
    command: name of it.
    error: what ended it.
  """
  if isinstance(error, BrokenPipeError):
    _drop_output()  # Whoever read it has seen enough: `… | head -1`.
    return 128 + signal.SIGPIPE
  text, status = checks.message(error), 1
  too_much = memory.explain(error)
  if too_much:
    text = too_much + _smaller()
  if isinstance(error, KeyboardInterrupt):
    text, status = 'interrupted', 128 + signal.SIGINT
  elif (
    isinstance(error, OSError)
    and error.errno == errno.ENOSPC
    and not error.filename
  ):
    # Whatever is a file has a name by now (`outputs.writing`).
    text = f'cannot write to the standard output: {writing.reason(error)}'
    _drop_output()
  print(f'specstream {command}: {text}', file=sys.stderr)
  return status


def _smaller() -> str:
  """The flags of the running command that need less memory."""
  found = [
    f'--{name}{value}'
    for name, value in _SMALLER.items()
    if name in flags.FLAGS
  ]
  if 'remat' in flags.FLAGS:
    found += [f'--gin.{name}' for name in _SMALLER_TRAINING]
  return f'. Smaller with {", ".join(found)}' if found else ''


def on_sigterm() -> None:
  """Makes SIGTERM end the process as Ctrl-C does.

  What is temporary goes, locks too, and what there is so far is written.
  """

  def end(number, _):
    raise SystemExit(128 + number)

  signal.signal(signal.SIGTERM, end)


def _drop_output() -> None:
  """Lets nothing more be written, or Python would complain at its end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
