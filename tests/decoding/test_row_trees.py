# SPDX-License-Identifier: Apache-2.0
"""A row's tree beside others is the tree that it would have alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.decoding import row_trees, tree as tree_lib

Tree = config.TreeConfig
CHOICES = ((0,), (0, 0), (2,), (1,), (0, 1), (0, 0, 1), (1, 0))
TREES = (
  Tree('best_first', depth=3, branching=3, num_nodes=11),
  Tree('best_first', depth=2, branching=2, num_nodes=5),
  Tree('best_first', depth=3, branching=1, num_nodes=11),
  Tree('chain', depth=2),
  Tree('full', depth=2, branching=2),
  Tree('fixed', choices=CHOICES),
)
VOCAB_SIZE, STREAMS = 7, 3


def _paths(tree, row):
  """Tokens from the root down to each node in use."""
  tokens, parents = np.array(tree.tokens)[row], np.array(tree.parents)[row]
  depths, paths = np.array(tree.depths)[row], {}
  for node, token in enumerate(tokens):
    if token >= 0:
      above = paths[parents[node]] if node else ()
      paths[node] = (*above, int(token))
      assert depths[node] == len(above)
    elif node:
      assert (token, parents[node], depths[node]) == (-1, 0, 1)
  return set(paths.values())


def _coupled(seed):
  bias = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE))
  couple = lambda state, parents, tokens: jnp.asarray(bias, jnp.float32)[
    parents[:, :, None], tokens[:, None]
  ]
  return tree_lib.coupled_edges(couple, jnp.zeros((len(TREES), STREAMS)))


def _rows(made):
  rows = [row_trees.as_arrays(row_trees.fit(t, made), made) for t in TREES]
  return jax.tree.map(lambda *x: np.concatenate(x), *rows)


@functools.cache
def _grow():
  made = row_trees.room(TREES)
  edges = {'edge_scores': _coupled(9)}
  grow = functools.partial(row_trees.from_stream_logits, made=made, **edges)
  alone = [
    functools.partial(
      tree_lib.from_stream_logits,
      cfg=cfg,
      **(edges if cfg.kind == 'best_first' else {}),
    )
    for cfg in TREES
  ]
  both = lambda logits, root, rows: (
    grow(logits, root, rows),
    [one(logits, root) for one in alone],
  )
  return jax.jit(both), _rows(made)


@pytest.mark.parametrize('seed', range(4))
def test_rows_have_their_own_trees(seed):
  rng = np.random.default_rng(seed)
  shape = len(TREES), STREAMS, VOCAB_SIZE
  logits = rng.normal(size=shape).astype(np.float32) * 2
  root = rng.integers(0, VOCAB_SIZE, len(TREES))
  both, rows = _grow()
  got, want = both(logits, root, rows)
  assert got.tokens.shape == (len(TREES), 11)
  for row, own in enumerate(want):
    assert _paths(got, row) == _paths(own, row), TREES[row]


def test_room_is_for_the_largest_of_each():
  made = row_trees.room(TREES)
  assert made == (Tree('best_first', 3, 3, 11), True)
  assert row_trees.room(TREES[:4]).has_fixed is False
  prunes = [Tree(keep_nodes=5), Tree(keep_nodes=7)]
  assert row_trees.room(prunes).cfg.keep_nodes == 7
  assert row_trees.room([*prunes, Tree()]).cfg.keep_nodes == 0


def test_of_a_tree_that_comes_later_what_there_is_room_for_is_left():
  made = row_trees.room([TREES[1], TREES[5]])
  assert made.cfg == Tree('best_first', 3, 3, 8)
  fit = functools.partial(row_trees.fit, made=made)
  assert fit(Tree('best_first', 5, 4, 32)) == made.cfg
  assert fit(Tree('full', depth=3, branching=2)).choices == (
    (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0),
  )  # fmt: skip
  narrow = row_trees.room([TREES[1]])
  full = Tree('full', depth=3, branching=3)
  assert row_trees.fit(full, narrow) == narrow.cfg
  wide = row_trees.room([Tree('fixed', choices=((0,), (1,)))])
  made = row_trees.room([Tree('fixed', choices=((0,), (1,), (0, 0)))])
  wider = Tree('fixed', choices=((0,), (2,), (0, 2), (0, 1)))
  assert row_trees.fit(wider, made).choices == ((0,), (0, 1))
  only_wide = Tree('fixed', choices=((3,),))
  assert row_trees.fit(only_wide, wide).kind == 'best_first'


def test_paths_wider_than_the_room_are_left_out():
  made = row_trees.Room(Tree(depth=2, branching=2, num_nodes=9), True)
  wide = Tree('fixed', choices=((0,), (1,), (2,), (0, 1), (0, 2), (0, 0)))
  found = row_trees.fit(wide, made).choices
  assert set(found) == {(0,), (1,), (0, 1), (0, 0)}
