# SPDX-License-Identifier: Apache-2.0
"""Who may attend to whom, as boolean masks.

Axis letters: B rows, T positions, M tree nodes, S cache slots, L earlier nodes.
"""

import jax.numpy as jnp

from specstream_jax import typing


def segment_mask(segment_ids: typing.Array) -> typing.Array:
  """Causal mask [B, T, T] inside segments; 0 is padding. For ids 1 1 2 0:

  1 0 0 0
  1 1 0 0
  0 0 1 0
  0 0 0 0
  """
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  causal = jnp.tri(segment_ids.shape[1], dtype=bool)
  return same & causal & (segment_ids > 0)[:, :, None]


def slot_mask(
  tree_mask: typing.Array, length: typing.Array, num_slots: int
) -> typing.Array:
  """Which cache slots each node sees, [B, M, S].

  Slots below `length` are the prefix; slot length + m holds node m. For
  length 2, S = 5 and a root with two children:

    1 1 1 0 0
    1 1 1 1 0
    1 1 1 0 1

  Args:
    tree_mask: [B, M, M] bool, self and ancestors; with more columns than rows,
      the rows are the last nodes.
    length: [B] int32.
    num_slots: S.
  """
  num_nodes = tree_mask.shape[-1]
  slots = jnp.arange(num_slots)[None]
  node = (slots - length[:, None])[:, None]  # [B, 1, S]
  placed = jnp.take_along_axis(
    tree_mask, jnp.clip(node, 0, num_nodes - 1), axis=2
  )
  return (node < 0) | (placed & (node < num_nodes))
