# SPDX-License-Identifier: Apache-2.0
"""Medusa-1 (arXiv 2401.10774, section 2.2.1): heads on a frozen model.

    L = - sum_j a_j sum_t log p_j(y_{t+2+j}),  a_j = 0.8^j

Head j (from 0) has the targets of stream j, at the same anchors, and its
metrics bear the same names, so that their curves can be laid over each other.

Axis letters: B rows, T positions, A anchors, J heads, K ranks, D model width,
V vocabulary.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import build, forward, heads as heads_lib
from specstream_jax.training import (
  anchors as anchors_lib,
  losses,
  objective,
  step as step_lib,
)

Metrics = dict[str, tuple[arrays.Array, arrays.Array]]


def loss(
  heads: heads_lib.Medusa,
  hidden: arrays.Array,
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  *,
  norms: objective.Norms = None,
) -> tuple[arrays.Array, Metrics]:
  """The objective on one batch.

  Args:
    heads: merged module.
    hidden: [B, T, D] normalised main stream; no gradient flows into it.
    batch: the batch contract, arrays [B, T].
    key: chooses anchors where a row has too many.
    cfg: `stream_weights` are a_j; chunking.
    norms: see `objective.loss`.

  Returns:
    The scalar loss (float32, mean over targets per head, then weighted) and
    metrics as (sum, weight) pairs: loss/x, top1/x, top4/x for x in stream_1 …
  """
  num_heads = len(heads.heads)
  ranked = _ranked(heads, hidden, batch, key, cfg)
  total, metrics = jnp.zeros(()), {}
  names = objective.stream_names(num_heads)[1:]
  for a, name, (result, weight) in zip(
    cfg.stream_weights(num_heads), names, ranked, strict=True
  ):
    values = {'loss': result.nll, 'top1': result.rank < 1}
    values['top4'] = result.rank < 4
    for kind, value in values.items():
      metrics[f'{kind}/{name}'] = ((value * weight).sum(), weight.sum())
    total += a * objective.mean(metrics[f'loss/{name}'], name, norms)
  return total, metrics


def _ranked(heads, hidden, batch, key, cfg):
  """(TokenLoss, weights), each [B, A], per head."""
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  targets, weights = anchors_lib.stream_targets(
    batch, anchors, len(heads.heads)
  )
  weights *= scale[..., None]
  picked = jnp.take_along_axis(hidden, anchors[..., None], axis=1)
  picked = jax.lax.stop_gradient(picked)
  for j, head in enumerate(heads.heads):
    result = losses.token_loss(
      head, picked, targets[..., j + 1], cfg.chunk_size
    )
    yield result, weights[..., j + 1]


def main_hidden(
  built: build.Built, base: arrays.Params, batch: dict[str, arrays.Array]
) -> arrays.Array:
  """[B, T, D] normalised main stream of the model without an adapter."""
  return forward.forward_train(
    built.merge(base, {}),
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
  ).main


def train_step(
  state: step_lib.TrainState,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  group: dict[str, arrays.Array] | None = None,
  *,
  built: build.Built,
  heads: heads_lib.Built,
  optimizer: Any,
  cfg: config.ObjectiveConfig,
  seed: int,
) -> tuple[step_lib.TrainState, Metrics]:
  """One gradient step of the heads; the model only runs forward.

  Arguments as in `step.train_step`.
  """
  hidden = main_hidden(built, base, batch)

  def head_loss(weights, key, norms):
    return loss(heads.merge(weights), hidden, batch, key, cfg, norms=norms)

  return step_lib.gradient_step(
    state, head_loss, batch, group, optimizer=optimizer, seed=seed
  )


def eval_step(
  weights: arrays.Params,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  *,
  built: build.Built,
  heads: heads_lib.Built,
  cfg: config.ObjectiveConfig,
  tree: config.TreeConfig,
  tree_anchors: int = 16,
) -> Metrics:
  """The objective's metrics, and tokens per call; see `step.eval_step`."""
  module, key = heads.merge(weights), jax.random.key(0)
  hidden = main_hidden(built, base, batch)
  _, metrics = loss(module, hidden, batch, key, cfg)
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], tree_anchors
  )
  targets, target_weights = anchors_lib.stream_targets(
    batch, anchors, heads.num_heads
  )
  picked = jnp.take_along_axis(hidden, anchors[..., None], axis=1)
  logits = jax.lax.map(module.logits, picked)  # [B, A, J, V]
  metrics['tokens_per_call'] = step_lib.tokens_per_call(
    logits, targets, target_weights, scale, tree
  )
  return metrics


def rank_counts(
  weights: arrays.Params,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  *,
  built: build.Built,
  heads: heads_lib.Built,
  cfg: config.ObjectiveConfig,
  num_ranks: int,
) -> dict[str, tuple[arrays.Array, arrays.Array]]:
  """How often the token of each rank is the true one, for calibration.

  Returns:
    'accuracy' -> (float32 [J, K] targets of each rank, [J, K] all targets).
  """
  hidden = main_hidden(built, base, batch)
  hits, totals = [], []
  ranks = jnp.arange(num_ranks)
  for result, weight in _ranked(
    heads.merge(weights), hidden, batch, jax.random.key(0), cfg
  ):
    is_rank = result.rank[..., None] == ranks[None, None]
    hits.append((is_rank * weight[..., None]).sum(axis=(0, 1)))
    totals.append(jnp.full(num_ranks, weight.sum()))
  return {'accuracy': (jnp.stack(hits), jnp.stack(totals))}


def steps(
  heads: heads_lib.Built, setup: Any, optimizer: Any
) -> tuple[Callable, Callable, Callable]:
  """Steps of a run, not compiled yet; see `loop.stream_steps`.

  Args:
    heads: structure of the heads, whose weights are the run's `adapter`.
    setup: the run's `loop.TrainSetup`; its model is built without an adapter.
    optimizer: of the run.
  """
  shared = {'built': setup.built, 'heads': heads, 'cfg': setup.objective}
  advance = functools.partial(
    train_step, optimizer=optimizer, seed=setup.train.seed, **shared
  )
  measure = functools.partial(eval_step, tree=setup.tree, **shared)
  weigh = functools.partial(
    step_lib.weigh,
    cfg=setup.objective,
    num_streams=heads.num_heads,
    seed=setup.train.seed,
  )
  return advance, measure, weigh
