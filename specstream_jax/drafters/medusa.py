# SPDX-License-Identifier: Apache-2.0
"""Medusa heads as the drafter (arXiv 2401.10774).

Axis letters: B rows, M tree nodes including the root, J heads, K ranks,
D model width, V vocabulary.
"""

import functools
import heapq
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.checkpoints import medusa as checkpoint
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import interface, topology, tree as tree_lib
from specstream_jax.drafters import loaded, streams
from specstream_jax.modeling import (
  fused,
  heads as heads_lib,
  params as params_lib,
)


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model without streams, and the heads at `cfg.path`.

  Raises:
    ValueError: no path, heads of another model, or a tree deeper than there
      are heads.
  """
  del decode
  if not cfg.path:
    raise ValueError(
      "drafter 'medusa' has no path; name the folder of its heads: "
      'medusa:path=FOLDER (train some with `specstream train_medusa`)'
    )
  heads_cfg = checkpoint.read_config(cfg.path)
  _check_base(model, heads_cfg)
  tree = cfg.tree or _default_tree(heads_cfg, cfg.drafting)
  drafter = Medusa(
    heads_lib.build(model.config, heads_cfg.num_heads), tree, cfg
  )
  written = os.stat(os.path.join(cfg.path, checkpoint.CONFIG)).st_mtime_ns
  weights = _load(cfg.path, model.config.dtype, written)
  return loaded.beside(model, drafter, weights)


def _default_tree(heads_cfg, drafting) -> config.TreeConfig:
  """What the heads were calibrated to; a beam grows no fixed tree."""
  if drafting == 'beam':
    return config.TreeConfig(depth=min(heads_cfg.num_heads, 4))
  if drafting != 'top_k' and not heads_cfg.choices:
    depth = min(heads_cfg.num_heads, 3)
    return config.TreeConfig('full', depth=depth, branching=2)
  return heads_cfg.tree


def _check_base(model, heads_cfg) -> None:
  if model.config.weights_dtype:
    raise ValueError(
      "drafter 'medusa' knows its model by its weights, which are not the same "
      f'in {model.config.weights_dtype}; load the model without weights_dtype'
    )
  flat = fused.split(params_lib.flatten(model.base), model.config)
  if fused.of_kernels(model.layout) == 'out_in':
    flat = params_lib.transpose_kernels(flat)
  checkpoint.check_base(heads_cfg, flat, model.config)


@functools.lru_cache(maxsize=2)
def _load(path: str, dtype: str, written: int) -> Any:
  """Nested weights on device; once for all decoders."""
  del written  # Heads that were written anew are read anew.
  flat, _ = checkpoint.load_heads(path)
  arrays = {name: jnp.asarray(leaf, dtype) for name, leaf in flat.items()}
  return jax.block_until_ready(params_lib.unflatten(arrays))


class Medusa:
  """The tree of the heads' best tokens at the last accepted token.

  Head j stands for stream j: from its logits on, drafts are made as
  `streams.Streams` makes them. The heads' weights are `params.drafter`.
  """

  with_streams = False

  def __init__(
    self,
    heads: heads_lib.Built,
    cfg: config.TreeConfig,
    options: config_drafting.DrafterConfig | None = None,
  ):
    """Raises ValueError if the tree does not fit the heads or the drafting.

    Args:
      heads: structure of the heads.
      cfg: the tree.
      options: how drafts are picked, and for which verifier.
    """
    check_tree(cfg, heads.num_heads)
    self.heads = heads
    self._drafts = streams.Streams(
      cfg, heads.num_heads, options or config_drafting.DrafterConfig('medusa')
    )
    self.size = cfg.size
    self.max_depth = cfg.max_depth

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> tuple[()]:
    """No state."""
    del params, prompts, prompt_lengths
    return ()

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The tree of the leaf's heads; those below the tree are left out."""
    heads = self.heads.merge(params.drafter)
    said = interface.StreamLogits(heads.logits(context.hidden, self.max_depth))
    return self._drafts.grow(said, params, context, state), state


def check_tree(cfg: config.TreeConfig, num_heads: int) -> None:
  """Raises ValueError if the tree is deeper than there are heads, or pruned."""
  checks.check(
    cfg.max_depth <= num_heads,
    f'draft tree has depth {cfg.max_depth} but there are {num_heads} Medusa '
    f'heads; use tree depth <= {num_heads} or train with num_heads >= '
    f'{cfg.max_depth}',
  )
  checks.check(
    not cfg.keep_nodes,
    f'TreeConfig.keep_nodes is {cfg.keep_nodes} but Medusa has no pruning '
    'adapter; use keep_nodes=0',
  )


def best_choices(accuracies: np.ndarray, num_nodes: int) -> topology.Paths:
  """The static tree of highest expected accept length (section 2.3.3).

  A node is accepted with the product of the accuracies along its path, taken
  as independent, and their sum over the nodes is the expected accept length.
  No node outscores its parent, so the greedy choice of one node after the other
  is the best.

  Args:
    accuracies: [J, K], how often the token of rank k (from 0) of head j is the
      true one.
    num_nodes: M, at least 2; fewer if there are not so many of accuracy > 0.

  Returns:
    Rank paths, parents first.

  Raises:
    ValueError: no accuracy of head 0 is above zero.
  """
  accuracies = np.asarray(accuracies, float)
  depth = len(accuracies)
  chosen: list[tuple[int, ...]] = []
  checks.check(
    accuracies[0].max() > 0,
    'head 0 was never right on the calibration records, so that no tree helps; '
    'train longer, or calibrate on records of the same task',
  )
  candidates: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
  while candidates and len(chosen) < num_nodes:
    score, path = heapq.heappop(candidates)
    chosen.append(path)
    if len(path) < depth:
      for rank, accuracy in enumerate(accuracies[len(path)]):
        if accuracy > 0:
          heapq.heappush(candidates, (score * accuracy, (*path, rank)))
  return tuple(sorted(chosen[1:], key=lambda path: (len(path), path)))
