# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: (state, base, batch) -> (state, metrics), pure.

Only adapter weights are differentiated; the base goes in and never comes out.
"""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from specstream_jax import arrays, config, partitioning
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import build, forward, params as params_lib
from specstream_jax.training import (
  accumulation,
  anchors as anchors_lib,
  objective,
)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['step', 'adapter', 'opt_state'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a checkpoint holds.

  Attributes:
    step: int32 scalar, optimiser steps done (micro-steps when accumulating).
    adapter: nested dict of float32 adapter weights.
    opt_state: optax state.
  """

  step: arrays.Array
  adapter: arrays.Params
  opt_state: Any


def make_optimizer(
  cfg: config.OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """AdamW, warm-up then linear decay, clipping, a rate of its own for P_j.

  Paper: learning rate 5e-4, linear. Here stream embeddings get their own,
  larger rate, because they live at the scale of the hidden state.

  Args:
    cfg: rates and moments.
    num_steps: micro-steps of the run; the schedule counts updates.
  """
  updates = -(-num_steps // cfg.accumulation_steps)
  warmup = min(cfg.warmup_steps, updates - 1)

  def adamw(rate: float, decay: float) -> optax.GradientTransformation:
    schedule = optax.join_schedules(
      [
        optax.linear_schedule(0.0, rate, warmup),
        optax.linear_schedule(rate, 0.0, updates - warmup),
      ],
      [warmup],
    )
    return optax.adamw(schedule, b1=cfg.beta1, b2=cfg.beta2, weight_decay=decay)

  optimizer = optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm),
    optax.multi_transform(
      {
        'embedding': adamw(cfg.embedding_learning_rate, 0.0),
        'other': adamw(cfg.learning_rate, cfg.weight_decay),
        'frozen': optax.set_to_zero(),
      },
      functools.partial(_labels, trainable=cfg.trainable),
    ),
  )
  if cfg.accumulation_steps > 1:
    return accumulation.accumulate(optimizer, cfg.accumulation_steps, num_steps)
  return optax.with_extra_args_support(optimizer)


def _labels(adapter: arrays.Params, trainable: str) -> Any:
  """'embedding' for P_j, 'frozen' or 'other', in the adapter's structure."""

  def label(keys, _):
    path = '/'.join(str(entry.key) for entry in keys)
    if not is_trainable(path, trainable):
      return 'frozen'
    return 'embedding' if path == 'streams/embedding' else 'other'

  return jax.tree_util.tree_map_with_path(label, adapter)


def train_step(
  state: TrainState,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  group: dict[str, arrays.Array] | None = None,
  *,
  built: build.Built,
  optimizer: optax.GradientTransformationExtraArgs,
  cfg: config.ObjectiveConfig,
  seed: int,
  remat: str = 'none',
  trainable: str = '',
) -> tuple[TrainState, dict[str, tuple[arrays.Array, arrays.Array]]]:
  """One gradient step; keys derive from (seed, step), so a resume repeats it.

  Args:
    state: weights and moments.
    base: nested base weights.
    batch: the batch contract, arrays [B, T].
    group: sums of `weigh` over the batches that make one update with this one;
      None takes this batch's proportions for theirs.
    built: structure of the model.
    optimizer: of `make_optimizer`.
    cfg: weights and chunking of the loss.
    seed: of the anchors.
    remat: a name of `blocks.REMAT`.
    trainable: see `OptimizerConfig`.

  Returns:
    The new state and metrics as (sum, weight) pairs, with `loss/total` and
    `gradient_norm` among them.
  """

  def loss(adapter, key, norms):
    model = built.merge(base, freeze(adapter, trainable))
    return objective.loss(
      model, batch, key, cfg, remat=remat, norms=norms, step=state.step
    )

  return gradient_step(
    state, loss, batch, group, optimizer=optimizer, seed=seed
  )


def step_key(seed: int, step: arrays.Array) -> arrays.Array:
  """PRNG key of a step."""
  return jax.random.fold_in(jax.random.key(seed), step)


def weigh(
  batch: dict[str, arrays.Array],
  step: arrays.Array,
  *,
  cfg: config.ObjectiveConfig,
  num_streams: int,
  seed: int,
) -> dict[str, arrays.Array]:
  """Weight of each term of the loss on a batch at a step, and its targets."""
  found = objective.term_weights(batch, step_key(seed, step), cfg, num_streams)
  return found | {accumulation.TARGETS: accumulation.targets(batch)}


def is_trainable(path: str, trainable: str) -> bool:
  """Whether `OptimizerConfig.trainable` lets the weight at `path` move."""
  return not trainable or re.search(trainable, path) is not None


def freeze(adapter: arrays.Params, trainable: str) -> arrays.Params:
  """The adapter, without gradient where `trainable` does not match."""
  return params_lib.unflatten(
    {
      path: leaf
      if is_trainable(path, trainable)
      else jax.lax.stop_gradient(leaf)
      for path, leaf in params_lib.flatten(adapter).items()
    }
  )


def gradient_step(
  state: TrainState,
  loss: Callable[..., Any],
  batch: dict[str, arrays.Array],
  group: dict[str, arrays.Array] | None,
  *,
  optimizer: optax.GradientTransformationExtraArgs,
  seed: int,
) -> tuple[TrainState, dict[str, tuple[arrays.Array, arrays.Array]]]:
  """One step down a loss; see `train_step`.

  The loss is (adapter, key, norms) -> (scalar, metrics).
  """
  (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
    state.adapter,
    step_key(seed, state.step),
    accumulation.norms(batch, group),
  )
  updates, opt_state = optimizer.update(
    gradient,
    state.opt_state,
    state.adapter,
    weight=accumulation.targets(batch),
  )
  adapter: Any = optax.apply_updates(state.adapter, updates)
  one = jnp.ones(())
  metrics['loss/total'] = (total, one)
  metrics['gradient_norm'] = (optax.tree.norm(gradient), one)
  metrics['tokens'] = ((batch['decoder_segment_ids'] > 0).sum(), one)
  return TrainState(state.step + 1, adapter, opt_state), metrics


def eval_step(
  adapter: arrays.Params,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  *,
  built: build.Built,
  cfg: config.ObjectiveConfig,
  tree: config.TreeConfig,
  tree_anchors: int = 16,
) -> dict[str, tuple[arrays.Array, arrays.Array]]:
  """The objective's metrics, and tokens per call of the actual draft tree.

  `tokens_per_call` follows the targets, as if the main stream always agreed
  with them: at `tree_anchors` anchors a row, the tree is built from the stream
  logits and walked along the true continuation. All of its nodes: which of them
  `keep_nodes` would leave is not known before their own pass.
  """
  model = built.merge(base, adapter)
  key = jax.random.key(0)
  # All streams of the anchors: what they score does not depend on the budget.
  cfg = dataclasses.replace(cfg, stream_tokens=0, curriculum_steps=0)
  _, metrics = objective.loss(model, batch, key, cfg)
  anchors, scale = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], tree_anchors
  )
  num_streams = model.stream_settings.num_streams
  targets, weights = anchors_lib.stream_targets(batch, anchors, num_streams)
  hidden = forward.forward_train(
    model,
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
    anchors,
  )
  assert hidden.streams is not None  # there are anchors
  by_anchor = jax.lax.map(model.logits, hidden.streams.swapaxes(0, 1))
  logits = by_anchor.swapaxes(0, 1)  # [B, A, J, V]
  edges = None
  if model.stream_settings.coupling_rank and tree.kind == 'best_first':
    states = hidden.streams.reshape(-1, *hidden.streams.shape[2:])
    edges = tree_lib.coupled_edges(model.coupling_logits, states)
  metrics['tokens_per_call'] = tokens_per_call(
    logits, targets, weights, scale, tree, edges
  )
  return metrics


def tokens_per_call(
  logits: arrays.Array,
  targets: arrays.Array,
  weights: arrays.Array,
  scale: arrays.Array,
  tree: config.TreeConfig,
  edge_scores: tree_lib.EdgeScores | None = None,
) -> tuple[arrays.Array, arrays.Array]:
  """(sum, weight) of tokens per call at the anchors, if targets come true.

  Args:
    logits: [B, A, J, V].
    targets: int32 [B, A, J + 1], see `anchors.stream_targets`.
    weights: float32 [B, A, J + 1].
    scale: float32 [B, A], 0 for filler.
    tree: the draft tree.
    edge_scores: of `tree_lib.from_stream_logits`.
  """
  truth = jnp.where(weights > 0, targets, -1)
  rows = lambda y: y.reshape(-1, *y.shape[2:])
  roots = rows(truth)[:, 0]
  trees = tree_lib.from_stream_logits(
    rows(logits), roots, tree, edge_scores=edge_scores, before_root=roots
  )
  accepted = tree_lib.tree_hits(trees, rows(truth)[:, 1:])
  weight = (scale > 0).reshape(-1)
  total = weight.sum().astype(jnp.float32)
  return ((1 + accepted) * weight).sum(), total


def init_state(
  adapter: arrays.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """State at step 0; the adapter is copied, because steps donate the state."""
  adapter = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), adapter)
  return TrainState(jnp.zeros((), jnp.int32), adapter, optimizer.init(adapter))


def place_state(
  state: TrainState, partitioner: partitioning.Partitioner
) -> TrainState:
  """The state on the mesh: moments lie with their weights, counts everywhere.

  Args:
    state: the same in every process.
    partitioner: has rules for every weight.
  """
  where = state_shardings(state, partitioner)
  return jax.tree.map(partitioning.put_leaf, state, where)


def state_shardings(
  state: TrainState, partitioner: partitioning.Partitioner
) -> TrainState:
  """Where each leaf of a state, or of its shapes, lies."""
  shardings = partitioner.shardings(params_lib.flatten(state.adapter))

  def find(keys, leaf):
    """A moment's path ends with that of its weight."""
    names = [str(getattr(key, 'key', '')) for key in keys]
    paths = ('/'.join(names[i:]) for i in range(len(names)))
    path = next((p for p in paths if p in shardings), None)
    if path is None or not leaf.ndim:
      return partitioner.replicated
    return shardings[path]

  return jax.tree_util.tree_map_with_path(find, state)


def hidden_rms(
  built: build.Built,
  base: arrays.Params,
  batch: dict[str, arrays.Array],
  partitioner: partitioning.Partitioner,
) -> float:
  """RMS of the main stream at the insertion layer on real positions."""

  @partitioner.jit
  def rms(base, adapter, batch):
    """Float32 scalar over the positions of one batch."""
    model = built.merge(base, adapter)
    hidden = forward.forward_train(
      model,
      batch['decoder_input_tokens'],
      batch['decoder_positions'],
      batch['decoder_segment_ids'],
    ).insertion
    # The first position of a segment is an attention sink whose norm is
    # hundreds of times the others'; it carries no streams.
    real = (batch['decoder_segment_ids'] > 0) & (batch['decoder_positions'] > 0)
    square = jnp.mean(jnp.square(hidden.astype(jnp.float32)), axis=-1)
    return jnp.sqrt((square * real).sum() / real.sum())

  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), built.adapter)
  return float(rms(base, zeros, partitioner.put_batch(batch)))
