# SPDX-License-Identifier: Apache-2.0
"""Who may attend to whom, as boolean masks.

Axis letters: B rows, T positions, M tree nodes, S cache slots, L earlier nodes.
"""

import jax.numpy as jnp

from specstream_jax import arrays


def segment_mask(segment_ids: arrays.Array) -> arrays.Array:
  """Causal mask [B, T, T] inside segments; 0 is padding. For ids 1 1 2 0:

  1 0 0 0
  1 1 0 0
  0 0 1 0
  0 0 0 0
  """
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  causal = jnp.tri(segment_ids.shape[1], dtype=bool)
  return same & causal[None] & (segment_ids > 0)[:, :, None]


def slot_mask(
  earlier_mask: arrays.Array, length: arrays.Array, num_slots: int
) -> arrays.Array:
  """Which cache slots the nodes of a pass see, [B, M, S].

  Slots below `length` are the prefix; slot length + l holds node l of earlier
  passes over the same tree. For length 2, S = 5, a root (L = 1) and two nodes,
  its children:

    1 1 1 0 0
    1 1 1 0 0

  Args:
    earlier_mask: [B, M, L] bool, which earlier nodes are ancestors; L may be 0.
    length: [B] int32.
    num_slots: S.
  """
  num_earlier = earlier_mask.shape[-1]
  slots = jnp.arange(num_slots)[None]
  node = (slots - length[:, None])[:, None]  # [B, 1, S]
  if not num_earlier:
    return jnp.broadcast_to(node < 0, (*earlier_mask.shape[:2], num_slots))
  placed = jnp.take_along_axis(
    earlier_mask, jnp.clip(node, 0, num_earlier - 1), axis=2
  )
  return (node < 0) | (placed & (node < num_earlier))


def within(
  mask: arrays.Array,
  positions: arrays.Array,
  key_positions: arrays.Array,
  window: int,
) -> arrays.Array:
  """What of a mask [B, T, N] lies in the window of the last tokens.

  A window of 2 over three tokens:

    1 0 0
    1 1 0
    0 1 1

  Args:
    mask: bool.
    positions: [B, T] int32 of the queries.
    key_positions: [B, N] or [B, T, N] int32.
    window: tokens that a query sees, itself included.
  """
  if key_positions.ndim == 2:
    key_positions = key_positions[:, None]
  return mask & (positions[..., None] - key_positions < window)


def slot_positions(
  tree_mask: arrays.Array,
  positions: arrays.Array,
  length: arrays.Array,
  num_slots: int,
) -> arrays.Array:
  """Positions [B, 1 or M, S] of the cache slots that nodes see.

  The prefix lies in order. Of an earlier node, in a slot beyond it, the position
  follows from who sees it: between a node and an ancestor lie as many positions
  as ancestors.

  Args:
    tree_mask: [B, M, L + M] bool, after L earlier nodes.
    positions: [B, M] int32 of the nodes.
    length: [B] int32.
    num_slots: S.
  """
  slots = jnp.arange(num_slots)[None, None]
  num_earlier = tree_mask.shape[2] - tree_mask.shape[1]
  if not num_earlier:
    return slots
  seen = tree_mask.astype(jnp.int32)
  after = seen.sum(axis=2, keepdims=True) - jnp.cumsum(seen, axis=2)
  node = slots - length[:, None, None]
  after = jnp.take_along_axis(after, jnp.clip(node, 0, num_earlier - 1), axis=2)
  return jnp.where(node < 0, slots, positions[..., None] - after)
