# SPDX-License-Identifier: Apache-2.0
"""Terms of the streams' loss, each a number per token.

    stream           -log p(y)                      cross-entropy
    teacher          -sum_v m(v) log p(v)           KL to m, and a constant
    total_variation  sum_v |m(v) - p(v)| / 2        drafts of p that m refuses
    hidden           |h - s|^2 / |s|^2              of states, not of laws

y is the token, p the law of what learns and h its normalised state; m and s are
those of the main stream where it predicts the same token, without gradient.
`ObjectiveConfig.stream_terms` says how much of each is in the loss.

Axis letters: B rows, V vocabulary, D model width, R = any number of rows of the
LM head product.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, partitioning


class TokenLoss(NamedTuple):
  """Per-row result of the vocabulary softmax.

  Attributes:
    nll: float32 [R], -log p(target).
    rank: int32 [R], how many tokens outscore the target; 0 = top-1 hit.
    teacher: float32 [R], cross-entropy with the teacher's law; None without a
      teacher.
    total_variation: float32 [R], to the teacher's law; None without.
  """

  nll: arrays.Array
  rank: arrays.Array
  teacher: arrays.Array | None = None
  total_variation: arrays.Array | None = None


def token_loss(
  model: Any,
  hidden: arrays.Array,
  targets: arrays.Array,
  chunk_size: int,
  teacher: arrays.Array | None = None,
) -> TokenLoss:
  """Losses over V, `chunk_size` rows of it at a time.

  The logits of a chunk are recomputed in the backward pass, so that at most
  chunk_size * V of them, and of the teacher's, exist at once on a device.

  Args:
    model: merged module, for its LM head.
    hidden: [..., D] normalised hidden states.
    targets: int32 [...].
    chunk_size: static.
    teacher: [..., D] those whose law is another target, without gradient.

  Returns:
    Losses shaped like `targets`.
  """

  @jax.checkpoint
  def chunk(hidden, targets, *teacher):
    """Losses of the rows [B, c] of a chunk."""
    logits = model.logits(hidden)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = total - target[..., 0]
    rank = jnp.sum(logits > target, axis=-1, dtype=jnp.int32)
    if not teacher:
      return TokenLoss(nll, rank)
    law = jax.lax.stop_gradient(jax.nn.softmax(model.logits(*teacher), axis=-1))
    own = logits - total[..., None]
    return TokenLoss(
      nll,
      rank,
      -jnp.sum(law * own, axis=-1),
      jnp.sum(jnp.abs(law - jnp.exp(own)), axis=-1) / 2,
    )

  inputs = hidden, targets
  if teacher is not None:
    inputs += (jax.lax.stop_gradient(teacher),)
  return by_chunks(chunk, inputs, targets.shape, chunk_size)


def hidden_error(hidden: arrays.Array, teacher: arrays.Array) -> arrays.Array:
  """Squared distance of states over the teacher's square, float32 [...].

  0 where they agree and 1 for a state of zeros, whatever the scale of the final
  norm, which differs between models by orders of magnitude.

  Args:
    hidden: [..., D] normalised hidden states.
    teacher: [..., D] those to be met; no gradient.
  """
  teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
  distance = jnp.sum((hidden.astype(jnp.float32) - teacher) ** 2, axis=-1)
  return distance / jnp.maximum(jnp.sum(teacher**2, axis=-1), 1e-12)


def by_chunks(
  fun: Callable[..., Any],
  inputs: tuple[arrays.Array, ...],
  shape: tuple[int, ...],
  chunk_size: int,
) -> Any:
  """fun over `inputs` [B, ..., *rest], `chunk_size` rows a device at a time.

  A chunk takes as many from each row of the batch, so that a batch that is
  split over devices stays where it is. Chunks are per device, for each of them
  gathers the head once more where that is split.

  Args:
    fun: [B, c, *rest] of each array -> tree of [B, c].
    inputs: leading axes as in `shape`.
    shape: (B, ...) of the result.
    chunk_size: most of B * c on a device, and c is at least 1.
  """
  batch, count = shape[0], math.prod(shape[1:])
  ways = partitioning.num_shards('batch', batch)
  size = min(max(chunk_size * ways // batch, 1), count)
  pad = -count % size

  def split(x):
    x = x.reshape(batch, count, *x.shape[len(shape) :])
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

  parts = tuple(map(split, inputs))
  keep = lambda x: partitioning.constrain(
    x, None, 'batch', *(None,) * (x.ndim - 2)
  )
  result = jax.lax.map(lambda xs: fun(*xs), jax.tree.map(keep, parts))
  join = lambda y: y.swapaxes(0, 1).reshape(batch, -1)[:, :count].reshape(shape)
  return jax.tree.map(join, result)
