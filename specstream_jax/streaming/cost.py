# SPDX-License-Identifier: Apache-2.0
"""What a call costs where weights are read, and how many drafts pay then.

A layer that is read costs the larger of its reading and its computing, as both
go on at once; one that stays costs its computing. So the call of n nodes takes

  other(n) + sum over layers of max(bytes / bandwidth, compute(n))

and nodes cost nothing until a layer's computing takes as long as its reading.
Where streams run after the pass (schedule `deferred`), layers that they go
through are read, or computed, once more.

The idea of a cost model that knows both is Lever's (arXiv 2605.16786).
"""

from collections.abc import Mapping
from typing import NamedTuple


class Compute(NamedTuple):
  """Seconds that a call of so many nodes computes.

  Attributes:
    lower: a layer below the streams' insertion.
    upper: a layer that streams go through, too.
    other: everything that is no layer: embeddings, LM head, verifying.
    again: an upper layer in the pass of streams alone; 0 if there is none.
  """

  lower: float
  upper: float
  other: float
  again: float = 0.0


class Layers(NamedTuple):
  """Where a model's layers lie.

  Attributes:
    num_layers: all of them.
    first_upper: the first that streams go through.
    resident: those that stay.
    read_seconds: of one that does not.
    buffers: of the ring; with one, reading and computing take turns.
  """

  num_layers: int
  first_upper: int
  resident: tuple[int, ...]
  read_seconds: float
  buffers: int = 2


def call_seconds(compute: Compute, layers: Layers) -> float:
  """Seconds of a call.

  Two layers that compute 3, one of them read in 10, and 1 for the rest: 14.

  Args:
    compute: of the call's nodes.
    layers: where they lie.
  """
  total = compute.other
  for i in range(layers.num_layers):
    is_upper = i >= layers.first_upper
    total += _layer(compute.upper if is_upper else compute.lower, i, layers)
    if is_upper and compute.again:
      total += _layer(compute.again, i, layers)
  return total


def _layer(seconds, index, layers):
  """One layer that computes so long."""
  if index in layers.resident:
    return seconds
  if layers.buffers < 2:
    return seconds + layers.read_seconds
  return max(seconds, layers.read_seconds)


def best(
  tokens_per_call: Mapping[str, float],
  compute: Mapping[str, Compute],
  layers: Layers,
) -> str:
  """The way of drafting with most tokens a second; the first of equals.

  Args:
    tokens_per_call: by way: schedule and nodes, or plain decoding.
    compute: of a call, by way.
    layers: where they lie.

  Raises:
    ValueError: no way is in both.
  """
  known = [way for way in compute if way in tokens_per_call]
  if not known:
    raise ValueError('nothing is known of any way of drafting; measure some')
  rate = lambda way: (
    tokens_per_call[way] / max(call_seconds(compute[way], layers), 1e-12)
  )
  return max(known, key=rate)
