# SPDX-License-Identifier: Apache-2.0
"""What the parts of a step cost, from whole steps that do a part twice."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import statistics
import time
from typing import Any

from specstream_jax.outputs import progress as progress_lib

WHOLE, PRODUCTS = 'whole', 'products'
# Gets everything ready; what it returns is timed, and returns its steps.
Side = Callable[[], Callable[[], int]]


@dataclasses.dataclass(frozen=True)
class Cost:
  """Milliseconds of a step.

  Attributes:
    name: of the part.
    ms: median over rounds.
    low: lower quartile.
    high: upper quartile.
  """

  name: str
  ms: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class StepProfile:
  """Where a step's time goes.

  Attributes:
    parts: in the order of a step.
    whole: the step.
    products: its matrix products with weights, by themselves.
  """

  parts: tuple[Cost, ...]
  whole: Cost
  products: Cost

  @property
  def rest_ms(self) -> float:
    """What no part explains: the whole less all of them; may be below 0."""
    return self.whole.ms - sum(part.ms for part in self.parts)

  @property
  def other_share(self) -> float:
    """Of the whole, what is no matrix product with weights."""
    return 1 - self.products.ms / self.whole.ms


def measure(
  sides: Mapping[str, Side],
  rounds: int,
  *,
  clock: Callable[[], float] = time.perf_counter,
  progress: bool = True,
) -> dict[str, list[float]]:
  """Seconds of a step of each side in each round, the sides in turns.

  Every other round goes backwards, so that a drift of the machine cancels. A
  run of each side before them compiles, and is not counted. Ctrl-C ends it with
  the rounds that are whole, if there is one.

  Args:
    sides: by name.
    rounds: how often each is timed.
    clock: seconds since any moment.
    progress: show a progress bar.
  """
  names, found = list(sides), []
  total = len(names) * (1 + rounds)
  with progress_lib.bar(total=total, unit='timing', show=progress) as bar:
    progress_lib.say(bar, f'each part {progress_lib.COMPILING}')
    for name in names:
      bar.set_description(f'compiling {name}')
      sides[name]()()
      bar.update()
    progress_lib.forget_so_far(bar)
    try:
      for number in range(rounds):
        order = names[:: -1 if number % 2 else 1]
        found.append(_round(sides, order, clock, bar))
    except KeyboardInterrupt:
      if not found:
        raise
  return {name: [seconds[name] for seconds in found] for name in names}


def _round(sides, order, clock, bar) -> dict[str, float]:
  """Seconds of a step of each side."""
  seconds = {}
  for name in order:
    bar.set_description(name)
    timed = sides[name]()
    start = clock()
    steps = timed()
    seconds[name] = (clock() - start) / steps
    bar.update()
  return seconds


def account(
  seconds: Mapping[str, Sequence[float]], names: Mapping[str, str]
) -> StepProfile:
  """Costs from seconds of a step.

  A part costs what the step that does it twice takes longer than the whole one
  of the same round.

  Args:
    seconds: of `WHOLE`, `PRODUCTS` and the parts, by round.
    names: part -> what to call it, for the parts in order.
  """
  whole = seconds[WHOLE]
  parts = []
  for part, name in names.items():
    more = [a - b for a, b in zip(seconds[part], whole, strict=True)]
    parts.append(_cost(name, more))
  return StepProfile(
    tuple(parts),
    _cost('whole step', whole),
    _cost('matrix products alone', seconds[PRODUCTS]),
  )


def to_json(found: StepProfile) -> dict[str, Any]:
  """The profile with what follows from it."""
  return dataclasses.asdict(found) | {
    'sum_ms': sum(part.ms for part in found.parts),
    'rest_ms': found.rest_ms,
    'other_share': found.other_share,
  }


def _cost(name: str, seconds: Sequence[float]) -> Cost:
  ms = [1e3 * value for value in seconds]
  if len(ms) == 1:
    return Cost(name, *ms * 3)
  low, middle, high = statistics.quantiles(ms, n=4, method='inclusive')
  return Cost(name, middle, low, high)
