# SPDX-License-Identifier: Apache-2.0
"""Whether a batch drafts: only where that is faster.

A step with drafts costs more than one without, how much more depends on the
size of the batch and on the device. It is measured at the start, and from then on
by every quantum, as a machine that does other things too measures badly. Drafts
pay if rows get more tokens of a call, on average, than the step costs more; what
rows get is measured as they go, adapter by adapter. As the shape of a step is that
of the batch, a row alone saves nothing by not drafting: the batch decides.

Texts change, and nothing is learnt without drafts. So a batch for which they do
not pay tries them now and then, as long as what that lost is a small share of
the time.
"""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

from specstream_jax.decoding import batch_sizes

# Calls, and tokens of each, that count for an adapter that nobody knows.
_PRIOR_CALLS, _PRIOR_GAIN = 16, 3.0
_MEMORY = 512  # calls after which what they told is forgotten by two thirds
_MARGIN = 1.05  # by which drafts must pay more before a batch begins with them
_SHARE = 0.01  # of the time, that trying may lose
_STEPS = 48  # after which a step's cost is forgotten by two thirds
_MOST = 2.0  # times its known cost that a step can tell; some wait for others


class Running(NamedTuple):
  """A row, as far as it matters here.

  Attributes:
    name: of its adapter; None for a row without drafts.
    left: tokens that it may still have.
    has_tree: whether the next call has drafts to verify; without, it gives one
      token, whatever it costs.
  """

  name: str | None
  left: int
  has_tree: bool


class Policy:
  """Decides from one quantum to the next."""

  def __init__(
    self,
    costs: Mapping[batch_sizes.Shape, batch_sizes.Cost],
    max_drafting_rows: int | None,
  ):
    """Knows nothing of adapters yet.

    Args:
      costs: of a step, by its shape, as measured at the start; empty if drafts
        cost nothing, or if they are not to be weighed.
      max_drafting_rows: if more run, nobody drafts; None leaves it to costs.
    """
    self._costs, self._most = dict(costs), max_drafting_rows
    self._calls: dict[str, float] = {}
    self._accepted: dict[str, float] = {}
    self._is_drafting = self._is_trying = False
    self._busy = self._lost = 0.0  # seconds of all steps, and by trying

  def has_drafts(
    self, shape: batch_sizes.Shape, rows: Sequence[Running]
  ) -> bool:
    """Whether a batch drafts now.

    Args:
      shape: of the batch's steps.
      rows: those that run, at least one.
    """
    self._is_trying = False
    if all(row.name is None for row in rows):
      return False
    if self._most is not None:
      return len(rows) <= self._most
    if shape not in self._costs:
      return True
    needed = self._costs[shape].break_even * len(rows)
    if not self._is_drafting:
      needed *= _MARGIN
    self._is_drafting = sum(map(self._per_call, rows)) > needed
    self._is_trying = not self._is_drafting and (
      self._lost < _SHARE * self._busy
    )
    return self._is_drafting or self._is_trying

  def steps(self, shape: batch_sizes.Shape, quantum: int) -> int:
    """Steps with drafts that take as long as a quantum of steps without.

    Whoever waits for a part of its prompt to be read waits no longer for them.
    """
    cost = self._costs.get(shape)
    return quantum if cost is None else max(int(quantum / cost.break_even), 1)

  def _per_call(self, row: Running) -> float:
    """Tokens that a call gives a row on average, if it drafts to its end."""
    if row.name is None:
      return 1.0
    left, calls = max(row.left, 1), int(not row.has_tree)
    calls += math.ceil(max(left - calls, 0) / self.gain(row.name))
    return left / calls

  def gain(self, name: str) -> float:
    """Tokens per call with drafts that rows of an adapter can hope for."""
    calls = self._calls.get(name, 0.0) + _PRIOR_CALLS
    hoped = (_PRIOR_GAIN - 1) * _PRIOR_CALLS
    return 1.0 + (self._accepted.get(name, 0.0) + hoped) / calls

  def learn(self, name: str, calls: int, accepted: int) -> None:
    """What calls with drafts came to.

    Args:
      name: of the adapter.
      calls: of the model.
      accepted: draft tokens.
    """
    kept = (1 - 1 / _MEMORY) ** calls
    self._calls[name] = self._calls.get(name, 0.0) * kept + calls
    self._accepted[name] = self._accepted.get(name, 0.0) * kept + accepted

  def note(
    self,
    shape: batch_sizes.Shape,
    calls: Sequence[int],
    num_tokens: int,
    seconds: float,
  ) -> None:
    """What the quantum came to that `has_drafts` was asked for.

    Args:
      shape: of its steps.
      calls: of the model, by row.
      num_tokens: of all rows.
      seconds: that it took.
    """
    cost, num_calls = self._costs.get(shape), sum(calls)
    if cost is None or not num_calls:
      return
    steps, has_drafts = max(calls), self._is_drafting or self._is_trying
    self._costs[shape] = _corrected(cost, steps, seconds, has_drafts=has_drafts)
    self._busy += seconds
    if self._is_trying:
      # Without drafts the tokens take as many calls as there are of them.
      plain = steps * num_tokens / num_calls * cost.plain
      self._lost = max(self._lost + seconds - plain, 0.0)


def _corrected(
  cost: batch_sizes.Cost, steps: int, seconds: float, *, has_drafts: bool
) -> batch_sizes.Cost:
  """A cost by what some steps more took, of one of its two ways."""
  known = cost.drafting if has_drafts else cost.plain
  kept = (1 - 1 / _STEPS) ** steps
  found = kept * known + (1 - kept) * min(seconds / steps, _MOST * known)
  way = 'drafting' if has_drafts else 'plain'
  return cost._replace(**{way: found})
