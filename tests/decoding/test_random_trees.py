# SPDX-License-Identifier: Apache-2.0
"""Drawn trees have the laws they say, and the shape they are given."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference
import scipy.special
import scipy.stats

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  enumerate_law,
  interface,
  random_trees,
  topology,
  tree as tree_lib,
)
from specstream_jax.drafters import streams

NUM_ROWS, VOCAB_SIZE, DEPTH = 100_000, 4, 2
WARM = config.SamplingConfig(temperature=0.8)
GREEDY = config.SamplingConfig()
WARM_ROWS = sampling.row_settings([WARM])
FULL = config.TreeConfig('full', depth=DEPTH, branching=2)
APART = config.TreeConfig('full', depth=DEPTH, branching=2, keep_nodes=3)
BEAM = config.TreeConfig('best_first', depth=DEPTH, num_nodes=7)
LOGITS = 1.2 * np.random.default_rng(0).normal(size=(DEPTH, VOCAB_SIZE))
LOGITS = LOGITS.astype(np.float32)
_draw = jax.jit(random_trees.draw, static_argnums=(3, 5))


@functools.cache
def _trees(cfg, drafting, sampling_cfg=WARM):
  """Tokens and parents [NUM_ROWS, M] of independent draws."""
  rows = jnp.zeros((NUM_ROWS,), jnp.int32)
  keys = sampling.call_keys(
    sampling.row_keys(3, range(NUM_ROWS)), rows + 5, sampling.DRAFT_NOISE
  )
  logits = jnp.broadcast_to(LOGITS, (NUM_ROWS, *LOGITS.shape))
  settings = sampling.row_settings([sampling_cfg])
  tree = _draw(logits, rows, keys, cfg, settings, drafting)
  return jax.tree.map(np.array, tree)


def _probs(depth):
  return np.float64(sampling.law(LOGITS[depth - 1], WARM_ROWS))


def _check_law(observed, law):
  """Chi-square of tuples [N, k] against {tuple: probability}."""
  outcomes, counts = np.unique(observed, axis=0, return_counts=True)
  seen = dict(zip(map(tuple, outcomes.tolist()), counts, strict=True))
  assert set(seen) <= set(law)
  counts = np.array([seen.get(key, 0) for key in law])
  expected = np.array(list(law.values()))
  expected *= counts.sum() / expected.sum()
  assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


DRAWS = {
  'gumbel_top_k': enumerate_law.draws_without_replacement,
  'independent': enumerate_law.draws_with_replacement,
}


@pytest.mark.parametrize('cfg', [FULL, APART], ids=['shared', 'apart'])
@pytest.mark.parametrize('drafting', DRAWS)
def test_siblings_follow_their_law(drafting, cfg):
  tree = _trees(cfg, drafting)
  for first, depth in ((1, 1), (3, 2), (5, 2)):
    law = dict(DRAWS[drafting](_probs(depth), 2))
    _check_law(tree.tokens[:, first : first + 2], law)
  np.testing.assert_array_equal(tree.parents[0], topology.arrays(cfg)[0])


def test_levels_are_independent():
  tree = _trees(FULL, 'gumbel_top_k')
  pairs = itertools.product(range(VOCAB_SIZE), repeat=2)
  law = {(a, b): _probs(1)[a] * _probs(2)[b] for a, b in pairs}
  _check_law(tree.tokens[:, [1, 3]], law)


@pytest.mark.parametrize('drafting', DRAWS)
def test_only_without_pruning_do_nodes_of_a_depth_share_their_draws(drafting):
  shared, apart = _trees(FULL, drafting), _trees(APART, drafting)
  np.testing.assert_array_equal(shared.tokens[:, 3:5], shared.tokens[:, 5:7])
  cousins = {
    (a, b): _probs(2)[a] * _probs(2)[b]
    for a, b in itertools.product(range(VOCAB_SIZE), repeat=2)
  }
  _check_law(apart.tokens[:, [3, 5]], cousins)


def test_a_law_that_runs_out_leaves_nodes_unused():
  """Two tokens are left; what lies under an unused node is unused."""
  cfg = config.TreeConfig('full', depth=2, branching=3)
  few = config.SamplingConfig(temperature=1.0, top_k=2)
  tree = _trees(cfg, 'gumbel_top_k', few)
  used = np.array([1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0], bool)
  assert (tree.tokens[:, used] >= 0).all()
  assert (tree.tokens[:, ~used] == -1).all()
  assert (tree.parents[:, ~used] == 0).all()
  assert (tree.depths[:, ~used] == 1).all()
  best = np.argsort(-LOGITS, axis=1)[:, :2]
  assert set(np.unique(tree.tokens[:, 1:3])) == set(best[0])


def _joint():
  return {
    (a, b): _probs(1)[a] * _probs(2)[b]
    for a, b in itertools.product(range(VOCAB_SIZE), repeat=2)
  }


def _path(tree, node):
  """Tokens [N, 2] down to a node of depth 2."""
  rows = np.arange(NUM_ROWS)
  above = tree.parents[:, node]
  return np.stack([tree.tokens[rows, above], tree.tokens[:, node]], axis=1)


@pytest.mark.slow
def test_a_beam_draws_paths_without_replacement():
  """Kool et al.: the best W of each depth, in order, by the joint law."""
  tree = _trees(BEAM, 'beam')
  assert random_trees.beam_widths(BEAM) == [3, 3]
  triples = enumerate_law.draws_without_replacement(_probs(1), 3)
  _check_law(tree.tokens[:, 1:4], dict(triples))
  _check_law(_path(tree, 4), _joint())
  joint = np.array(list(_joint().values()))
  pairs = enumerate_law.draws_without_replacement(joint, 2)
  digits = np.array([VOCAB_SIZE, 1])
  codes = np.stack([_path(tree, 4) @ digits, _path(tree, 5) @ digits], axis=1)
  common = {pair: weight for pair, weight in pairs if weight > 5e-4}
  seen = [tuple(map(int, pair)) for pair in codes]
  share = np.mean([pair in common for pair in seen])
  assert share == pytest.approx(sum(common.values()), abs=0.01)
  _check_law([pair for pair in seen if pair in common], common)


def test_a_second_child_says_nothing_of_itself_by_being_there():
  """Of the root's best child, its second given its first, where kept."""
  tree = _trees(BEAM, 'beam')
  children = [
    tree.tokens[row, 4:][tree.parents[row, 4:] == 1] for row in range(NUM_ROWS)
  ]
  assert {len(tokens) for tokens in children} == {1, 2, 3}
  pairs = dict(enumerate_law.draws_without_replacement(_probs(2), 2))
  for first in range(VOCAB_SIZE):
    kept = [t[:2] for t in children if len(t) > 1 and t[0] == first]
    assert len(kept) > 200
    _check_law(kept, {k: v for k, v in pairs.items() if k[0] == first})


def test_greedy_beam_is_beam_search():
  cfg = config.TreeConfig('best_first', depth=DEPTH, num_nodes=8)
  tree = _trees(cfg, 'beam', GREEDY)
  assert random_trees.beam_widths(cfg) == [4, 3]
  log_probs = LOGITS - scipy.special.logsumexp(LOGITS, axis=1, keepdims=True)
  order = np.argsort(-log_probs[0])
  assert tree.tokens[0, 1:5].tolist() == order.tolist()
  joint = np.add.outer(log_probs[0], log_probs[1])
  best = np.argsort(-joint, axis=None)[:3]
  want = [tuple(divmod(int(i), VOCAB_SIZE)) for i in best]
  parents = tree.parents[0].tolist()
  got = reference.paths(tree.tokens[0].tolist(), parents)
  assert got[4:] == want
  assert tree.depths[0].tolist() == reference.depths(parents)


def test_a_beam_wider_than_the_tokens_leaves_nodes_unused():
  cfg = config.TreeConfig('best_first', depth=2, num_nodes=15)
  few = config.SamplingConfig(temperature=1.0, top_k=2)
  tree = _trees(cfg, 'beam', few)
  assert np.isfinite(np.where(tree.law.log_probs == -np.inf, 0, tree.law.log_probs)).all()  # fmt: skip
  for row in range(5):
    used = tree.tokens[row] >= 0
    paths = reference.paths(tree.tokens[row][used], _renumbered(tree, row))
    best = np.argsort(-LOGITS, axis=1)[:, :2]
    want = {(a,) for a in best[0]} | set(itertools.product(*best))
    assert len(paths) == 6 and set(paths) == want
    assert (tree.depths[row][~used] == 1).all()


def _renumbered(tree, row):
  new = np.cumsum(tree.tokens[row] >= 0) - 1
  return new[tree.parents[row][tree.tokens[row] >= 0]].tolist()


def test_the_law_comes_with_the_tree():
  tree = _trees(FULL, 'gumbel_top_k')
  assert tree.law.index[0].tolist() == [0, 1, 1, 1, 1, 1, 1]
  for depth in (1, 2):
    np.testing.assert_allclose(
      np.exp(tree.law.log_probs[7, depth - 1]), _probs(depth), rtol=1e-5
    )


def test_noise_of_calls_purposes_and_tokens_differs():
  keys = sampling.row_keys(0, [0, 1])
  made = [keys, sampling.row_keys(1, [0, 1])]
  for position in (4, 5):
    at = jnp.array([position, position])
    for purpose in (sampling.DRAFT_NOISE, sampling.ACCEPT_NOISE):
      made.append(sampling.call_keys(keys, at, purpose))
    made.append(jax.vmap(jax.random.fold_in)(keys, at))
  data = [tuple(k) for key in made for k in np.array(jax.random.key_data(key))]
  assert len(set(data)) == 2 * len(made)


@pytest.mark.parametrize(
  ('drafting', 'tree', 'verifier', 'match'),
  [
    ('gumbel_top_k', BEAM, 'walk', "kind 'best_first'; set kind to one of"),
    ('independent', BEAM, 'walk', "kind 'best_first'"),
    ('beam', FULL, 'walk', "kind 'full'"),
    (
      'beam',
      config.TreeConfig('best_first', depth=3, num_nodes=3),
      'walk',
      'use num_nodes >= 4',
    ),
    (
      'beam',
      config.TreeConfig('best_first', depth=2, num_nodes=7, keep_nodes=3),
      'recursive_rejection',
      'use keep_nodes=0',
    ),
  ],
)
def test_trees_that_cannot_be_drawn(drafting, tree, verifier, match):
  options = config_drafting.DrafterConfig(drafting=drafting, verifier=verifier)
  with pytest.raises(ValueError, match=match):
    streams.Streams(tree, 3, options)


@pytest.mark.parametrize(
  ('keep_nodes', 'verifier'), [(3, 'walk'), (0, 'recursive_rejection')]
)
def test_a_beam_may_be_pruned_where_the_target_draws(keep_nodes, verifier):
  cfg = dataclasses.replace(BEAM, keep_nodes=keep_nodes)
  random_trees.check('beam', cfg, verifier)


def test_as_many_siblings_as_tokens():
  cfg = config.TreeConfig('full', depth=1, branching=VOCAB_SIZE)
  tokens = _trees(cfg, 'gumbel_top_k', GREEDY).tokens
  assert tokens[0, 1:].tolist() == np.argsort(-LOGITS[0]).tolist()


def test_more_siblings_than_tokens():
  cfg = config.TreeConfig('full', depth=1, branching=5)
  with pytest.raises(ValueError, match=r'draws 5 siblings.*has 4 tokens'):
    _trees(cfg, 'gumbel_top_k')


@pytest.mark.parametrize(
  'settings, is_coupled',
  [
    ({}, True),
    ({'noise_weight': 0.5}, True),
    ({'noise_weight': 0.0}, False),
    ({'couple_noise': False}, False),
  ],
)
def test_coupling_can_be_switched_off(settings, is_coupled):
  """Uncoupled drafts are the best by their logits."""
  options = config_drafting.DrafterConfig(**settings)
  cfg = config.TreeConfig('chain', depth=DEPTH)
  drafter = streams.Streams(cfg, DEPTH, options)
  logits = jnp.broadcast_to(LOGITS, (31, *LOGITS.shape))
  zeros = jnp.zeros((31,), jnp.int32)
  context = interface.DraftContext(
    zeros, None, None, None, zeros + 3, None, None,
    sampling.row_keys(0, range(31)), WARM_ROWS,
    stream_logits=lambda: interface.StreamLogits(logits),
  )  # fmt: skip
  tree, _ = drafter.propose({}, context, ())
  assert isinstance(tree, tree_lib.DraftTree) and tree.law is None
  is_best = np.array(tree.tokens[:, 1:]) == LOGITS.argmax(axis=1)
  assert is_best.all() != is_coupled
