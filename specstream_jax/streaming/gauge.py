# SPDX-License-Identifier: Apache-2.0
"""How long calls compute, and how long layers take to come, each by itself.

One layer in memory stands for all of them, so nothing is read while computing is
timed; what a call costs then follows for any memory, see `cost`.
"""

from collections.abc import Sequence
import statistics
import threading
import time
from typing import Any

import jax

from specstream_jax.streaming import (
  cost,
  decoder as decoder_lib,
  weights as weights_lib,
)

_STEPS = 3
_MOST_READ = 8  # layers


class OneLayer:
  """As `LayerWeights`, all of whose layers are one that is at hand.

  Attributes:
    in_use: see there.
    seen: (layer, seconds from taking it to its result), in order.
  """

  def __init__(self, weights: weights_lib.LayerWeights):
    """Takes the first layer that does not stay, or else the first."""
    moving = [i for i in range(weights.layout.num_layers)]
    moving = [i for i in moving if i not in weights.resident] or moving
    self.in_use = threading.RLock()
    self.seen: list[tuple[int, float]] = []
    self._params = weights.copy(moving[0])
    self._begun = (0, 0.0)

  def expect(self, layers: Sequence[int]) -> None:
    """Nothing is read."""
    del layers

  def take(self, layer: int) -> weights_lib.Taken:
    """The layer, whichever is asked for; its time begins."""
    self._begun = layer, time.perf_counter()
    return weights_lib.Taken(self._params, None)

  def give_back(self, taken: weights_lib.Taken, result: Any) -> None:
    """Its time ends with the result."""
    del taken
    jax.block_until_ready(result)
    layer, begin = self._begun
    self.seen.append((layer, time.perf_counter() - begin))


def compute(
  made: decoder_lib.StreamedDecoder,
  one: OneLayer,
  prompts: Sequence[Sequence[int]],
  **named: Any,
) -> cost.Compute:
  """Seconds that a call computes, layer by layer.

  What the layer says is no text, so how often `likely` needs a second pass is
  not known of it.

  Args:
    made: the decoder, of which `one` is the weights.
    one: its layer.
    prompts: token ids of each row.
    **named: of `Decoder.start`.

  Raises:
    ValueError: all rows ended before there was a call to time.
  """
  state = made.start(made.params, prompts, **named)
  state = made.advance(made.params, state, 1)  # compiles
  jax.block_until_ready(state)
  before, one.seen = int(state.calls.max()), []
  begin = time.perf_counter()
  state = jax.block_until_ready(made.advance(made.params, state, _STEPS))
  total = time.perf_counter() - begin
  calls = int(state.calls.max()) - before
  if not calls:
    raise ValueError(
      'no call could be timed, as all texts ended in two; ask for more new tokens'
    )
  runs = made.driver.runs.step
  return split(one.seen, runs.first_msa, total, calls)


def split(
  seen: Sequence[tuple[int, float]],
  first_msa: int,
  total: float,
  calls: int,
) -> cost.Compute:
  """What calls took, by group of layers.

  Two calls of 3 and 5 seconds in layers 0 and 1, and 20 in all, leave 2 for the
  rest of each.

  Args:
    seen: (layer, seconds) in order; a layer comes once a call, or twice.
    first_msa: the first that streams go through.
    total: seconds of all calls.
    calls: how many.
  """
  passes: list[list[tuple[int, float]]] = []
  for layer, seconds in seen:
    if not passes or layer <= passes[-1][-1][0]:
      passes.append([])
    passes[-1].append((layer, seconds))
  is_twice = len(passes) > calls
  first = [one for run in passes[:: 1 + is_twice] for one in run]
  again = [one for run in passes[1::2] for one in run] if is_twice else []
  middle = lambda found: statistics.median([s for _, s in found] or [0.0])
  rest = total - sum(seconds for _, seconds in seen)
  return cost.Compute(
    middle([one for one in first if one[0] < first_msa]),
    middle([one for one in first if one[0] >= first_msa]),
    max(rest, 0.0) / calls,
    middle(again),
  )


def read_seconds(weights: weights_lib.LayerWeights) -> float:
  """Median time until a layer is on the device when nothing is computed.

  0 if all layers stay.
  """
  moving = [
    i for i in range(weights.layout.num_layers) if i not in weights.resident
  ]
  if not moving:
    return 0.0
  order = (moving * _MOST_READ)[: _MOST_READ + weights.num_buffers]
  found = []
  with weights.in_use:
    weights.expect(order)
    begin = time.perf_counter()
    for layer in order:
      taken = weights.take(layer)
      jax.block_until_ready(taken.params)
      weights.give_back(taken, ())
      found.append(time.perf_counter() - begin)
      begin = time.perf_counter()
  return statistics.median(found[weights.num_buffers :])
