# SPDX-License-Identifier: Apache-2.0
"""How scripts that work on files end: a mistake in one is one line."""

from collections.abc import Callable, Sequence

from absl import app


def run(work: Callable[[], None]) -> None:
  """Parses flags and works."""

  def main(argv: Sequence[str]) -> None:
    del argv
    try:
      work()
    except (ValueError, OSError) as error:
      raise app.UsageError(str(error)) from error

  app.run(main)
