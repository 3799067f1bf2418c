# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a draft tree carry streams in the pass that verifies it.

Streams are read at the leaf alone, the node where the accepted path ends. How
likely a node is to be that one follows from the drafts' own probabilities:
that of its path, less those of its children's paths.

Axis letters: B rows, M tree nodes, C nodes that carry streams, J streams,
D model width.
"""

from typing import NamedTuple

import jax.numpy as jnp

from specstream_jax import arrays


class Carried(NamedTuple):
  """What a pass leaves of its nodes [B, M] for the streams of one of them.

  Attributes:
    insertion: [B, M, D] main-stream states at the insertion.
    streams: [B, M, J, D] normalised; nothing meaningful where not known.
    is_known: [B, M] bool, nodes that carried streams.
  """

  insertion: arrays.Array
  streams: arrays.Array
  is_known: arrays.Array


def leaf_probabilities(
  scores: arrays.Array, tree_mask: arrays.Array, positions: arrays.Array
) -> arrays.Array:
  """Chance float32 [B, M] that the accepted path ends at each node.

  A root with children of 0.5 and 0.2, the first with a child of 0.4 (joint
  0.2): 0.3, 0.3, 0.2, 0.2.

  Args:
    scores: [B, M] float32 joint log-probabilities, -inf for unused nodes.
    tree_mask: [B, M, M] bool, see `tree.ancestor_mask`.
    positions: [B, M] int32, or depths.
  """
  own = jnp.exp(scores)
  is_parent = tree_mask & (positions[:, None] == positions[..., None] - 1)
  # Scores that are no log-probabilities may give children more than their
  # parent.
  of_children = jnp.where(is_parent, own[..., None], 0.0).sum(axis=1)
  return jnp.maximum(own - of_children, 0.0)


def choose(probabilities: arrays.Array, count: int) -> arrays.Array:
  """The `count` likeliest nodes, int32 [B, C]; all M if there are fewer."""
  # A sort: M is small, and NaN must not come first.
  key = jnp.where(jnp.isnan(probabilities), 0.0, probabilities)
  return jnp.argsort(-key, axis=1, stable=True)[:, :count]


def spread(
  insertion: arrays.Array, streams: arrays.Array, nodes: arrays.Array
) -> Carried:
  """Streams [B, C, J, D] of nodes [B, C], by node."""
  is_node = nodes[:, None] == jnp.arange(insertion.shape[1])[None, :, None]
  place = jnp.argmax(is_node, axis=-1)
  by_node = jnp.take_along_axis(streams, place[..., None, None], axis=1)
  return Carried(insertion, by_node, is_node.any(axis=-1))
