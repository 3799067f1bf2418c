# SPDX-License-Identifier: Apache-2.0
"""Acceptance by chance is as likely as it is told to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import sampling
from specstream_jax.decoding import interface, synthetic, tree as tree_lib

NUM_ROWS, VOCAB_SIZE = 2003, 11
# Of the root's children 1, 2 and 3 the first is not used; 2 has a child 4.
TOKENS, PARENTS, DEPTHS = [9, -1, 0, 6, 7], [0, 0, 0, 0, 2], [0, 1, 1, 1, 2]
# The arg max at each node.
BONUS = [1, 2, 3, 4, 5]


@jax.jit
def _run(verification, acceptance):
  return synthetic.synthetic(verification, None, 4, acceptance=acceptance)


def _verify(acceptance, *, root_position=13, tokens=TOKENS):
  spread = lambda x: jnp.broadcast_to(jnp.array(x), (NUM_ROWS, len(x)))
  tree = tree_lib.DraftTree(*map(spread, (tokens, PARENTS, DEPTHS)))
  logits = jax.nn.one_hot(jnp.array(BONUS), VOCAB_SIZE)
  verification = interface.Verification(
    tree,
    None,
    jnp.broadcast_to(logits, (NUM_ROWS, *logits.shape)),
    sampling.row_keys(0, range(NUM_ROWS)),
    jnp.full(NUM_ROWS, root_position),
  )
  return jax.tree.map(np.asarray, _run(verification, acceptance))


@pytest.mark.parametrize('acceptance', [0.0, 0.3, 0.8, 1.0])
def test_drafts_are_accepted_so_often(acceptance):
  found = _verify(acceptance)
  # The tree is two deep, so a third step finds no child.
  for depth in (1, 2):
    share = np.mean(found.accept_length >= depth)
    assert share == pytest.approx(acceptance**depth, abs=0.05)
  assert found.accept_length.max() <= 2


def test_the_path_goes_down_first_children():
  found = _verify(0.5)
  paths = np.array([[0, 0, 0, 0], [0, 2, 2, 2], [0, 2, 4, 4]])
  np.testing.assert_array_equal(found.path, paths[found.accept_length])
  np.testing.assert_array_equal(found.leaf, found.path[:, -1])
  np.testing.assert_array_equal(found.bonus, np.array(BONUS)[found.leaf])
  assert set(found.accept_length) == {0, 1, 2}


def test_a_first_child_may_be_the_first_node():
  found = _verify(1.0, tokens=[9, 4, 0, 6, 7])
  # Nobody hangs below node 1.
  assert found.path.tolist() == [[0, 1, 1, 1]] * NUM_ROWS


def test_luck_is_a_matter_of_the_position():
  """What a call found out about a position, the next one finds again."""
  call, later = (_verify(0.5, root_position=p).accept_length for p in (13, 14))
  went_on = call >= 1
  np.testing.assert_array_equal(call[went_on] >= 2, later[went_on] >= 1)
