# SPDX-License-Identifier: Apache-2.0
"""Verification: draw from the target, walk on while a child matches.

Paper, section 3, "Sampling", first rule: exact for every tree, every pruning
and every temperature; with arg max as the draw it is greedy verification.

Axis letters: B rows, M tree nodes, P path length.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from specstream_jax import arrays, sampling
from specstream_jax.decoding import tree as tree_lib


class Verified(NamedTuple):
  """The accepted path of each row.

  Attributes:
    path: [B, P] int32 node indices from the root down; beyond accept_length
      it repeats the leaf.
    accept_length: [B] int32 accepted draft tokens, bonus excluded.
    leaf: [B] int32 node index of the last accepted token (0: the root).
    bonus: [B] int32 token drawn at the leaf, the next root.
    draws: [B, M] int32 token the target drew at each node, from rules that
      draw before they compare.
  """

  path: arrays.Array
  accept_length: arrays.Array
  leaf: arrays.Array
  bonus: arrays.Array
  draws: arrays.Array | None = None


def emitted(tree: tree_lib.DraftTree, verified: Verified) -> arrays.Array:
  """Tokens int32 [B, P] of a call: the accepted ones, then the bonus."""
  accepted = jnp.take_along_axis(tree.tokens, verified.path, axis=1)
  accepted = jnp.roll(accepted, -1, axis=1)  # path[0] is the old root
  index = jnp.arange(accepted.shape[1])[None]
  is_accepted = index < verified.accept_length[:, None]
  return jnp.where(is_accepted, accepted, verified.bonus[:, None])


def verify(
  tree: tree_lib.DraftTree, target_tokens: arrays.Array, *, path_length: int
) -> Verified:
  """Walks from the root to the deepest node the target agrees with.

  Of equal siblings the first is taken.

  Args:
    tree: the drafts.
    target_tokens: [B, M] int32, the token the target draws at each node.
    path_length: P, static; the walk takes at most P - 1 steps.
  """
  rows = jnp.arange(target_tokens.shape[0])
  nodes = jnp.arange(target_tokens.shape[1])
  leaf, path = jnp.zeros_like(rows), [jnp.zeros_like(rows)]
  accept_length = jnp.zeros_like(rows)
  for _ in range(path_length - 1):
    wanted = target_tokens[rows, leaf]
    is_child = (tree.parents == leaf[:, None]) & (nodes > 0)[None]
    matches = is_child & (tree.tokens == wanted[:, None])
    is_found = matches.any(axis=1)
    leaf = jnp.where(is_found, jnp.argmax(matches, axis=1), leaf)
    accept_length += is_found
    path.append(leaf)
  return Verified(
    jnp.stack(path, axis=1),
    accept_length,
    leaf,
    target_tokens[rows, leaf],
    target_tokens,
  )


def walk(
  verification: Any,
  settings: sampling.RowSettings | None,
  path_length: int,
) -> Verified:
  """The default rule: draw with position-keyed noise, then `verify`.

  Args:
    verification: an `interface.Verification`.
    settings: how the target draws.
    path_length: P.
  """
  tree = surviving_tree(verification)
  draws = sampling.draw_nodes(
    verification.logits,
    verification.row_keys,
    verification.root_positions,
    tree.depths,
    settings,
    path_length=path_length,
  )
  return verify(tree, draws, path_length=path_length)


def surviving_tree(verification: Any) -> tree_lib.DraftTree:
  """The tree whose nodes have logits."""
  if verification.survivors is None:
    return verification.tree
  return tree_lib.restrict(verification.tree, verification.survivors)
