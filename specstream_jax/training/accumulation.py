# SPDX-License-Identifier: Apache-2.0
"""Several batches make one update, whose gradient is that of all their rows.

A loss is a sum of means over targets, each term with its own. A batch with few
targets must not weigh as much as one with many, so (S sums, W weights, i
batches, j terms, w_i targets of a batch)

    sum_j a_j (sum_i S_ij / sum_i W_ij) = sum_i w_i L_i / sum_i w_i,
    L_i = sum_j a_j S_ij / N_ij,  N_ij = w_i sum_i W_ij / sum_i w_i.

W depends on the batches alone, so it is known before the first of them is run.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from specstream_jax import arrays

TARGETS = 'targets'


class Share(NamedTuple):
  """A batch of a group that makes one update.

  Attributes:
    batch: the batch contract, on device.
    group: weight of every term over the whole group and `TARGETS`; None where
      the batch is the group.
    is_last: whether the update follows it.
  """

  batch: dict[str, arrays.Array]
  group: dict[str, arrays.Array] | None
  is_last: bool


def shares(
  read: Callable[[], dict[str, arrays.Array]],
  weigh: Callable[..., dict[str, arrays.Array]],
  *,
  start: int,
  num_steps: int,
  every: int,
) -> Iterator[Share]:
  """The batches from step `start` on; a group is read as a whole.

  Args:
    read: the next batch.
    weigh: (batch, step) -> its weights.
    start: steps done, at the end of a group.
    num_steps: of the run; its last group may be smaller.
    every: batches of a group.
  """
  while start < num_steps:
    size = min(every, num_steps - start)
    batches = [read() for _ in range(size)]
    group = None
    if size > 1:
      found = [weigh(batch, start + i) for i, batch in enumerate(batches)]
      group = jax.tree.map(lambda *weights: sum(weights), *found)
    for i, batch in enumerate(batches):
      yield Share(batch, group, i + 1 == size)
    start += size


def targets(batch: dict[str, arrays.Array]) -> arrays.Array:
  """w_i, a float32 scalar: by how much a batch counts in its group."""
  return batch['decoder_loss_weights'].sum().astype(jnp.float32)


def norms(
  batch: dict[str, arrays.Array], group: dict[str, arrays.Array] | None
) -> dict[str, arrays.Array] | None:
  """N_ij of a batch by term; None without a group, see the module."""
  if group is None:
    return None
  weight, total = targets(batch), jnp.maximum(group[TARGETS], 1)
  scale = jnp.where(weight > 0, weight, 1) / total
  return {name: jnp.maximum(w, 1) * scale for name, w in group.items()}


class _State(NamedTuple):
  """Sums of a group so far, and the state of the optimiser."""

  num_steps: arrays.Array
  in_group: arrays.Array
  weight: arrays.Array
  gradient: Any
  inner: Any


def accumulate(
  optimizer: optax.GradientTransformation, every: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """One update after `every` gradients, and after the last of the run.

  Args:
    optimizer: gets the mean of a group's gradients by the `weight` they are
      given with, the extra argument of `update` (default 1).
    every: gradients of a group.
    num_steps: gradients of the run.
  """
  zero = lambda: jnp.zeros((), jnp.int32)

  def init(params):
    sums = optax.tree.zeros_like(params, dtype=jnp.float32)
    return _State(zero(), zero(), jnp.zeros(()), sums, optimizer.init(params))

  def update(updates, state, params=None, *, weight: Any = 1.0, **_):
    """Adds a gradient; at the end of a group, the update of their mean."""
    sums = jax.tree.map(lambda a, g: a + weight * g, state.gradient, updates)
    total, count = state.weight + weight, state.num_steps + 1

    def emit():
      mean = jax.tree.map(lambda g: g / jnp.maximum(total, 1e-9), sums)
      updates, inner = optimizer.update(mean, state.inner, params)
      empty = optax.tree.zeros_like(sums)
      return updates, _State(count, zero(), jnp.zeros(()), empty, inner)

    def wait():
      kept = _State(count, state.in_group + 1, total, sums, state.inner)
      return optax.tree.zeros_like(sums), kept

    is_last = (state.in_group + 1 == every) | (count == num_steps)
    return jax.lax.cond(is_last, emit, wait)

  return optax.GradientTransformationExtraArgs(init, update)
