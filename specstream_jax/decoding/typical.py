# SPDX-License-Identifier: Apache-2.0
"""Typical acceptance (Medusa, arXiv 2401.10774, section 2.3.2): lossy.

A draft is taken if the target gives it more than
min(epsilon, delta * exp(-entropy)), whatever else the target might have drawn.
The output does not follow the target's law; at temperature 0 it is the greedy
one all the same.

Paper: thresholds on the law at the sampling temperature, the root's token
greedy. Here: the law after top-k and top-p as well, and the bonus token drawn
from it, because that is what plain decoding draws from.

Axis letters: B rows, M' surviving nodes, P path length, V vocabulary.
"""

import jax
import jax.numpy as jnp

from specstream_jax import arrays, sampling
from specstream_jax.decoding import (
  interface,
  rejection,
  tree as tree_lib,
  verify,
)


def typical(
  verification: interface.Verification,
  settings: sampling.RowSettings | None,
  path_length: int,
  *,
  epsilon: float,
  delta: float,
) -> verify.Verified:
  """The longest path of typical tokens; of equally long, the most probable.

  Args:
    verification: any tree.
    settings: how the target draws.
    path_length: P.
    epsilon: a probability above it is always typical.
    delta: factor of the threshold that falls with the entropy.
  """
  tree = verify.surviving_tree(verification)
  target_probs = sampling.law(verification.logits, settings)
  probs, is_typical = _judge(tree, target_probs, epsilon, delta)
  mask = tree_lib.ancestor_mask(tree.parents)
  is_reached = jnp.all(is_typical[:, None] | ~mask, axis=-1)
  length = jnp.where(is_reached, tree.depths, 0).max(axis=1)
  scores = tree_lib.path_scores(
    tree, jnp.log(probs), max_depth=max(path_length - 1, 1)
  )
  is_longest = is_reached & (tree.depths == length[:, None])
  leaf = jnp.argmax(jnp.where(is_longest, scores, -jnp.inf), axis=1)
  logits = verification.logits[jnp.arange(leaf.shape[0]), leaf]
  positions = verification.root_positions + length
  bonus = sampling.draw(
    logits[:, None], verification.row_keys, positions[:, None], settings
  )[:, 0]
  return rejection.verified_at(verification, leaf, length, bonus, path_length)


def _judge(
  tree: tree_lib.DraftTree,
  target_probs: arrays.Array,
  epsilon: float,
  delta: float,
) -> tuple[arrays.Array, arrays.Array]:
  """Probability [B, M'] of each node given its parent, and if it is typical."""
  entropy = jax.scipy.special.entr(target_probs).sum(axis=-1)
  threshold = jnp.minimum(epsilon, delta * jnp.exp(-entropy))
  threshold = jnp.take_along_axis(threshold, tree.parents, axis=1)
  rows = jnp.arange(tree.tokens.shape[0])[:, None]
  probs = target_probs[rows, tree.parents, jnp.maximum(tree.tokens, 0)]
  is_root = tree.depths == 0
  is_typical = is_root | ((probs > threshold) & (tree.tokens >= 0))
  return probs, is_typical
