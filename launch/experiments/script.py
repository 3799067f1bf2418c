# SPDX-License-Identifier: Apache-2.0
"""How scripts end: a mistake of whoever calls one is one line."""

from collections.abc import Callable, Sequence
import os
import sys

from absl import app


def run(work: Callable[[], None]) -> None:
  """Parses flags and works."""

  def main(argv: Sequence[str]) -> None:
    try:
      work()
    except (ValueError, OSError) as error:
      print(f'{os.path.basename(argv[0])}: {error}', file=sys.stderr)
      sys.exit(1)

  app.run(main)
