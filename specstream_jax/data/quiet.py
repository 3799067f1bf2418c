# SPDX-License-Identifier: Apache-2.0
"""TensorFlow says on import which devices it lacks; nobody here asked it to.

It writes past Python, straight to the descriptor of stderr.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import sys
import tempfile

_STDERR = 2
_KNOWN = re.compile(
  rb'All log messages before absl::InitializeLog'
  rb'|oneDNN custom operations are on'
  rb'|Could not find cuda drivers'
  rb'|failed call to cuInit'
  rb'|Unable to register cu\w+ factory'
  rb'|computation placer already registered'
  rb'|TensorFlow binary is optimized to use'
  rb'|To enable the following instructions'
  rb'|TF-TRT Warning'
)


@contextlib.contextmanager
def filtered() -> Iterator[None]:
  """Holds back what is written to stderr; lines of no concern are dropped.

  All others are written at the end, in their order.
  """
  sys.stderr.flush()
  kept = os.dup(_STDERR)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), _STDERR)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(kept, _STDERR)
      os.close(kept)
      file.seek(0)
      lines = [line for line in file if not _KNOWN.search(line)]
      os.write(_STDERR, b''.join(lines))
