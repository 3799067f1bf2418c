# SPDX-License-Identifier: Apache-2.0
"""How a command ends: one line about what went wrong, and an exit status."""

import errno
import os
import signal
import sys

from specstream_jax.outputs import writing

CAUGHT = (ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt)


def report(command: str, error: BaseException) -> int:
  """Prints what an error of CAUGHT means; returns the exit status.

  Args:
    command: name of it.
    error: what ended it.
  """
  if isinstance(error, BrokenPipeError):
    _drop_output()  # Whoever read it has seen enough: `… | head -1`.
    return 128 + signal.SIGPIPE
  text, status = str(error), 1
  if isinstance(error, KeyboardInterrupt):
    text, status = 'interrupted', 128 + signal.SIGINT
  elif getattr(error, 'errno', None) == errno.ENOSPC and not error.filename:
    # Whatever is a file has a name by now (`outputs.writing`).
    text = f'cannot write to the standard output: {writing.reason(error)}'
    _drop_output()
  # gin appends where it was called from.
  text = text.partition('\n  In call to configurable')[0]
  print(f'specstream {command}: {text}', file=sys.stderr)
  return status


def on_sigterm() -> None:
  """Makes SIGTERM end the process as Ctrl-C does: what is temporary goes."""

  def end(number, _):
    raise SystemExit(128 + number)

  signal.signal(signal.SIGTERM, end)


def _drop_output() -> None:
  """Lets nothing more be written, or Python would complain at its end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
