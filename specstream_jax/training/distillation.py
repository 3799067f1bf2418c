# SPDX-License-Identifier: Apache-2.0
"""Distilling a draft model from its target, the bottom of which it starts as.

    L = mean over t of KL(target(. | x_<=t) || draft(. | x_<=t))

at the positions that carry loss, as drafts are made nowhere else. Paper,
section 5, table 2: the two-model rival of Speculative Streaming, there a
checkpoint of its own. Here: made from the target, so that any target has one.

Axis letters: B rows, T positions, A anchors, J draft depths, D model width,
V vocabulary, R = any number of rows of the LM head products.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from specstream_jax import arrays, config
from specstream_jax.config import model as config_model
from specstream_jax.modeling import build, forward, transformer
from specstream_jax.training import (
  anchors as anchors_lib,
  objective,
  step as step_lib,
)

Metrics = dict[str, tuple[arrays.Array, arrays.Array]]


class Divergence(NamedTuple):
  """How far the draft model is from the target, per row of the heads.

  Attributes:
    kl: float32 [R], nats.
    rank: int32 [R], how many tokens the draft model scores above the target's
      best one; 0 = they agree.
  """

  kl: arrays.Array
  rank: arrays.Array


def sizes(cfg: config.ModelConfig, num_layers: int) -> config.ModelConfig:
  """Those of a draft model of a target; its weights train in float32.

  Raises:
    ValueError: the target has no more than so many layers.
  """
  if not 1 <= num_layers < cfg.num_layers:
    raise ValueError(
      f'draft_model_layers is {num_layers} but the target has {cfg.num_layers} '
      f'layers; accepted: 1 to {cfg.num_layers - 1}'
    )
  lowest = config_model.lowest_layers(cfg, num_layers)
  return dataclasses.replace(lowest, dtype='float32')


def truncate(
  cfg: config.ModelConfig, flat: arrays.FlatParams, num_layers: int
) -> tuple[config.ModelConfig, dict[str, arrays.Array]]:
  """The draft model to start from: embedding, first layers, norm and head.

  Args:
    cfg: of the target.
    flat: its base weights by path.
    num_layers: of the draft model.

  Raises:
    ValueError: the target has no more than so many layers.
  """
  draft_cfg = sizes(cfg, num_layers)
  is_kept = lambda path: (
    not path.startswith('layers/') or int(path.split('/')[1]) < num_layers
  )
  kept = {
    path: jnp.asarray(leaf, jnp.float32)
    for path, leaf in flat.items()
    if is_kept(path)
  }
  return draft_cfg, kept


def divergence(
  target: transformer.Transformer,
  draft: transformer.Transformer,
  target_hidden: arrays.Array,
  draft_hidden: arrays.Array,
  chunk_size: int,
) -> Divergence:
  """KL(target || draft) over V, `chunk_size` rows of the heads at a time.

  The logits of a chunk are recomputed in the backward pass, so that at most
  chunk_size * V of each model exist at once.

  Args:
    target: merged module, for its LM head.
    draft: likewise.
    target_hidden: [..., D] normalised hidden states.
    draft_hidden: [..., D] likewise, at the same positions.
    chunk_size: static.

  Returns:
    Arrays of the leading shape.
  """
  shape = draft_hidden.shape[:-1]
  hidden = [x.reshape(-1, x.shape[-1]) for x in (target_hidden, draft_hidden)]
  num_rows = hidden[0].shape[0]
  chunk_size = min(chunk_size, num_rows)
  num_chunks = -(-num_rows // chunk_size)
  pad = ((0, num_chunks * chunk_size - num_rows), (0, 0))
  split = lambda x: jnp.pad(x, pad).reshape(num_chunks, chunk_size, -1)

  @jax.checkpoint
  def chunk(target_rows, draft_rows):
    logits, draft_logits = target.logits(target_rows), draft.logits(draft_rows)
    target_log_probs = jax.nn.log_softmax(logits, axis=1)
    difference = target_log_probs - jax.nn.log_softmax(draft_logits, axis=1)
    kl = jnp.sum(jnp.exp(target_log_probs) * difference, axis=1)
    best = jnp.argmax(logits, axis=1, keepdims=True)
    score = jnp.take_along_axis(draft_logits, best, axis=1)
    rank = jnp.sum(draft_logits > score, axis=1, dtype=jnp.int32)
    return Divergence(kl, rank)

  result = jax.lax.map(lambda xs: chunk(*xs), tuple(map(split, hidden)))
  return jax.tree.map(lambda y: y.reshape(-1)[:num_rows].reshape(shape), result)


def loss(
  target: transformer.Transformer,
  draft: transformer.Transformer,
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  *,
  remat: str = 'none',
  norms: objective.Norms = None,
) -> tuple[arrays.Array, Metrics]:
  """Mean divergence at the anchors of one batch.

  Args:
    target: merged module, not differentiated.
    draft: merged module.
    batch: the batch contract, arrays [B, T].
    key: chooses anchors where a row has too many.
    cfg: anchors per row and chunking.
    remat: of the draft model's layers, a name of `blocks.REMAT`.
    norms: see `objective.loss`; the one term is called main.

  Returns:
    The scalar loss and metrics as (sum, weight) pairs: loss/main is the
    divergence, top1/main and top4/main how often the target's best token is
    the draft model's best, or among its four best.
  """
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  weights = scale * jnp.take_along_axis(
    batch['decoder_loss_weights'], anchors, axis=1
  )
  pick = lambda x: jnp.take_along_axis(x, anchors[..., None], axis=1)
  target_hidden = jax.lax.stop_gradient(hidden_states(target, batch))
  draft_hidden = hidden_states(draft, batch, remat=remat)
  result = divergence(
    target, draft, pick(target_hidden), pick(draft_hidden), cfg.chunk_size
  )
  total = weights.sum()
  mean = lambda value: ((value * weights).sum(), total)
  metrics = {
    'loss/main': mean(result.kl),
    'top1/main': mean(result.rank < 1),
    'top4/main': mean(result.rank < 4),
  }
  return objective.mean(metrics['loss/main'], 'main', norms), metrics


def hidden_states(
  model: transformer.Transformer,
  batch: dict[str, arrays.Array],
  *,
  remat: str = 'none',
) -> arrays.Array:
  """Normalised hidden states [B, T, D] on a batch."""
  return forward.forward_train(
    model,
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
    remat=remat,
  ).main


def steps(
  setup: Any,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  draft: build.Built,
) -> tuple[Callable, Callable, Callable]:
  """What `loop.TrainSetup.steps` asks for.

  In `setup`, built and base are the target's, adapter is the draft model.

  Args:
    setup: a `loop.TrainSetup`.
    optimizer: of the draft model's weights.
    draft: structure of the draft model.
  """
  advance = functools.partial(
    train_step,
    target=setup.built,
    draft=draft,
    optimizer=optimizer,
    cfg=setup.objective,
    seed=setup.train.seed,
    remat=setup.remat,
  )
  measure = functools.partial(
    eval_step,
    target=setup.built,
    draft=draft,
    cfg=setup.objective,
    tree=setup.tree,
  )
  weigh = functools.partial(
    step_lib.weigh, cfg=setup.objective, num_streams=0, seed=setup.train.seed
  )
  return advance, measure, weigh


def train_step(
  state: step_lib.TrainState,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  group: dict[str, arrays.Array] | None = None,
  *,
  target: build.Built,
  draft: build.Built,
  optimizer: optax.GradientTransformationExtraArgs,
  cfg: config.ObjectiveConfig,
  seed: int,
  remat: str = 'none',
) -> tuple[step_lib.TrainState, Metrics]:
  """One gradient step of the draft model; see `step.train_step`."""

  def batch_loss(weights, key, norms):
    models = target.merge(base, {}), draft.merge(weights, {})
    return loss(*models, batch, key, cfg, remat=remat, norms=norms)

  return step_lib.gradient_step(
    state, batch_loss, batch, group, optimizer=optimizer, seed=seed
  )


def eval_step(
  weights: arrays.Params,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  *,
  target: build.Built,
  draft: build.Built,
  cfg: config.ObjectiveConfig,
  tree: config.TreeConfig,
  tree_anchors: int = 16,
) -> Metrics:
  """The metrics of `loss`, and tokens per call along the true continuation.

  `tokens_per_call` means what it means for streams (`step.eval_step`): as if
  the target agreed with the text. A chain is exactly what would be drafted;
  of a wider tree, nodes beside the text are ranked by the law on the text.
  """
  models = target.merge(base, {}), draft.merge(weights, {})
  key = jax.random.key(0)
  _, metrics = loss(*models, batch, key, cfg)
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], tree_anchors
  )
  depth = tree.max_depth
  targets, truth_weights = anchors_lib.stream_targets(batch, anchors, depth)
  hidden = hidden_states(models[1], batch)
  offsets = 1 + jnp.arange(depth)
  ahead = anchors[..., None] + offsets[None, None]  # [B, A, J]
  ahead = jnp.minimum(ahead, hidden.shape[1] - 1).reshape(len(anchors), -1)
  hidden = jnp.take_along_axis(hidden, ahead[..., None], axis=1)
  logits = jax.lax.map(models[1].logits, hidden)
  metrics['tokens_per_call'] = step_lib.tokens_per_call(
    logits.reshape(*anchors.shape, depth, -1),
    targets,
    truth_weights,
    scale,
    tree,
  )
  return metrics
