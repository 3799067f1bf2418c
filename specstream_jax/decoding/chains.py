# SPDX-License-Identifier: Apache-2.0
"""Guessed continuations of the root as one tree.

Axis letters: B rows, C chains, L tokens of a chain, M tree nodes including the
root.
"""

import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays
from specstream_jax.decoding import tree as tree_lib


def from_chains(root: arrays.Array, chains: arrays.Array) -> tree_lib.DraftTree:
  """A tree of C chains below the root, M = 1 + C * L.

  Token l of chain c is node 1 + c * L + l, whichever chains there are.

  Args:
    root: [B] int32 last emitted token.
    chains: [B, C, L] int32; -1 marks a token, and all after it, as unused.
  """
  batch, num_chains, length = chains.shape
  drafts = chains.reshape(batch, -1)
  index = np.arange(num_chains * length)
  depths = index % length + 1
  parents = np.where(depths == 1, 0, index)  # node 1 + index - 1
  is_used = drafts >= 0
  first = lambda x, value: jnp.concatenate([value[:, None], x], axis=1).astype(
    jnp.int32
  )
  zeros = jnp.zeros_like(root)
  return tree_lib.DraftTree(
    first(jnp.where(is_used, drafts, -1), root),
    first(jnp.where(is_used, parents[None], 0), zeros),
    first(jnp.where(is_used, depths[None], 1), zeros),
  )


def share_prefixes(
  tree: tree_lib.DraftTree, *, max_depth: int
) -> tree_lib.DraftTree:
  """Hangs the children of equal siblings below the first of them.

  A walk takes the first of equal siblings and would never see what only the
  second one leads to. The others stay, without children; what the target says
  of a node depends on the path alone, so it stays the same.

    a b c, a d e, x  ->  a(b(c), d(e)), a, x

  Args:
    tree: M nodes.
    max_depth: depth of the deepest node.
  """
  batch, num_nodes = tree.tokens.shape
  first = jnp.broadcast_to(jnp.arange(num_nodes)[None], (batch, num_nodes))
  parents = tree.parents
  # After d rounds the first of equal nodes is known down to depth d.
  for _ in range(max_depth - 1):
    same = jnp.ones((batch, num_nodes, num_nodes), bool)
    for field in (tree.tokens, parents, tree.depths):
      same &= field[:, :, None] == field[:, None]
    first = jnp.argmax(same, axis=2)
    parents = jnp.take_along_axis(first, tree.parents, axis=1)
  return tree_lib.DraftTree(tree.tokens, parents.astype(jnp.int32), tree.depths)
