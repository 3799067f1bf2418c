# SPDX-License-Identifier: Apache-2.0
"""What the checkpoint library logs though it is told, or no concern of a user.

A save that fails is logged by each of its threads, with stack traces, and then
raised: the one line of `checkpoints.SaveError` says it all.
"""

import functools
import logging
import re
import sys

from specstream_jax.outputs import writing

_ORBAX = re.compile(
  # A failed save, raised by `wait`.
  r'raised an exception'
  r'|Failed to run .* Handler Commit operations'
  r'|Save Finalize thread'
  # Most checkpoints lie between two evaluations.
  r'|did not provide metrics'
  # A save that takes longer than the steps up to the next one.
  r'|Waiting for previous save'
)


def _of_orbax(record: logging.LogRecord) -> bool:
  """False for records to be dropped."""
  return '/orbax/' not in record.pathname or not _ORBAX.search(
    record.getMessage()
  )


def _of_asyncio(record: logging.LogRecord) -> bool:
  """False where a thread of a failed save was not asked for its error."""
  error = record.exc_info and record.exc_info[1]
  return not (
    isinstance(error, Exception)
    and 'never retrieved' in record.getMessage()
    and writing.reason(error)
  )


def _hook(before, raised):
  """`sys.unraisablehook` but for writes that outlive the loop of their save."""
  if str(raised.exc_value) != 'Event loop is closed':
    before(raised)


@functools.cache
def silence() -> None:
  """Drops these lines from what this process prints; others stay."""
  logging.getLogger('absl').addFilter(_of_orbax)
  logging.getLogger('asyncio').addFilter(_of_asyncio)
  sys.unraisablehook = functools.partial(_hook, sys.unraisablehook)
