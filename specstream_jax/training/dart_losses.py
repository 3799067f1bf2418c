# SPDX-License-Identifier: Apache-2.0
"""A DART layer (arXiv 2601.19278) learns what its target says, tokens ahead.

    L = sum_j a_j mean over t of KL(target(. | x_<=t+j) || draft_j(t)),
    a_j = decay^(j - 1)

Draft j of the anchor at t stands for stream j: both predict the token at
t + 1 + j, at the same anchors, and the metrics bear the same names. The target
runs forward alone, and so does its LM head, which both use. Here: the plain
divergence; the paper anneals it.

Axis letters: B rows, T positions, A anchors, J drafts, D model width,
V vocabulary.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import (
  build,
  dart as dart_lib,
  masks,
  transformer,
)
from specstream_jax.training import (
  anchors as anchors_lib,
  distillation,
  objective,
  step as step_lib,
)

Metrics = dict[str, tuple[arrays.Array, arrays.Array]]


def loss(
  target: transformer.Transformer,
  dart: dart_lib.Dart,
  num_drafts: int,
  hidden: arrays.Array,
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  *,
  norms: objective.Norms = None,
) -> tuple[arrays.Array, Metrics]:
  """The objective on one batch.

  Args:
    target: merged module, not differentiated.
    dart: merged module.
    num_drafts: J.
    hidden: [B, T, D] of the target, normalised; no gradient flows into it.
    batch: the batch contract, arrays [B, T].
    key: chooses anchors where a row has too many.
    cfg: `stream_weights` are a_j; chunking.
    norms: see `objective.loss`.

  Returns:
    The scalar loss (float32, mean over targets per draft, then weighted) and
    metrics as (sum, weight) pairs for x in stream_1 …: loss/x is the
    divergence, top1/x and top4/x how often the target's best token is the
    draft's best, or among its four best.
  """
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  _, weights = anchors_lib.stream_targets(batch, anchors, num_drafts)
  weights *= scale[..., None]
  states = drafted(target, dart, num_drafts, hidden, batch, anchors)
  ahead = anchors[..., None] + 1 + jnp.arange(num_drafts)[None, None]
  ahead = jnp.minimum(ahead, hidden.shape[1] - 1)
  said = jax.lax.stop_gradient(anchors_lib.take(hidden, ahead))
  result = distillation.divergence(
    target, target, said, states.astype(said.dtype), cfg.chunk_size
  )
  total, metrics = jnp.zeros(()), {}
  names = objective.stream_names(num_drafts)[1:]
  values = {
    'loss': result.kl,
    'top1': result.rank < 1,
    'top4': result.rank < 4,
  }
  for j, (a, name) in enumerate(
    zip(cfg.stream_weights(num_drafts), names, strict=True)
  ):
    weight = weights[..., j + 1]
    for kind, value in values.items():
      summed = (value[..., j] * weight).sum()
      metrics[f'{kind}/{name}'] = summed, weight.sum()
    total += a * objective.mean(metrics[f'loss/{name}'], name, norms)
  return total, metrics


def drafted(
  target: transformer.Transformer,
  dart: dart_lib.Dart,
  num_drafts: int,
  hidden: arrays.Array,
  batch: dict[str, arrays.Array],
  anchors: arrays.Array,
) -> arrays.Array:
  """States [B, A, J, D] of the drafts at anchors [B, A].

  As in decoding: the anchor is the leaf, the token after it the root.
  """
  positions = batch['decoder_positions']
  pick = lambda values: anchors_lib.take(values, anchors)
  tokens = batch['decoder_input_tokens']
  hidden = jax.lax.stop_gradient(hidden)
  embed = lambda tokens, at: jax.lax.stop_gradient(target.inputs(tokens, at))
  prefix = dart.prefix(hidden, embed(tokens, positions), positions)
  visible = masks.segment_mask(batch['decoder_segment_ids'])
  visible = jnp.take_along_axis(visible, anchors[..., None], axis=1)
  roots = pick(batch['decoder_target_tokens'])
  places = pick(positions) + 1
  return dart.drafts(
    pick(hidden),
    embed(roots, places),
    places,
    prefix.by_head(),
    visible,
    num_drafts,
  )


def mean_state(
  built: build.Built, base: arrays.Params, batch: dict[str, arrays.Array]
) -> arrays.Array:
  """Mean [D] of the target's last states, scaled to an RMS of one each.

  Over the positions of a batch that carry loss; masks start there.
  """
  hidden = distillation.hidden_states(built.merge(base, {}), batch)
  hidden = hidden.astype('float32')
  hidden *= jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True))
  counts = (batch['decoder_loss_weights'] > 0)[..., None]
  return jnp.sum(hidden * counts, (0, 1)) / jnp.maximum(counts.sum(), 1)


def train_step(
  state: step_lib.TrainState,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  group: dict[str, arrays.Array] | None = None,
  *,
  built: build.Built,
  dart: dart_lib.Built,
  optimizer: Any,
  cfg: config.ObjectiveConfig,
  seed: int,
) -> tuple[step_lib.TrainState, Metrics]:
  """One gradient step of the layer; arguments as in `step.train_step`."""
  target = built.merge(base, {})
  hidden = distillation.hidden_states(target, batch)

  def batch_loss(weights, key, norms):
    return loss(
      target,
      dart.merge(weights),
      dart.num_drafts,
      hidden,
      batch,
      key,
      cfg,
      norms=norms,
    )

  return step_lib.gradient_step(
    state, batch_loss, batch, group, optimizer=optimizer, seed=seed
  )


def eval_step(
  weights: arrays.Params,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  *,
  built: build.Built,
  dart: dart_lib.Built,
  cfg: config.ObjectiveConfig,
  tree: config.TreeConfig,
  tree_anchors: int = 16,
) -> Metrics:
  """The objective's metrics, and tokens per call; see `step.eval_step`."""
  target, module = built.merge(base, {}), dart.merge(weights)
  key, count = jax.random.key(0), dart.num_drafts
  hidden = distillation.hidden_states(target, batch)
  _, metrics = loss(target, module, count, hidden, batch, key, cfg)
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], tree_anchors
  )
  targets, target_weights = anchors_lib.stream_targets(batch, anchors, count)
  states = drafted(target, module, count, hidden, batch, anchors)
  logits = jax.lax.map(target.logits, states)  # [B, A, J, V]
  metrics['tokens_per_call'] = step_lib.tokens_per_call(
    logits, targets, target_weights, scale, tree
  )
  return metrics


def steps(
  dart: dart_lib.Built, setup: Any, optimizer: Any
) -> tuple[Callable, Callable, Callable]:
  """Steps of a run, not compiled yet; see `loop.stream_steps`.

  Args:
    dart: structure of the layer, whose weights are the run's `adapter`.
    setup: the run's `loop.TrainSetup`; its model is built without an adapter.
    optimizer: of the run.
  """
  shared = {'built': setup.built, 'dart': dart, 'cfg': setup.objective}
  advance = functools.partial(
    train_step, optimizer=optimizer, seed=setup.train.seed, **shared
  )
  measure = functools.partial(eval_step, tree=setup.tree, **shared)
  weigh = functools.partial(
    step_lib.weigh,
    cfg=setup.objective,
    num_streams=dart.num_drafts,
    seed=setup.train.seed,
  )
  return advance, measure, weigh
