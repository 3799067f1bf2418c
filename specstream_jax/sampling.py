# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: temperature, top-k, top-p, position-keyed noise.

The token at absolute position t of a row is
`argmax(processed logits + gumbel(fold_in(row_key, t)))`, so it does not depend
on how many tokens a call verifies nor on the other rows (paper, section 3,
"Sampling"). Everything here is float32.

Axis letters: B rows, M tree nodes, P path length, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from specstream_jax import config, partitioning, typing

# Beyond any position: no token of a row is drawn with these.
DRAFT_NOISE, ACCEPT_NOISE = 2**32 - 1, 2**32 - 2


def row_keys(seed: int, row_ids: Sequence[int]) -> typing.Array:
  """One key [B] per row, from the seed and the row's own id.

  A row draws the same tokens whatever batch it is in, if it keeps its id.
  """
  ids = jnp.asarray(row_ids, jnp.uint32)
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids)


def top_k(scores: typing.Array, k: int) -> tuple[typing.Array, typing.Array]:
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
  tokens = own + parts.shape[-1] * jnp.arange(ways, dtype=own.dtype)[:, None]
  flat = lambda x: x.reshape(*scores.shape[:-1], -1)
  values, best = jax.lax.top_k(flat(values), k)
  tokens = jnp.take_along_axis(flat(tokens), best, axis=-1)
  return jax.lax.optimization_barrier((values, tokens))


def process_logits(
  logits: typing.Array, cfg: config.SamplingConfig
) -> typing.Array:
  """Temperature, then top-k, then top-p among what is left.

  Ties with the smallest surviving logit survive.

  Args:
    logits: [..., V].
    cfg: temperature 0 returns the logits unmasked: arg max needs no mask.

  Returns:
    float32 [..., V], -inf where masked.
  """
  logits = logits.astype(jnp.float32)
  if not cfg.temperature:
    return logits
  logits = logits / cfg.temperature
  if not cfg.top_k and cfg.top_p == 1.0:
    return logits
  vocab_size = logits.shape[-1]
  top, _ = top_k(logits, min(cfg.top_k or vocab_size, vocab_size))
  probs = jax.nn.softmax(top, axis=-1)
  before = jnp.cumsum(probs, axis=-1) - probs
  in_nucleus = (before < cfg.top_p).at[..., 0].set(True)
  smallest = jnp.where(in_nucleus, top, jnp.inf).min(axis=-1, keepdims=True)
  return jnp.where(logits >= smallest, logits, -jnp.inf)


def gumbel(
  keys: typing.Array, positions: typing.Array, vocab_size: int
) -> typing.Array:
  """Noise float32 [B, P, V] of the tokens at `positions` [B, P] of each row."""

  def noise(key, position):
    key = jax.random.fold_in(key, position)
    return jax.random.gumbel(key, (vocab_size,), jnp.float32)

  return jax.vmap(jax.vmap(noise, (None, 0)))(keys, positions)


def perturb(
  logits: typing.Array,
  keys: typing.Array,
  positions: typing.Array,
  cfg: config.SamplingConfig,
  noise_weight: float = 1.0,
) -> typing.Array:
  """Scores whose arg max is the drawn token, float32 [B, M, V].

  Args:
    logits: [B, M, V].
    keys: [B] row keys.
    positions: [B, M] int32, absolute position of the token to draw.
    cfg: greedy needs no noise.
    noise_weight: factor of the noise; other than 1, the arg max is a guess.
  """
  scores = process_logits(logits, cfg)
  if cfg.temperature and noise_weight:
    noise = gumbel(keys, positions, logits.shape[-1])
    scores += noise_weight * noise
  return scores


def draw(
  logits: typing.Array,
  keys: typing.Array,
  positions: typing.Array,
  cfg: config.SamplingConfig,
) -> typing.Array:
  """Tokens int32 [B, M]; arguments as in `perturb`."""
  scores = perturb(logits, keys, positions, cfg)
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def draw_nodes(
  logits: typing.Array,
  keys: typing.Array,
  root_positions: typing.Array,
  depths: typing.Array,
  cfg: config.SamplingConfig,
  *,
  path_length: int,
) -> typing.Array:
  """`draw` for the nodes of a tree, with the noise made once per depth.

  Args:
    logits: [B, M, V].
    keys: [B] row keys.
    root_positions: [B] int32, position of the token drawn at the root.
    depths: [B, M] int32, below `path_length`.
    cfg: how to draw.
    path_length: P.

  Returns:
    int32 [B, M], the token the target draws at each node.
  """
  scores = process_logits(logits, cfg)
  if cfg.temperature:
    positions = root_positions[:, None] + jnp.arange(path_length)[None]
    noise = gumbel(keys, positions, logits.shape[-1])
    scores += jnp.take_along_axis(noise, depths[..., None], axis=1)
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def call_keys(
  keys: typing.Array, root_positions: typing.Array, purpose: int
) -> typing.Array:
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


def law(logits: typing.Array, cfg: config.SamplingConfig) -> typing.Array:
  """Probabilities float32 [..., V] of the token that `draw` draws."""
  scores = process_logits(logits, cfg)
  if cfg.temperature:
    return jax.nn.softmax(scores, axis=-1)
  return jax.nn.one_hot(jnp.argmax(scores, axis=-1), logits.shape[-1])
