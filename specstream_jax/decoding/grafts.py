# SPDX-License-Identifier: Apache-2.0
"""A chain of guesses and a tree of guesses as one tree, by probability.

Where the chain goes along a path of the tree, their nodes are one: a walk takes
the first of equal siblings, and would never see what only the other leads to.
Such a node is as likely as the surer of the two says.

  tree a(b, c), d and chain a c e  ->  a(b, c(e)), d

Axis letters: B rows, M tree nodes including the root, L tokens of a chain.
"""

import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import tree as tree_lib


def graft(
  tree: tree_lib.DraftTree, chain: arrays.Array, log_probs: arrays.Array
) -> tree_lib.DraftTree:
  """The tree with the chain below its root, M + L nodes.

  Nodes 0 to M - 1 are those of the tree; of the others, those that the tree
  has come back unused.

  Args:
    tree: with scores; no path is there twice.
    chain: [B, L] int32; -1 marks a token, and all after it, as unused.
    log_probs: [B, L] float32 of the chain up to each token, which never rises.
  """
  scores = tree.scores
  assert scores is not None
  count = tree.tokens.shape[1]
  log_probs = jnp.where(chain >= 0, log_probs, -jnp.inf)
  node = jnp.zeros(len(chain), jnp.int32)  # the tree's, where they part
  is_along = jnp.ones(len(chain), bool)
  is_draft = jnp.arange(count)[None] > 0
  parents, is_new = [], []
  for index in range(chain.shape[1]):
    token, own = chain[:, index, None], log_probs[:, index, None]
    is_same = is_draft & (tree.parents == node[:, None])
    is_same &= (tree.tokens == token) & (token >= 0) & is_along[:, None]
    scores = jnp.where(is_same, jnp.maximum(scores, own), scores)
    parents.append(jnp.where(is_along, node, count + index - 1))
    is_along = is_same.any(axis=1)
    is_new.append(~is_along)
    node = jnp.where(is_along, jnp.argmax(is_same, axis=1), node)
  is_used = jnp.stack(is_new, axis=1) & (chain >= 0)
  add = lambda x, values, unused: jnp.concatenate(
    [x, jnp.where(is_used, values, unused)], axis=1
  ).astype(x.dtype)
  depths = jnp.arange(1, chain.shape[1] + 1)[None]
  return tree_lib.DraftTree(
    add(tree.tokens, chain, -1),
    add(tree.parents, jnp.stack(parents, axis=1), 0),
    add(tree.depths, depths, 1),
    scores=add(scores, log_probs, -jnp.inf),
  )


def best(
  tree: tree_lib.DraftTree, size: int, sizes: arrays.Array | None = None
) -> tree_lib.DraftTree:
  """The tree of the root and the nodes that are likeliest.

  Args:
    tree: with scores, of at least `size` nodes.
    size: of the tree to make, the root among them.
    sizes: [B] int32, how many of them each row uses; None for all.
  """
  scores = tree.scores
  assert scores is not None
  if sizes is not None:
    drafts = tree_lib.within(scores[:, 1:], sizes - 1)
    scores = jnp.concatenate([scores[:, :1], drafts], axis=1)
  return tree_lib.likeliest(tree, scores, size)
