# SPDX-License-Identifier: Apache-2.0
"""Windows over texts, slots of the cache and nodes of a growing tree."""

import jax.numpy as jnp
import numpy as np

from specstream_jax.modeling import masks


def test_a_window_keeps_the_last_tokens():
  causal = jnp.tri(4, dtype=bool)[None]
  positions = jnp.array([[0, 1, 2, 3]])
  wanted = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
  found = masks.within(causal, positions, positions, 2)
  np.testing.assert_array_equal(found[0], np.array(wanted, bool))


def test_slots_without_earlier_nodes_lie_in_order():
  mask = jnp.ones((1, 2, 2), bool)
  found = masks.slot_positions(mask, jnp.array([[3, 4]]), jnp.array([3]), 5)
  np.testing.assert_array_equal(found, [[[0, 1, 2, 3, 4]]])


def test_earlier_nodes_stand_where_their_depth_puts_them():
  # After a prefix of 3: a root, two children of it (nodes 1 and 2), a child of
  # node 2 (node 3); this pass adds a child of node 1 and one of node 3.
  mask = jnp.array([[[1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 0, 1]]], bool)
  positions = jnp.array([[3 + 2, 3 + 3]])
  found = masks.slot_positions(mask, positions, jnp.array([3]), 8)
  seen = masks.slot_mask(mask[..., :4], jnp.array([3]), 8)
  assert found.shape == (1, 2, 8)
  of = lambda node: found[0, node][seen[0, node]].tolist()
  assert of(0) == [0, 1, 2, 3, 4]
  assert of(1) == [0, 1, 2, 3, 4, 5]
