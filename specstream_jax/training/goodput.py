# SPDX-License-Identifier: Apache-2.0
"""Where the wall time of a run goes, and traces of some of its steps."""

from collections.abc import Iterator
import contextlib
import os
import time

import jax

from specstream_jax.outputs import writing

PARTS = ('step', 'compile', 'data', 'checkpoint', 'evaluation')


class Goodput:
  """Adds up wall time by part; what is in no part is `other`."""

  def __init__(self):
    self._start = time.perf_counter()
    self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts what runs inside towards `name`, one of PARTS."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[name] += time.perf_counter() - start

  def shares(self) -> dict[str, float]:
    """Share of the time so far by part, and `other`; they add up to 1."""
    total = time.perf_counter() - self._start
    found = {name: self._seconds[name] / total for name in PARTS}
    return found | {'other': 1 - sum(found.values())}


def line(shares: dict[str, float]) -> str:
  """'92 % step, 5 % compile, …', the parts of 1 % and more."""
  ranked = sorted(shares.items(), key=lambda item: -item[1])
  return ', '.join(f'{x:.0%} {name}' for name, x in ranked if x >= 0.01)


class Profile:
  """An XProf trace of the steps `first` to `last`, both included."""

  def __init__(self, folder: str, steps: tuple[int, int] | None):
    self._folder, self._steps, self._on = folder, steps, False

  def before_step(self, number: int) -> None:
    """Starts the trace before its first step; after a resume, in its midst."""
    if self._steps and not self._on:
      first, last = self._steps
      if first <= number <= last:
        with writing.readable(self._folder):
          os.makedirs(self._folder, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._on = True

  def after_step(self, number: int) -> None:
    """Ends the trace after its last step, which must have finished."""
    if self._on and self._steps and number >= self._steps[1]:
      self.stop()

  def stop(self) -> None:
    """Ends the trace, if one is running, and writes it."""
    if self._on:
      self._on, self._steps = False, None
      with writing.readable(self._folder):
        jax.profiler.stop_trace()


def parse_steps(text: str) -> tuple[int, int] | None:
  """'10:13' -> (10, 13), '' -> None.

  Raises:
    ValueError: another form, or steps that are not in order from 1 on.
  """
  if not text:
    return None
  first, _, last = text.partition(':')
  if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
    raise ValueError(
      f'steps to profile are {text!r}; write FIRST:LAST, such as 10:13'
    )
  return int(first), int(last)
