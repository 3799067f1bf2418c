# SPDX-License-Identifier: Apache-2.0
"""How scripts end: a mistake of whoever calls one is one line, help is none."""

from collections.abc import Callable, Sequence
import os
import sys

from absl import app


def run(work: Callable[[], None]) -> None:
  """Parses flags and works; --help exits with 0."""

  def main(argv: Sequence[str]) -> None:
    try:
      work()
    except (ValueError, OSError) as error:
      print(f'{os.path.basename(argv[0])}: {error}', file=sys.stderr)
      sys.exit(1)

  app.run(main, flags_parser=_parse)


def _parse(argv):
  """As of absl, whose --help is an error of 1."""
  for asked in ('--help', '-help', '--helpfull'):
    if asked in argv:
      app.usage(
        shorthelp=asked != '--helpfull', writeto_stdout=True, exitcode=0
      )
  return app.parse_flags_with_usage(argv)
