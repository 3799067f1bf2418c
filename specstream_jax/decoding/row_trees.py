# SPDX-License-Identifier: Apache-2.0
"""A draft tree of its own for each row of a batch.

All rows have room for as many nodes, as deep and as wide as the largest tree
needs, and how much of it a row uses is an array. The shape of a `full` or
`fixed` tree is one, too; a `chain` is a `best_first` tree of one branch.

Axis letters: B rows, M tree nodes including the root, J streams, V vocabulary.
"""

from collections.abc import Iterable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config, sampling
from specstream_jax.decoding import topology, tree as tree_lib

_UNUSED = -1  # the rank of a node that a row does not have


class RowTree(NamedTuple):
  """The trees of rows.

  Attributes:
    limits: of `best_first` trees.
    is_fixed: [B] bool, rows whose trees never change their shape.
    parents: [B, M] int32 of such trees.
    depths: [B, M] int32.
    ranks: [B, M] int32; -1 marks an unused node.
  """

  limits: tree_lib.Limits
  is_fixed: arrays.Array
  parents: arrays.Array
  depths: arrays.Array
  ranks: arrays.Array


class Room(NamedTuple):
  """What is compiled for all rows.

  Attributes:
    cfg: the `best_first` tree that is as large as any.
    has_fixed: whether there are trees that never change their shape.
  """

  cfg: config.TreeConfig
  has_fixed: bool


def room(trees: Iterable[config.TreeConfig]) -> Room:
  """Room for some trees, at least one.

  Nodes are pruned on the way if all of the trees ask for it.
  """
  trees = list(trees)
  keeps = [cfg.keep_nodes for cfg in trees]
  cfg = config.TreeConfig(
    'best_first',
    depth=max(cfg.max_depth for cfg in trees),
    branching=max(map(topology.width, trees)),
    num_nodes=max(cfg.size for cfg in trees),
    keep_nodes=max(keeps) if all(keeps) else 0,
  )
  return Room(cfg, any(cfg.kind in ('full', 'fixed') for cfg in trees))


def fit(cfg: config.TreeConfig, made: Room) -> config.TreeConfig:
  """The tree, or what of it there is room for; `best_first` or `fixed`."""
  if cfg.kind in ('full', 'fixed') and made.has_fixed:
    is_in = lambda path: (
      len(path) <= made.cfg.depth and max(path) < made.cfg.branching
    )
    paths = tuple(filter(is_in, topology.rank_paths(cfg)))
    if paths:
      paths = paths[: made.cfg.num_nodes - 1]
      return config.TreeConfig('fixed', choices=paths)
  return dataclasses.replace(
    made.cfg,
    depth=min(cfg.max_depth, made.cfg.depth),
    branching=min(topology.width(cfg), made.cfg.branching),
    num_nodes=min(cfg.size, made.cfg.num_nodes),
  )


def as_arrays(cfg: config.TreeConfig, made: Room) -> RowTree:
  """The tree of a batch of one row, as numpy; what `fit` gives."""
  count, is_fixed = made.cfg.num_nodes, cfg.kind == 'fixed'
  parents, depths, ranks = (
    np.full((1, count), value, np.int32) for value in (0, 1, _UNUSED)
  )
  if is_fixed:
    for own, shape in zip(
      (parents, depths, ranks), topology.arrays(cfg), strict=True
    ):
      own[0, : len(shape)] = shape
  numbers = cfg.size, cfg.max_depth, topology.width(cfg)
  limits = (np.array([number], np.int32) for number in numbers)
  # numpy stands in for arrays of the device
  return RowTree(
    tree_lib.Limits(*limits),  # pyright: ignore[reportArgumentType]
    np.array([is_fixed]),  # pyright: ignore[reportArgumentType]
    parents,  # pyright: ignore[reportArgumentType]
    depths,  # pyright: ignore[reportArgumentType]
    ranks,  # pyright: ignore[reportArgumentType]
  )


def nothing(made: Room) -> RowTree:
  """For a batch of one row whose streams say nothing, room as of all."""
  tree = as_arrays(made.cfg, made)
  none = np.zeros_like(tree.limits.branching)
  return tree._replace(limits=tree.limits._replace(branching=none))


def from_stream_logits(
  logits: arrays.Array,
  root: arrays.Array,
  rows: RowTree,
  made: Room,
  *,
  edge_scores: tree_lib.EdgeScores | None = None,
  before_root: arrays.Array | None = None,
) -> tree_lib.DraftTree:
  """The trees of rows; arguments as of `tree.from_stream_logits`.

  Args:
    logits: [B, J, V].
    root: [B] int32.
    rows: their trees.
    made: room for them.
    edge_scores: of `best_first` trees.
    before_root: [B] int32.
  """
  grown = tree_lib.from_stream_logits(
    logits,
    root,
    made.cfg,
    edge_scores=edge_scores,
    before_root=before_root,
    limits=rows.limits,
  )
  if not made.has_fixed:
    return grown
  fixed = _fixed(logits, root, rows, made.cfg.branching)
  choose = lambda one, other: jnp.where(rows.is_fixed[:, None], one, other)
  return jax.tree.map(choose, fixed, grown)


def _fixed(logits, root, rows, width):
  """The trees whose shape is known."""
  log_probs, top = sampling.top_k(
    jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), width
  )
  index = jnp.arange(len(root))[:, None]
  stream = jnp.maximum(rows.depths - 1, 0)
  at_node = index, stream, jnp.maximum(rows.ranks, 0)
  is_unused = rows.ranks == _UNUSED
  tokens = jnp.where(is_unused, -1, top[at_node])
  tokens = tokens.at[:, 0].set(root).astype(jnp.int32)
  tree = tree_lib.DraftTree(tokens, rows.parents, rows.depths)
  own = jnp.where(is_unused, -jnp.inf, log_probs[at_node])
  scores = tree_lib.path_scores(tree, own, max_depth=logits.shape[1])
  return dataclasses.replace(tree, scores=scores)
