# SPDX-License-Identifier: Apache-2.0
"""Trees whose shape never changes: full, chain, and rank paths.

A rank path names a node: (0, 2) is the third best token of stream 2 under the
best token of stream 1. Medusa's "choices" are lists of them.
"""

import functools
import itertools
import json

import numpy as np

from specstream_jax import config

Paths = tuple[tuple[int, ...], ...]


def choices_from_json(text: str) -> Paths:
  """Rank paths from JSON text such as `[[0], [1], [0, 0]]`.

  Raises:
    ValueError: not JSON, or not a list of lists of ranks >= 0.
  """
  example = 'a list of rank paths such as [[0], [1], [0, 0]]'
  try:
    paths = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'tree choices are not JSON ({error}); write {example}'
    ) from error
  is_list = isinstance(paths, list) and bool(paths)
  for path in paths if is_list else [paths]:
    if not is_list or not isinstance(path, list) or not _are_ranks(path):
      raise ValueError(f'tree choices hold {path!r}; write {example}')
  return tuple(map(tuple, paths))


def _are_ranks(path):
  return bool(path) and all(type(r) is int and r >= 0 for r in path)


def rank_paths(cfg: config.TreeConfig) -> Paths:
  """Every node of a static tree but the root, parents before children.

  Raises:
    ValueError: the shape of a `best_first` tree is not static.
  """
  if cfg.kind == 'fixed':
    return tuple(sorted(cfg.choices, key=lambda path: (len(path), path)))
  if cfg.kind == 'best_first':
    raise ValueError(
      "tree kind 'best_first' has no static shape; accepted: 'full', 'chain', "
      "'fixed'"
    )
  ranks = range(cfg.branching if cfg.kind == 'full' else 1)
  levels = (itertools.product(ranks, repeat=d + 1) for d in range(cfg.depth))
  return tuple(itertools.chain.from_iterable(levels))


@functools.lru_cache
def arrays(cfg: config.TreeConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Parents, depths and ranks, each int32 [M]; the root's are 0."""
  paths = ((), *rank_paths(cfg))
  index = {path: i for i, path in enumerate(paths)}
  nodes = [(index[p[:-1]], len(p), p[-1] if p else 0) for p in paths]
  parents, depths, ranks = np.array(nodes, np.int32).T
  return parents, depths, ranks


def width(cfg: config.TreeConfig) -> int:
  """Candidates per stream that the tree can hold."""
  if cfg.kind == 'fixed':
    return 1 + max(rank for path in cfg.choices for rank in path)
  return 1 if cfg.kind == 'chain' else cfg.branching


def check_vocabulary(cfg: config.TreeConfig, vocab_size: int) -> None:
  """Raises ValueError if a tree needs more tokens than there are."""
  if (count := width(cfg)) > vocab_size:
    raise ValueError(
      f'draft tree needs the top {count} tokens of a stream but the vocabulary '
      f'has {vocab_size}; use branching (or ranks in choices) <= {vocab_size}'
    )
