# SPDX-License-Identifier: Apache-2.0
"""Progress bars whose time left leaves out what happens once."""

import sys
import time
from typing import Any

import tqdm

# Said where something is about to compile.
COMPILING = (
  'compiles first: seconds for a small model, on a CPU up to a minute or two; '
  'the same command takes it from the compilation cache the next time'
)


def say(made: Any, text: str) -> None:
  """A line above a bar, if that is shown."""
  if not made.disable:
    made.write(text, file=sys.stderr)


def bar(
  *, total: int, unit: str, initial: int = 0, show: bool = True
) -> tqdm.tqdm:
  """A bar with the mean pace since its start, or since `forget_so_far`.

  Args:
    total: of the units.
    unit: what is counted.
    initial: how many are done.
    show: whether it is shown.
  """
  return tqdm.tqdm(
    total=total, initial=initial, unit=unit, disable=not show, smoothing=0
  )


def forget_so_far(made: Any) -> None:
  """Takes the pace from here on: what came before compiled as well."""
  if not made.disable:
    made.initial = made.n
    made.start_t = made.last_print_t = time.time()


def leave_out(made: Any, seconds: float) -> None:
  """Takes time that was spent once, on a compilation, from the pace."""
  if not made.disable:
    made.start_t += seconds


def skip(made: Any) -> None:
  """One unit that was done before this run, so that it tells nothing of the pace."""
  if not made.disable:
    made.initial += 1
  made.update()
