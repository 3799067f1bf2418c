# SPDX-License-Identifier: Apache-2.0
"""How well tokens follow each other, from a hash table of n-grams on device.

Streams predict each depth on its own, so a joint candidate may be made of
tokens that do not go together (DART, arXiv 2601.19278, prunes those with an
n-gram trie). Here the score of a node is

  score(parent) + log P_stream(token) + weight * log S(token)
  S(c) = max(floor, P(c | g, p) if the table has it, else backoff * P(c | p))

with g and p the tokens of grandparent and parent: "stupid backoff" (Brants et
al. 2007) that ends in a floor. S <= 1, so no child outscores its parent. Only
the choice of nodes changes, never the output.

The table is made of buckets. An n-gram hashes to one bucket and is told from
its neighbours there by a second hash. Axis letters: B rows, W parents, k
candidates, H buckets, E entries per bucket.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import interface, tree as tree_lib

BUCKET_SIZE = 8
BACKOFF, FLOOR = 0.4, 0.001
NOTHING = -1  # in the grandparent's place: a bigram
EMPTY = 0  # check of an entry that is not used
_BUCKET_SEED, _CHECK_SEED = np.uint32(0x243F6A88), np.uint32(0x85A308D3)
_FACTORS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NgramTable:
  """Conditional probabilities of bigrams and trigrams.

  Attributes:
    checks: [H, E] uint32 second hash of an n-gram, `EMPTY` if unused; H is a
      power of two.
    probs: [H, E] float16 probability of its last token after the others.
  """

  checks: arrays.Array | np.ndarray
  probs: arrays.Array | np.ndarray


def hashes(grandparent: Any, parent: Any, token: Any) -> tuple[Any, Any]:
  """Where an n-gram goes and how it is told apart, two uint32 arrays.

  Args:
    grandparent: int32 array of numpy or JAX; `NOTHING` for bigrams.
    parent: int32, of a shape that broadcasts with the others.
    token: int32, likewise.
  """
  parts = [x.astype(np.uint32) for x in (grandparent, parent, token)]
  place, check = parts[0] ^ _BUCKET_SEED, parts[0] ^ _CHECK_SEED
  for part in parts[1:]:
    place, check = _mix(place) + part, _mix(check) + part
  check = _mix(check)
  return _mix(place), check + (check == EMPTY)


def _mix(x):
  """A bijection of uint32 in which every bit moves every other."""
  x = (x ^ (x >> np.uint32(16))) * _FACTORS[0]
  x = (x ^ (x >> np.uint32(15))) * _FACTORS[1]
  return x ^ (x >> np.uint32(16))


def lookup(
  table: NgramTable,
  grandparent: arrays.Array,
  parent: arrays.Array,
  token: arrays.Array,
) -> arrays.Array:
  """Probabilities float32 of n-grams; 0 for those the table lacks."""
  place, check = hashes(grandparent, parent, token)
  bucket = place & np.uint32(table.checks.shape[0] - 1)
  is_it = table.checks[bucket] == check[..., None]
  found = jnp.where(is_it, table.probs[bucket], 0)
  return found.astype(jnp.float32).max(axis=-1)


def edge_scores(table: NgramTable, weight: float) -> tree_lib.EdgeScores:
  """`weight * log S` for `tree.from_stream_logits`."""

  def score(depth, grandparents, parents, candidates, log_probs):
    del depth, log_probs
    nodes = (grandparents[..., None], parents[..., None])  # [B, W, 1]
    tokens = candidates[:, None]  # [B, 1, k]
    trigram = lookup(table, *nodes, tokens)
    bigram = lookup(table, jnp.full_like(nodes[0], NOTHING), nodes[1], tokens)
    best = jnp.where(trigram > 0, trigram, BACKOFF * bigram)
    return weight * jnp.log(jnp.maximum(best, FLOOR))

  return score


def last_of(prompts: arrays.Array, lengths: arrays.Array) -> arrays.Array:
  """The last token [B] of each prompt [B, T]."""
  return jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]


def before_root(
  context: interface.DraftContext, last_of_prompt: arrays.Array
) -> arrays.Array:
  """The token [B] before the root, which may be the prompt's last."""
  index = jnp.maximum(context.num_tokens - 2, 0)[:, None]
  token = jnp.take_along_axis(context.tokens, index, axis=1)[:, 0]
  return jnp.where(context.num_tokens >= 2, token, last_of_prompt)


def is_used(options: config_drafting.DrafterConfig) -> bool:
  """Whether the settings ask for scores of an n-gram table."""
  return bool(options.ngram_table) and options.ngram_weight > 0


def check(
  options: config_drafting.DrafterConfig, tree: config.TreeConfig
) -> None:
  """Raises ValueError if an n-gram table does not go with the settings."""
  if not options.ngram_table:
    return
  checks.check(
    options.drafting == 'top_k',
    f'drafting {options.drafting!r} cannot use an n-gram table; leave '
    "ngram_table out, or draft 'top_k'",
  )
  checks.check(
    tree.kind == 'best_first',
    f'an n-gram table re-weights best_first trees but the tree is of kind '
    f'{tree.kind!r}; use kind=best_first, or leave ngram_table out',
  )
  checks.at_least('DrafterConfig.ngram_weight', options.ngram_weight, 0.0)
