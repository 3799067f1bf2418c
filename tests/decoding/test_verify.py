# SPDX-License-Identifier: Apache-2.0
"""The walk against the oracle, and its law by exact enumeration."""

import itertools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference

from specstream_jax import sampling
from specstream_jax.decoding import interface, tree as tree_lib, verify

_verify = jax.jit(verify.verify, static_argnames='path_length')


def _tree(tokens, parents, batch=1):
  spread = lambda x: jnp.broadcast_to(jnp.asarray(x), (batch, len(tokens)))
  depths = reference.depths(list(parents))
  return tree_lib.DraftTree(spread(tokens), spread(parents), spread(depths))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_walk(data):
  """Small alphabets make equal siblings and long walks likely."""
  num_nodes, token = 7, st.integers(0, 1)
  row = st.lists(token, min_size=num_nodes, max_size=num_nodes)
  tokens, targets = data.draw(row), data.draw(row)
  parents = [0] + [
    data.draw(st.integers(0, i - 1)) for i in range(1, num_nodes)
  ]
  got = _verify(
    _tree(tokens, parents), jnp.array([targets]), path_length=num_nodes
  )
  path = reference.walk(tokens, parents, targets)
  accept_length = len(path) - 1
  assert got.accept_length[0] == accept_length
  padding = [path[-1]] * (num_nodes - len(path))
  assert got.path[0].tolist() == path + padding
  assert got.leaf[0] == path[-1]
  assert got.bonus[0] == targets[path[-1]]


def test_unused_nodes_and_the_root_never_match():
  tree = tree_lib.DraftTree(
    jnp.array([[3, -1, 3]]), jnp.array([[0, 0, 0]]), jnp.array([[0, 1, 1]])
  )
  got = _verify(tree, jnp.array([[3, 3, 5]]), path_length=2)
  assert got.path[0].tolist() == [0, 2] and got.bonus[0] == 5


def test_a_call_emits_accepted_drafts_and_the_bonus():
  tree = _tree([9, 5, 6, 7], [0, 0, 1, 2], batch=3)
  path = jnp.array([[0, 0, 0, 0], [0, 1, 2, 2], [0, 1, 2, 3]])
  accept_length, bonus = jnp.array([0, 2, 3]), jnp.array([1, 2, 3])
  verified = verify.Verified(path, accept_length, path[:, -1], bonus)
  emitted = verify.emitted(tree, verified)
  assert emitted[0, :1].tolist() == [1]
  assert emitted[1, :3].tolist() == [5, 6, 2]
  assert emitted[2].tolist() == [5, 6, 7, 3]


@pytest.mark.parametrize('survivors', [None, (0, 2, 3)])
def test_the_walk_is_among_the_nodes_that_survive(survivors):
  """Of 9 and its children 5 and 6, of which 6 has a child 7."""
  tree = _tree([9, 5, 6, 7], [0, 0, 0, 2])
  wanted = np.array([6, 8, 7, 4])
  kept = list(survivors or range(4))
  verification = interface.Verification(
    tree,
    None if survivors is None else jnp.array([survivors]),
    jax.nn.one_hot(wanted[kept], 11)[None],
    sampling.row_keys(0, [0]),
    jnp.array([13]),
  )
  got = verify.walk(verification, None, 3)
  assert got.path[0].tolist() == [0, kept.index(2), kept.index(3)]
  assert got.accept_length[0] == 2 and got.bonus[0] == 4


VOCAB_SIZE, LENGTH = 3, 3


def _target(prefix):
  """Random conditional law [V] after `prefix`."""
  rng = np.random.default_rng([17, *(token + 1 for token in prefix)])
  return rng.dirichlet(np.full(VOCAB_SIZE, 3.0))


def _emitted_law(tokens, parents, rule):
  """Law of what one call emits, over every outcome of every node's draw."""
  paths = [(), *reference.paths(tokens, parents)]
  outcomes = np.array(
    list(itertools.product(range(VOCAB_SIZE), repeat=len(tokens)))
  )
  probs = np.array([_target(path) for path in paths])
  weights = np.prod(probs[np.arange(len(tokens)), outcomes], axis=1)
  tree = _tree(tokens, parents, len(outcomes))
  path, accept_length = rule(tree, outcomes)
  law = {}
  for row, weight in enumerate(weights):
    nodes = path[row, : accept_length[row] + 1]
    emitted = tuple(int(t) for t in outcomes[row, nodes])
    law[emitted] = law.get(emitted, 0.0) + weight
  return law


def _production(tree, outcomes):
  got = _verify(tree, jnp.asarray(outcomes), path_length=LENGTH)
  return np.array(got.path), np.array(got.accept_length)


def _deepest(tree, outcomes):
  """Wrong: of equal siblings the one that leads deepest."""
  targets = jnp.asarray(outcomes)
  agrees = tree.tokens == jnp.take_along_axis(targets, tree.parents, axis=1)
  agrees |= tree.depths == 0
  mask = tree_lib.ancestor_mask(tree.parents)
  is_reached = jnp.all(agrees[:, None] | ~mask, axis=-1)
  leaf = np.array(jnp.argmax(jnp.where(is_reached, tree.depths, -1), axis=1))
  above = np.array(tree.parents)[np.arange(len(leaf)), leaf]
  depth = np.array(tree.depths)[np.arange(len(leaf)), leaf]
  zero = np.zeros_like(leaf)
  second = np.where(depth == 2, above, leaf)
  return np.stack([zero, second, leaf], axis=1), depth


TREES = {
  'binary': ([0, 0, 1, 2, 0], [0, 0, 0, 1, 1]),
  'equal siblings': ([0, 1, 1, 0, 2], [0, 0, 0, 1, 2]),
  'chain': ([2, 1, 0], [0, 0, 1]),
  'unused nodes': ([2, 1, -1, 0], [0, 0, 0, 1]),
  'pruned': ([1, 2, 2], [0, 0, 1]),
}


def _distance(partial_law, length=LENGTH):
  exact = reference.sequence_law(_target, length)
  got = reference.continue_law(partial_law, _target, length)
  return reference.total_variation(got, exact)


@pytest.mark.parametrize('name', TREES)
def test_emitted_tokens_follow_the_target_law(name):
  assert _distance(_emitted_law(*TREES[name], _production)) < 1e-6


def test_the_law_test_finds_a_wrong_walk():
  law = _emitted_law(*TREES['equal siblings'], _deepest)
  assert _distance(law) > 1e-3


def test_the_law_test_finds_the_ratio_rule():
  """Top-k drafts verified by p/q ratios are biased (paper, section 3)."""
  draft_probs = np.array([0.5, 0.3, 0.2])
  law = reference.ratio_rule_law(_target(()), draft_probs, drafts=(0, 1))
  assert _distance(law, length=1) > 0.05


def test_deepest_rule_agrees_without_equal_siblings():
  law = _emitted_law(*TREES['binary'], _deepest)
  assert _distance(law) < 1e-6
