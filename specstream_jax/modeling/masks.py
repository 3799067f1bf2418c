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
  return same & causal[None] & (segment_ids > 0)[:, :, None]


def slot_mask(
  earlier_mask: typing.Array, length: typing.Array, num_slots: int
) -> typing.Array:
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
