# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: temperature, truncation, position-keyed noise.

The token at absolute position t of a row is
`argmax(processed logits + gumbel(fold_in(row_key, t)))`, so it does not depend
on how many tokens a call verifies nor on the other rows (paper, section 3,
"Sampling"). Everything here is float32.

Settings are arrays, one number a row, so that new ones compile nothing. None in
their place is greedy decoding alone, compiled without anything of the rest.

Axis letters: B rows, M tree nodes, P path length, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config, partitioning

# Beyond any position: no token of a row is drawn with these.
DRAFT_NOISE, ACCEPT_NOISE = 2**32 - 1, 2**32 - 2
# Colder ones would overflow, and draw the same: the best token or one of equals.
COLDEST = 2.0**-100
# Up to so many top tokens are selected; beyond, their threshold is searched for.
_NARROW = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSettings:
  """How each row's tokens are drawn, see `config.SamplingConfig`.

  One row stands for any number of them.

  Attributes:
    temperature: [B] float32; 0 is greedy.
    top_k: [B] int32; 0 is off.
    top_p: [B] float32; 1 is off.
    min_p: [B] float32; 0 is off.
  """

  temperature: arrays.Array
  top_k: arrays.Array
  top_p: arrays.Array
  min_p: arrays.Array


def row_settings(cfgs: Sequence[config.SamplingConfig]) -> RowSettings:
  """The settings of each row as arrays of numpy."""
  pick = lambda name, dtype: np.array([getattr(c, name) for c in cfgs], dtype)
  temperature = pick('temperature', np.float64)
  on_host: Any = (
    np.where(temperature > 0, np.maximum(temperature, COLDEST), 0.0).astype(
      np.float32
    ),
    pick('top_k', np.int32),
    # A share that float32 rounds to 0 would keep no token at all.
    np.maximum(pick('top_p', np.float64), COLDEST).astype(np.float32),
    pick('min_p', np.float32),
  )
  return RowSettings(*on_host)


def row_keys(seed: int, row_ids: Sequence[int]) -> arrays.Array:
  """One key [B] per row, from the seed and the row's own id.

  A row draws the same tokens whatever batch it is in, if it keeps its id.
  """
  ids = jnp.asarray(row_ids, jnp.uint32)
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids)


def top_k(scores: arrays.Array, k: int) -> tuple[arrays.Array, arrays.Array]:
  """`jax.lax.top_k`, kept whole: (values, int32 indices), both [..., k].

  Without the barrier XLA moves a slice of the result into the selection, no
  longer recognises it, and sorts all of V instead (14 ms for 4 x 49152 on two
  CPU cores, against 0.3).
  """
  ways = partitioning.num_shards('vocab', scores.shape[-1])
  if ways == 1 or k > scores.shape[-1] // ways:
    return jax.lax.optimization_barrier(jax.lax.top_k(scores, k))
  # Each shard of a split vocabulary selects; k * shards values travel, not V.
  parts = scores.reshape(*scores.shape[:-1], ways, -1)
  values, own = jax.lax.top_k(parts, k)
  first = parts.shape[-1] * jnp.arange(ways, dtype=own.dtype)
  tokens = own + jnp.expand_dims(first, (*tuple(range(own.ndim - 2)), -1))
  flat = lambda x: x.reshape(*scores.shape[:-1], -1)
  values, best = jax.lax.top_k(flat(values), k)
  tokens = jnp.take_along_axis(flat(tokens), best, axis=-1)
  return jax.lax.optimization_barrier((values, tokens))


def process_logits(
  logits: arrays.Array, settings: RowSettings | None
) -> arrays.Array:
  """Temperature, then top-k, top-p among what is left, then min-p.

  Ties with the smallest surviving logit survive, and top-p counts those that
  top-k left. The order is that of transformers.

  Args:
    logits: [B, ..., V].
    settings: of the rows. None returns the logits as they are, with which rows
      at temperature 0 have the arg max in common.

  Returns:
    float32 [B, ..., V], -inf where masked.
  """
  logits = logits.astype(jnp.float32)
  if settings is None:
    return logits
  is_whole = (settings.top_k == 0) & (settings.top_p == 1.0)
  is_whole &= settings.min_p == 0.0
  # Only the threshold leaves the branch: nothing of [B, ..., V] is copied.
  smallest = jax.lax.cond(
    is_whole.all(),
    lambda logits: jnp.full((*logits.shape[:-1], 1), -jnp.inf),
    lambda logits: _smallest_kept(_tempered(logits, settings), settings),
    logits,
  )
  scores = _tempered(logits, settings)
  # Not `>=`: what is not a number stays, to be told.
  return jnp.where(scores < smallest, -jnp.inf, scores)


def _tempered(logits, settings):
  """Logits [B, ..., V] over the temperature, 1 where that is 0."""
  temperature = _per_row(settings.temperature, logits)
  return logits / jnp.where(temperature > 0, temperature, 1.0)


def _per_row(x, like):
  """x [B] as [B, 1, ...], to go with `like`."""
  return x.reshape(-1, *[1] * (like.ndim - 1))


def _smallest_kept(scores, settings):
  """Smallest score [B, ..., 1] that top-k, top-p and min-p leave."""
  k, p = _per_row(settings.top_k, scores), _per_row(settings.top_p, scores)
  # What a row keeps must not depend on what others ask for: each has its way.
  is_narrow = (k > 0) & (k <= _NARROW)
  is_wide = (k > _NARROW) | ((k == 0) & (p < 1.0))
  all_of_them = jnp.full((*scores.shape[:-1], 1), -jnp.inf)
  search = lambda is_used, way: jax.lax.cond(
    is_used.any(), lambda: way(scores, k, p), lambda: all_of_them
  )
  narrow = search(is_narrow, _smallest_of_few)
  wide = search(is_wide, _smallest_of_many)
  smallest = jnp.where(is_narrow, narrow, jnp.where(is_wide, wide, -jnp.inf))
  best = scores.max(axis=-1, keepdims=True)
  share = jnp.log(_per_row(settings.min_p, scores))
  return jnp.maximum(smallest, best + share)


def _smallest_of_few(scores, k, p):
  """Smallest score [B, ..., 1] that is kept, by selection; k up to `_NARROW`."""
  top, _ = top_k(scores, min(_NARROW, scores.shape[-1]))
  rank = jax.lax.broadcasted_iota(jnp.int32, top.shape, top.ndim - 1)
  last = jnp.where(rank < k, top, jnp.inf).min(axis=-1, keepdims=True)
  weigh = lambda x: jnp.exp(x - top[..., :1])
  weights = jnp.where(top > last, weigh(top), 0.0)
  # All that equal the last one count, those beyond the selection too.
  num_last = (scores == last).sum(axis=-1, keepdims=True)
  total = weights.sum(axis=-1, keepdims=True) + num_last * weigh(last)
  before = jnp.cumsum(weights, axis=-1) - weights
  is_kept = (rank < k) & ((before < p * total) | (p == 1.0) | (rank == 0))
  return jnp.where(is_kept, top, jnp.inf).min(axis=-1, keepdims=True)


def _smallest_of_many(scores, k, p):
  """The same for any k, without a sort: of V that costs ten times as much."""
  bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
  is_negative = bits > 0x7FFFFFFF
  # Whole numbers in the order of the scores, the best one first.
  order = jnp.where(is_negative, bits, 0x7FFFFFFF - bits)
  limit = jnp.where(k == 0, scores.shape[-1], k)
  last = _last_kept(order, jnp.ones_like(order, jnp.int32), limit)
  probs = jax.nn.softmax(jnp.where(order > last, -jnp.inf, scores), axis=-1)
  nucleus = _last_kept(order, probs, jnp.where(p == 1.0, jnp.inf, p))
  is_kept = order <= jnp.minimum(last, nucleus)
  return jnp.where(is_kept, scores, jnp.inf).min(axis=-1, keepdims=True)


def _last_kept(order, weights, limit):
  """Largest t for which what comes before it weighs less than `limit`.

  It is found bit by bit.

  Args:
    order: [B, ..., V] uint32.
    weights: [B, ..., V].
    limit: [B, ..., 1], above 0.
  """

  def try_bit(i, last):
    longer = last | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    weight = jnp.where(order < longer, weights, 0).sum(axis=-1, keepdims=True)
    return jnp.where(weight < limit, longer, last)

  start = jnp.zeros((*order.shape[:-1], 1), jnp.uint32)
  return jax.lax.fori_loop(0, 32, try_bit, start)


def gumbel(
  keys: arrays.Array, positions: arrays.Array, vocab_size: int
) -> arrays.Array:
  """Noise float32 [B, P, V] of the tokens at `positions` [B, P] of each row."""

  def noise(key, position):
    key = jax.random.fold_in(key, position)
    return jax.random.gumbel(key, (vocab_size,), jnp.float32)

  return jax.vmap(jax.vmap(noise, (None, 0)))(keys, positions)


def row_noise(
  keys: arrays.Array,
  positions: arrays.Array,
  vocab_size: int,
  settings: RowSettings | None,
) -> arrays.Array:
  """`gumbel` for rows that draw at random, 0 for greedy ones."""
  nothing = jnp.zeros((*positions.shape, vocab_size))
  if settings is None:
    return nothing
  is_random = settings.temperature > 0
  return jax.lax.cond(
    is_random.any(),
    lambda: jnp.where(
      is_random[:, None, None], gumbel(keys, positions, vocab_size), 0.0
    ),
    lambda: nothing,
  )


def perturb(
  logits: arrays.Array,
  keys: arrays.Array,
  positions: arrays.Array,
  settings: RowSettings | None,
  noise_weight: float = 1.0,
) -> arrays.Array:
  """Scores whose arg max is the drawn token, float32 [B, M, V].

  Args:
    logits: [B, M, V].
    keys: [B] row keys.
    positions: [B, M] int32, absolute position of the token to draw.
    settings: of the rows; greedy ones need no noise.
    noise_weight: factor of the noise; other than 1, the arg max is a guess.
  """
  scores = process_logits(logits, settings)
  if settings is None or not noise_weight:
    return scores
  noise = row_noise(keys, positions, logits.shape[-1], settings)
  return scores + noise_weight * noise


def draw(
  logits: arrays.Array,
  keys: arrays.Array,
  positions: arrays.Array,
  settings: RowSettings | None,
) -> arrays.Array:
  """Tokens int32 [B, M]; arguments as in `perturb`."""
  scores = perturb(logits, keys, positions, settings)
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def draw_nodes(
  logits: arrays.Array,
  keys: arrays.Array,
  root_positions: arrays.Array,
  depths: arrays.Array,
  settings: RowSettings | None,
  *,
  path_length: int,
) -> arrays.Array:
  """`draw` for the nodes of a tree, with the noise made once per depth.

  Args:
    logits: [B, M, V].
    keys: [B] row keys.
    root_positions: [B] int32, position of the token drawn at the root.
    depths: [B, M] int32, below `path_length`.
    settings: of the rows.
    path_length: P.

  Returns:
    int32 [B, M], the token the target draws at each node.
  """
  scores = process_logits(logits, settings)
  if settings is not None:
    positions = root_positions[:, None] + jnp.arange(path_length)[None]
    noise = row_noise(keys, positions, logits.shape[-1], settings)
    scores += jnp.take_along_axis(noise, depths[..., None], axis=1)
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def call_keys(
  keys: arrays.Array, root_positions: arrays.Array, purpose: int
) -> arrays.Array:
  """Keys [B] of one call of each row, for `DRAFT_NOISE` or `ACCEPT_NOISE`.

  They are independent of the target's position-keyed noise and of each other.
  The position is the root's, which no two calls of a row share: drafts of the
  same token by two calls are independent, whatever the first call revealed.

  Args:
    keys: [B] row keys.
    root_positions: [B] int32, position of the token to draw at the root.
    purpose: what the noise is for.
  """

  def fold(key, position):
    return jax.random.fold_in(jax.random.fold_in(key, purpose), position)

  return jax.vmap(fold)(keys, root_positions)


def law(logits: arrays.Array, settings: RowSettings | None) -> arrays.Array:
  """Probabilities float32 [B, ..., V] of the token that `draw` draws."""
  scores = process_logits(logits, settings)
  best = jax.nn.one_hot(jnp.argmax(scores, axis=-1), logits.shape[-1])
  if settings is None:
    return best
  is_random = _per_row(settings.temperature, logits) > 0
  return jnp.where(is_random, jax.nn.softmax(scores, axis=-1), best)
