# SPDX-License-Identifier: Apache-2.0
"""Whether a batch drafts: only where that is faster.

A step with drafts costs more than one without, how much more depends on the
size of the batch and on the device. It was measured at the start. Drafts pay if
rows get more tokens of a call, on average, than the step costs more; what rows
get is measured as they go, adapter by adapter. As the shape of a step is that of
the batch, a row alone saves nothing by not drafting: the batch decides.
"""

from collections.abc import Mapping, Sequence

from specstream_jax.decoding import batch_sizes

_LEAST = 32  # calls that tell something of an adapter
_MEMORY = 512  # calls after which what they told is forgotten by two thirds
_PROBE = 64  # quanta without drafts after which one tries again


class Policy:
  """Decides from one quantum to the next."""

  def __init__(
    self,
    costs: Mapping[int, batch_sizes.Cost],
    max_drafting_rows: int | None,
  ):
    """Knows nothing of adapters yet.

    Args:
      costs: of a step, by size of batch; empty if drafts cost nothing, or if
        they are not to be weighed.
      max_drafting_rows: if more run, nobody drafts; None leaves it to costs.
    """
    self._costs, self._most = costs, max_drafting_rows
    self._calls: dict[str, float] = {}
    self._accepted: dict[str, float] = {}
    self._num_plain = 0

  def has_drafts(self, size: int, names: Sequence[str | None]) -> bool:
    """Whether a batch drafts now.

    Args:
      size: of the batch.
      names: of the adapter of each row that runs; None for rows without drafts.
    """
    if all(name is None for name in names):
      return False
    if self._most is not None:
      return len(names) <= self._most
    if size not in self._costs:
      return True
    least = self._costs[size].break_even * len(names)
    if sum(map(self._gain, names)) > least:
      return True
    self._num_plain += 1
    # Texts change, and nothing is learnt without drafts.
    return self._num_plain % _PROBE == 0

  def _gain(self, name: str | None) -> float:
    """Tokens per call that a row can hope for."""
    if name is None:
      return 1.0
    calls = self._calls.get(name, 0.0)
    if calls < _LEAST:
      return float('inf')
    return 1.0 + self._accepted[name] / calls

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
