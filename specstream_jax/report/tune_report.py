# SPDX-License-Identifier: Apache-2.0
"""What tuning found: a table for the terminal, tune.json, a plot."""

from collections.abc import Sequence
import dataclasses
import json
import os

from specstream_jax.bench import machine, results
from specstream_jax.outputs import writing
from specstream_jax.report import plots, svg

_HEAD = (
  *('drafter', 'schedule', 'batch', 'CR', 'step cost', 'predicted'),
  'measured (95 %)',
)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to decode, for so many rows, and what is known of it.

  Attributes:
    drafter: as `config.drafting.parse` reads it.
    nodes: of its tree.
    has_vocabulary: drafts come from the adapter's draft vocabulary.
    schedule: of the streams.
    batch: rows per call.
    call_reduction: CR = calls without drafts / calls with, on all prompts; None
      where only a run can tell.
    step_cost: time of a call / time of one without drafts, medians; likewise.
    speedup: measured against plain decoding; None if it was not.
    speedup_ci95: its interval over prompts.
    sizes: nodes that calls choose among, the largest tree's last; empty where
      every call verifies the same tree.
    has_copies: copies of the text compete with streams for the nodes.
  """

  drafter: str
  nodes: int
  has_vocabulary: bool
  schedule: str
  batch: int
  call_reduction: float | None
  step_cost: float | None
  speedup: float | None = None
  speedup_ci95: tuple[float, float] | None = None
  sizes: tuple[int, ...] = ()
  has_copies: bool = False

  @property
  def is_foreseen(self) -> bool:
    """Whether its calls are known without a run."""
    return not (self.sizes or self.has_copies)

  @property
  def predicted(self) -> float | None:
    """The speed-up that its two factors come to, if they are known."""
    if not self.is_foreseen or not (self.call_reduction and self.step_cost):
      return None
    return self.call_reduction / self.step_cost

  @property
  def label(self) -> str:
    """For tables."""
    nodes = '/'.join(map(str, self.sizes or (self.nodes,)))
    name = 'mix' if self.has_copies else 'streams'
    return f'{name} {nodes}' + ', vocabulary' * self.has_vocabulary

  def measured_by(self, run: results.RunResult) -> 'Candidate':
    """The candidate, with what a benchmark says of it."""
    low, high = run.speedup_ci95
    found = dataclasses.replace(
      self, speedup=run.speedup, speedup_ci95=(low, high)
    )
    if self.call_reduction is not None:
      return found
    return dataclasses.replace(
      found,
      call_reduction=run.call_reduction_ratio,
      step_cost=run.step_cost_ratio,
    )


def fixed(
  found: Sequence[Candidate], batch: int, *, with_copies: bool = True
) -> Candidate | None:
  """The fastest of one size that was measured; None if none beats plain.

  Args:
    found: candidates.
    batch: rows per call.
    with_copies: also those whose nodes copies compete for.
  """
  ran = [c for c in found if c.batch == batch and c.speedup and not c.sizes]
  ran = [c for c in ran if with_copies or not c.has_copies]
  first = max(ran, key=lambda one: one.speedup or 0.0, default=None)
  return first if first and (first.speedup or 0.0) > 1 else None


def best(found: Sequence[Candidate], batch: int) -> Candidate | None:
  """The fastest that was measured; None if none beats plain decoding.

  Calls that choose their size must be faster beyond doubt: the low end of their
  interval lies above the fastest tree of one size, and above plain decoding.
  """
  first = fixed(found, batch)
  bar = (first.speedup or 0.0) if first else 1.0
  choosing = (c for c in found if c.batch == batch and c.sizes)
  clear = (c for c in choosing if c.speedup_ci95 and c.speedup_ci95[0] > bar)
  return next(clear, first)


def table(found: Sequence[Candidate]) -> str:
  """Candidates in the order that they have."""
  rows = [_HEAD, *map(_row, found)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda row: (
    text.ljust(width) if place < 2 else text.rjust(width)
    for place, (text, width) in enumerate(zip(row, widths, strict=True))
  )
  lines = ['  '.join(pad(row)).rstrip() for row in rows]
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


def verdict(found: Sequence[Candidate], batch: int) -> str:
  """What to take, and how far prediction and clock were apart."""
  one = best(found, batch)
  ran = [c for c in found if c.batch == batch and c.speedup is not None]
  apart = max(
    abs(c.predicted / c.speedup - 1) for c in ran if c.predicted and c.speedup
  )
  error = f'predictions were off by at most {apart:.0%}'
  if one is None:
    return f'batch {batch}: drafts do not pay here, plain decoding is fastest; {error}'
  return (
    f'batch {batch}: {one.label}, {one.schedule}, is fastest, '
    f'{one.speedup:.2f} times plain decoding; {error}'
  )


def plot(found: Sequence[Candidate]) -> svg.Svg:
  """Predicted speed-up by nodes, and dots for what was measured."""
  lines: dict[str, list[tuple[int, float]]] = {}
  dots: dict[str, list[tuple[int, float]]] = {}
  for one in sorted(found, key=lambda one: one.nodes):
    name = f'batch {one.batch}, {one.schedule}'
    name += ', vocabulary' * one.has_vocabulary
    name += ', budgets' * bool(one.sizes)
    name += ', mix' * one.has_copies
    if one.predicted is not None:
      lines.setdefault(name, []).append((one.nodes, one.predicted))
    if one.speedup is not None:
      dots.setdefault(name, []).append((one.nodes, one.speedup))
  return plots.tuning(lines, dots)


def write(
  folder: str, found: Sequence[Candidate], *, command: str, task: str
) -> None:
  """tune.json and tune.svg in a folder.

  Raises:
    WriteError: it cannot be written.
  """
  rows = [
    dataclasses.asdict(one) | {'predicted': one.predicted} for one in found
  ]
  value = {
    'command': command,
    'task': task,
    'machine': machine.describe(),
    'versions': results.versions(),
    'candidates': rows,
  }
  text = json.dumps(value, indent=2) + '\n'
  writing.write_text(os.path.join(folder, 'tune.json'), text)
  writing.write_text(os.path.join(folder, 'tune.svg'), str(plot(found)))


def _row(one: Candidate) -> tuple[str, ...]:
  measured = ''
  if one.speedup is not None and one.speedup_ci95 is not None:
    low, high = one.speedup_ci95
    measured = f'{one.speedup:.2f} ({low:.2f}-{high:.2f})'
  return (
    one.label,
    one.schedule,
    str(one.batch),
    *map(_number, (one.call_reduction, one.step_cost, one.predicted)),
    measured,
  )


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'
