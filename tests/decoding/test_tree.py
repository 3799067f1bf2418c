# SPDX-License-Identifier: Apache-2.0
"""Building, masking, pruning and scoring draft trees against the oracle."""

import functools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference

from specstream_jax import config
from specstream_jax.decoding import topology, tree as tree_lib

CHOICES = ((0,), (0, 0), (2,), (1,), (0, 1), (0, 0, 3), (1, 0))
FULL = config.TreeConfig('full', depth=3, branching=2)
CHAIN = config.TreeConfig('chain', depth=3)
FIXED = config.TreeConfig('fixed', choices=CHOICES)
BEST = config.TreeConfig('best_first', depth=3, branching=3, num_nodes=11)
VOCAB_SIZE, STREAMS, BATCH = 7, 3, 2


@st.composite
def random_parents(draw, num_nodes=11):
  return [0] + [draw(st.integers(0, i - 1)) for i in range(1, num_nodes)]


def _random_logits(seed):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(BATCH, STREAMS, VOCAB_SIZE)).astype(np.float32)


@functools.cache
def _build(cfg):
  build = functools.partial(tree_lib.from_stream_logits, cfg=cfg)
  return jax.jit(build)


def test_a_root_alone():
  tree = tree_lib.root_only(jnp.array([0, 6]))
  found = [x.tolist() for x in jax.tree.leaves(tree)]
  assert found == [[[0], [6]], [[0], [0]], [[0], [0]]]


def test_ancestor_mask_of_the_docstring():
  mask = tree_lib.ancestor_mask(jnp.array([[0, 0, 0, 1]]))
  want = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
  np.testing.assert_array_equal(mask[0], want)


@settings(max_examples=25, deadline=None)
@given(rows=st.tuples(random_parents(), random_parents()))
def test_ancestor_mask(rows):
  mask = _mask(jnp.array(rows))
  for got, parents in zip(mask, rows, strict=True):
    np.testing.assert_array_equal(got, reference.ancestor_mask(parents))


_mask = jax.jit(tree_lib.ancestor_mask)


def test_full_tree_sizes_of_the_paper():
  sizes = {(3, 2): 15, (3, 3): 40, (3, 4): 85, (4, 2): 31, (4, 3): 121}
  for (depth, branching), size in sizes.items():
    cfg = config.TreeConfig('full', depth=depth, branching=branching)
    parents, depths, _ = topology.arrays(cfg)
    assert len(parents) == cfg.size == size
    assert depths.max() == depth


def test_ranks_and_widths_by_hand():
  cfg = config.TreeConfig('fixed', choices=((0,), (2,), (0, 1)))
  parents, depths, ranks = topology.arrays(cfg)
  assert parents.tolist() == [0, 0, 0, 1]
  assert depths.tolist() == [0, 1, 1, 2]
  assert ranks.tolist() == [0, 0, 2, 1]
  widths = [topology.width(c) for c in (cfg, FULL, CHAIN, BEST)]
  assert widths == [3, 2, 1, 3]


@pytest.mark.parametrize('cfg', [FULL, CHAIN, FIXED], ids=lambda c: c.kind)
def test_static_trees_hold_the_ranked_tokens(cfg):
  logits = _random_logits(0)
  tree = _build(cfg)(jnp.asarray(logits), jnp.array([5, 6]))
  assert tree.tokens.shape == (BATCH, cfg.size)
  ranks = {'full': [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)],
           'chain': [(0, 0, 0)], 'fixed': CHOICES}[cfg.kind]  # fmt: skip
  wanted = {path[:d] for path in ranks for d in range(1, len(path) + 1)}
  for row in range(BATCH):
    order = np.argsort(-logits[row], axis=1)
    want = {tuple(order[j, r] for j, r in enumerate(p)) for p in wanted}
    got = reference.paths(tree.tokens[row], np.array(tree.parents[row]))
    assert set(got) == want and len(got) == len(want)
    assert tree.tokens[row, 0] == 5 + row
    _check_structure(tree, row)


def _check_structure(tree, row):
  parents = np.array(tree.parents[row])
  assert parents[0] == 0
  assert all(parents[1:] < np.arange(1, len(parents)))
  is_used = np.array(tree.tokens[row]) >= 0
  depths = np.array(tree.depths[row])
  np.testing.assert_array_equal(
    depths[is_used], np.array(reference.depths(parents))[is_used]
  )
  assert (depths[~is_used] == 1).all() and (parents[~is_used] == 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_best_first_is_the_best_ancestor_closed_set(seed):
  logits = _random_logits(seed)
  tree = _build(BEST)(jnp.asarray(logits), jnp.array([5, 6]))
  log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
  for row in range(BATCH):
    want = reference.best_first(log_probs[row], BEST.branching, BEST.size - 1)
    got = reference.paths(tree.tokens[row], np.array(tree.parents[row]))
    assert set(got) == {path for _, path in want}
    assert len(set(got)) == BEST.size - 1
    _check_structure(tree, row)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_edge_scores_lift_no_child_above_its_parent(seed):
  """Edges are at most certain, whatever is added to them."""
  logits = _random_logits(seed)
  log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
  bonus = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE)) * 4
  tree = _coupled(jnp.asarray(logits), jnp.float32(bonus))
  for row in range(BATCH):
    _check_structure(tree, row)
    top = np.argsort(-log_probs[row], axis=1)[:, : BEST.branching]
    nodes = [((5 + row,), 0.0)]
    for depth in range(STREAMS):
      nodes += [
        ((*path, token), above + min(edge, 0.0))
        for path, above in nodes
        if len(path) == depth + 1
        for token in top[depth].tolist()
        for edge in [log_probs[row, depth, token] + bonus[path[-1], token]]
      ]
    kept = reference.paths(tree.tokens[row], np.array(tree.parents[row]))
    scores = {path[1:]: score for path, score in nodes[1:]}
    assert len(set(kept)) == BEST.size - 1
    # Ties at certainty may fall either way.
    best = sorted(scores.values(), reverse=True)[: BEST.size - 1]
    found = sorted((scores[path] for path in kept), reverse=True)
    np.testing.assert_allclose(found, best, atol=1e-5)


@jax.jit
def _coupled(logits, bonus):
  """The best-first tree whose edges get `bonus[parent, child]` in addition."""

  def edge_scores(depth, above, parents, candidates, log_probs):
    del depth, above, log_probs
    return bonus[parents[:, :, None], candidates[:, None]]

  root = jnp.array([5, 6])
  return tree_lib.from_stream_logits(
    logits, root, BEST, edge_scores=edge_scores, before_root=root
  )


def test_best_first_marks_nodes_it_cannot_fill():
  cfg = config.TreeConfig('best_first', depth=2, branching=1, num_nodes=7)
  logits = jnp.asarray(_random_logits(0)[:, :2])
  tree = tree_lib.from_stream_logits(logits, jnp.array([5, 6]), cfg)
  best = np.argmax(logits, axis=-1)
  for row in range(BATCH):
    want = [5 + row, *best[row], -1, -1, -1, -1]
    assert tree.tokens[row].tolist() == want
    assert tree.parents[row].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert tree.depths[row].tolist() == [0, 1, 2, 1, 1, 1, 1]


def test_best_first_never_drafts_masked_tokens():
  logits = jnp.full((1, 2, 5), -jnp.inf).at[0, :, 3].set(1.0)
  cfg = config.TreeConfig('best_first', depth=2, branching=2, num_nodes=5)
  tree = tree_lib.from_stream_logits(logits, jnp.array([1]), cfg)
  paths = reference.paths(tree.tokens[0], np.array(tree.parents[0]))
  assert sorted(paths) == [(-1,), (-1,), (3,), (3, 3)]


@settings(max_examples=25, deadline=None)
@given(parents=random_parents(), seed=st.integers(0, 2**16))
def test_prune_keeps_the_best_closed_set(parents, seed):
  rng = np.random.default_rng(seed)
  tokens, keep = rng.integers(0, 7, size=11), 5
  tree = tree_lib.DraftTree(
    *(jnp.asarray([x]) for x in (tokens, parents, reference.depths(parents)))
  )
  log_probs = -rng.exponential(size=(1, 11)).astype(np.float32)
  deepest = int(tree.depths.max())
  scores = tree_lib.path_scores(tree, log_probs, max_depth=deepest)
  mask = reference.ancestor_mask(parents)
  own = np.where(np.arange(11) > 0, log_probs[0], 0.0)
  np.testing.assert_allclose(scores[0], mask @ own, rtol=1e-5)
  pruned, survivors = tree_lib.prune(tree, scores, keep)
  best = sorted(sorted(range(11), key=lambda i: -scores[0, i])[:keep])
  assert survivors[0].tolist() == best
  kept = [tuple(p) for i, p in enumerate(reference.paths(tokens, parents), 1)
          if i in best]  # fmt: skip
  got = reference.paths(pruned.tokens[0], np.array(pruned.parents[0]))
  assert got == kept
  _check_structure(pruned, 0)


def test_pruned_to_the_root():
  tree = tree_lib.DraftTree(*jnp.array([[[8, 9]], [[0, 0]], [[0, 1]]]))
  pruned, survivors = tree_lib.prune(tree, jnp.array([[-5.0, 0.0]]), 1)
  assert survivors.tolist() == [[0]]
  assert [x.tolist() for x in jax.tree.leaves(pruned)] == [[[8]], [[0]], [[0]]]


@pytest.mark.parametrize('keep', [0, 5])
def test_prune_refuses_other_sizes(keep):
  tree = tree_lib.DraftTree(*(jnp.zeros((1, 4), jnp.int32) for _ in range(3)))
  with pytest.raises(ValueError, match=f'cannot keep {keep} of 4 draft'):
    tree_lib.prune(tree, jnp.zeros((1, 4)), keep)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_tree_hits_is_the_walk_along_the_truth(seed):
  rng = np.random.default_rng(seed)
  logits = _random_logits(seed)
  tree = _build(BEST)(jnp.asarray(logits), jnp.array([5, 6]))
  order = np.argsort(-logits, axis=-1)
  ranks = rng.integers(0, 3, size=(BATCH, STREAMS, 1))
  truth = np.take_along_axis(order, ranks, axis=-1)[..., 0]
  truth[0, rng.integers(0, 3)] = -1
  hits = tree_lib.tree_hits(tree, jnp.asarray(truth))
  short = tree_lib.tree_hits(tree, jnp.asarray(truth[:, :2]))
  for row in range(BATCH):
    paths = reference.paths(tree.tokens[row], np.array(tree.parents[row]))
    want = max(
      (d for d in (1, 2, 3) if tuple(truth[row, :d]) in paths), default=0
    )
    assert hits[row] == want
    assert short[row] == min(want, 2)


def test_a_tree_of_survivors_keeps_token_0():
  """Token 0 is a token; -1, and what is told to be unused, is not."""
  tokens, parents, depths = [6, 0, -1, 0, 5], [0, 0, 0, 1, 3], [0, 1, 1, 2, 3]
  tree = tree_lib.DraftTree(*jnp.array([[tokens], [parents], [depths]]))
  survivors = jnp.array([[0, 1, 2, 3]])
  for is_used, last in (
    (None, [0, 1, 2]),
    ([[True] * 3 + [False]], [-1, 0, 1]),
  ):
    asked = None if is_used is None else jnp.array(is_used)
    found = tree_lib.restrict(tree, survivors, asked)
    columns = zip(*(x[0].tolist() for x in jax.tree.leaves(found)), strict=True)
    want = [[6, 0, 0], [0, 0, 1], [-1, 0, 1], last]
    assert list(map(list, columns)) == want


def test_tree_deeper_than_streams_is_refused():
  cfg = config.TreeConfig('chain', depth=4)
  with pytest.raises(ValueError, match='depth 4 but the adapter has 3 spec'):
    tree_lib.from_stream_logits(jnp.zeros((1, 3, 7)), jnp.zeros(1, int), cfg)


def test_tree_wider_than_the_vocabulary_is_refused():
  cfg = config.TreeConfig('full', depth=1, branching=8)
  with pytest.raises(
    ValueError, match=r'top 8 tokens .* vocabulary has 7; use'
  ):
    tree_lib.from_stream_logits(jnp.zeros((1, 3, 7)), jnp.zeros(1, int), cfg)


def test_choices_from_json():
  assert topology.choices_from_json('[[0], [1], [0, 2]]') == (
    (0,),
    (1,),
    (0, 2),
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[[0]', 'tree choices are not JSON'),
    ('{"a": 1}', r"tree choices hold \{'a': 1\}; write a list of rank"),
    ('[]', r'tree choices hold \[\]; write'),
    ('[[0], []]', r'tree choices hold \[\]; write'),
    ('[[0], 3]', 'tree choices hold 3; write'),
    ('[[0], [-1]]', r'tree choices hold \[-1\]; write'),
    ('[[0], [0, -1]]', r'tree choices hold \[0, -1\]; write'),
    ('[[true]]', r'tree choices hold \[True\]; write'),
  ],
)
def test_bad_choices_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    topology.choices_from_json(text)


def test_best_first_has_no_static_shape():
  with pytest.raises(ValueError, match="'best_first' has no static shape"):
    topology.rank_paths(BEST)
