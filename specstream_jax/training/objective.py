# SPDX-License-Identifier: Apache-2.0
"""The n-gram objective (paper, eq. 5), at the positions that carry loss.

    L = - a_0 sum_t log p(y_t) - sum_j a_j sum_t log p_j(y_{t+j})

Streams, and the LM head, run at anchors only: positions whose next token is a
target. The groups of different anchors are independent given the main stream,
so leaving the others out is exact, and a random subset is unbiased.

Axis letters: B rows, T positions, A anchors, J streams, D model width,
V vocabulary, R = any number of rows of the LM head product.
"""

from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config, partitioning
from specstream_jax.modeling import forward, transformer

# What the sum of a term of the loss is divided by, by its name.
Norms = Mapping[str, arrays.Array] | None


class TokenLoss(NamedTuple):
  """Per-row result of the vocabulary softmax.

  Attributes:
    nll: float32 [R], -log p(target).
    rank: int32 [R], how many tokens outscore the target; 0 = top-1 hit.
  """

  nll: arrays.Array
  rank: arrays.Array


def choose_anchors(
  key: arrays.Array, weights: arrays.Array, num_anchors: int
) -> tuple[arrays.Array, arrays.Array]:
  """Positions that carry loss; a uniform subset where there are too many.

  Args:
    key: PRNG key of this step.
    weights: float32 [B, T] loss weights.
    num_anchors: A, static.

  Returns:
    (anchors [B, A] int32, sorted; scale [B, A] float32: 0 for filler, else
    the row's positions with loss / anchors taken, which keeps sums unbiased).
  """
  num_anchors = min(num_anchors, weights.shape[1])
  carries = weights > 0
  noise = jax.random.uniform(key, weights.shape)
  _, anchors = jax.lax.top_k(jnp.where(carries, 1 + noise, 0.0), num_anchors)
  anchors = jnp.sort(anchors, axis=1)
  taken = jnp.take_along_axis(carries, anchors, axis=1)
  total = carries.sum(axis=1, keepdims=True)
  kept = jnp.maximum(taken.sum(axis=1, keepdims=True), 1)
  return anchors, taken * (total / kept)


def stream_targets(
  batch: dict[str, arrays.Array], anchors: arrays.Array, num_streams: int
) -> tuple[arrays.Array, arrays.Array]:
  """Targets and weights [B, A, J + 1] of the main stream (0) and streams.

  Stream j of the anchor at t predicts the token at t + 1 + j. Its weight is 0
  past the end of the row, across a segment end, and where that token carries
  no loss itself.
  """
  offsets = jnp.arange(num_streams + 1)
  index = anchors[..., None] + offsets[None, None]  # [B, A, J + 1]
  length = batch['decoder_target_tokens'].shape[1]
  inside, index = index < length, jnp.minimum(index, length - 1)
  flat = index.reshape(index.shape[0], -1)
  pick = lambda name: jnp.take_along_axis(batch[name], flat, axis=1).reshape(
    index.shape
  )
  segments = pick('decoder_segment_ids')
  same = inside & (segments == segments[..., :1])
  return pick('decoder_target_tokens'), pick('decoder_loss_weights') * same


def token_loss(
  model: transformer.Transformer,
  hidden: arrays.Array,
  targets: arrays.Array,
  chunk_size: int,
) -> TokenLoss:
  """Softmax cross-entropy over V, `chunk_size` rows of it at a time.

  The logits of a chunk are recomputed in the backward pass, so that at most
  chunk_size * V of them exist at once on a device.

  Args:
    model: merged module, for its LM head.
    hidden: [..., D] normalised hidden states.
    targets: int32 [...].
    chunk_size: static.

  Returns:
    nll and rank shaped like `targets`.
  """

  @jax.checkpoint
  def chunk(hidden, targets):
    logits = model.logits(hidden)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - target[..., 0]
    return TokenLoss(nll, jnp.sum(logits > target, axis=-1, dtype=jnp.int32))

  return _by_chunks(chunk, (hidden, targets), targets.shape, chunk_size)


def _by_chunks(fun, arrays, shape, chunk_size):
  """fun over `arrays` [B, ..., *rest], `chunk_size` rows a device at a time.

  A chunk takes as many from each row of the batch, so that a batch that is
  split over devices stays where it is. Chunks are per device, for each of them
  gathers the head once more where that is split.

  Args:
    fun: [B, c, *rest] of each array -> tree of [B, c].
    arrays: leading axes as in `shape`.
    shape: (B, ...) of the result.
    chunk_size: most of B * c on a device, and c is at least 1.
  """
  batch, count = shape[0], math.prod(shape[1:])
  ways = partitioning.num_shards('batch', batch)
  size = min(max(chunk_size * ways // batch, 1), count)
  pad = -count % size

  def split(x):
    x = x.reshape(batch, count, *x.shape[len(shape) :])
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

  inputs = tuple(map(split, arrays))
  keep = lambda x: partitioning.constrain(
    x, None, 'batch', *(None,) * (x.ndim - 2)
  )
  result = jax.lax.map(lambda xs: fun(*xs), jax.tree.map(keep, inputs))
  join = lambda y: y.swapaxes(0, 1).reshape(batch, -1)[:, :count].reshape(shape)
  return jax.tree.map(join, result)


def loss(
  model: transformer.Transformer,
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  *,
  remat: str = 'none',
  norms: Norms = None,
) -> tuple[arrays.Array, dict[str, tuple[arrays.Array, arrays.Array]]]:
  """The objective on one batch.

  Args:
    model: merged module with streams.
    batch: the batch contract, arrays [B, T].
    key: chooses anchors where a row has too many.
    cfg: weights and chunking.
    remat: a name of `blocks.REMAT`.
    norms: what the sum of each term is divided by; None takes its own weight.

  Returns:
    The scalar loss (float32, mean over targets per stream, then weighted) and
    metrics as (sum, weight) pairs: loss/x, top1/x, top4/x for x in main,
    stream_1 …, pruning, coupled_1 …. Where no stream has a weight, no streams
    run, and the step is that of plain LoRA.
  """
  num_streams = model.stream_settings.num_streams
  has_streams = any(cfg.stream_weights(num_streams))
  num_streams = num_streams if has_streams else 0
  anchors, scale = choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  targets, weights = stream_targets(batch, anchors, num_streams)
  weights *= scale[..., None]
  hidden = forward.forward_train(
    model,
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
    anchors if has_streams else None,
    remat=remat,
  )
  main = jnp.take_along_axis(hidden.main, anchors[..., None], axis=1)
  result = _losses(
    model, main[:, :, None], hidden.streams, targets, cfg.chunk_size
  )
  metrics = _metrics(result, weights)
  coefficients = (cfg.main_weight, *cfg.stream_weights(num_streams))
  total = jnp.zeros(())
  for a, name in zip(coefficients, stream_names(num_streams)):
    total += a * mean(metrics[f'loss/{name}'], name, norms)
  extra, metrics = _extras(
    model, hidden, anchors, targets, weights, metrics, coefficients, cfg, norms
  )
  return total + extra, metrics


def _extras(
  model, hidden, anchors, targets, weights, metrics, coefficients, cfg, norms
):
  """What teacher, coupling and pruning adapter add to loss and metrics."""
  total, has_streams = 0.0, hidden.streams is not None
  if cfg.teacher_weight and has_streams:
    extra, metrics = _teach(
      model, hidden, anchors, weights, metrics, cfg, norms
    )
    total += cfg.teacher_weight * extra
  if model.stream_cfg.coupling_rank and cfg.coupling_weight and has_streams:
    extra, coupling = _coupling_loss(
      model, hidden.streams, targets, weights, coefficients, cfg, norms
    )
    total, metrics = total + cfg.coupling_weight * extra, metrics | coupling
  if model.stream_cfg.pruning_rank and cfg.pruning_weight * cfg.pruning_anchors:
    extra, pruning = _pruning_loss(
      model, hidden.insertion, anchors, targets, weights, cfg, norms
    )
    total, metrics = total + cfg.pruning_weight * extra, metrics | pruning
  return total, metrics


def stream_names(num_streams: int) -> list[str]:
  """['main', 'stream_1', …]."""
  return ['main', *(f'stream_{j + 1}' for j in range(num_streams))]


def _losses(model, main, streams, targets, chunk_size):
  """TokenLoss [B, A, J + 1]; a frozen main stream only goes forward."""
  if streams is None:
    return token_loss(model, main, targets, chunk_size)
  if not model.is_lossless:
    stacked = jnp.concatenate([main, streams], axis=2)
    return token_loss(model, stacked, targets, chunk_size)
  main, streams = (
    token_loss(model, hidden, target, chunk_size)
    for hidden, target in (
      (main, targets[..., :1]),
      (streams, targets[..., 1:]),
    )
  )
  join = lambda a, b: jnp.concatenate([a, b], axis=-1)
  return jax.tree.map(join, jax.lax.stop_gradient(main), streams)


def _metrics(result, weights):
  """(sum, weight) per stream; the last axis of each array is the stream."""
  metrics = {}
  for j, name in enumerate(stream_names(weights.shape[-1] - 1)):
    weight = weights[..., j]
    total = weight.sum()
    nll, rank = result.nll[..., j], result.rank[..., j]
    values = {'loss': nll, 'top1': rank < 1, 'top4': rank < 4}
    for kind, value in values.items():
      metrics[f'{kind}/{name}'] = ((value * weight).sum(), total)
  return metrics


def mean(
  metric: tuple[arrays.Array, arrays.Array], term: str, norms: Norms
) -> arrays.Array:
  """A term of the loss from its (sum, weight); `norms` as for `loss`."""
  value, weight = metric
  return value / (norms[term] if norms else jnp.maximum(weight, 1))


def term_weights(
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  num_streams: int,
) -> dict[str, arrays.Array]:
  """Weight of each term of the loss, which does not depend on the model.

  Returns:
    Scalars by name: main, stream_1 …, pruning. Coupling and teacher have those
    of their streams.
  """
  anchors, scale = choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  _, weights = stream_targets(batch, anchors, num_streams)
  weights *= scale[..., None]
  names = stream_names(num_streams)
  found = {name: weights[..., j].sum() for j, name in enumerate(names)}
  pruned = weights[:, :: _pruning_step(anchors, cfg), 0]
  return found | {'pruning': pruned.sum()}


def cross_entropy(
  model: transformer.Transformer,
  hidden: arrays.Array,
  teacher: arrays.Array,
  chunk_size: int,
) -> arrays.Array:
  """-sum_v p_teacher(v) log p(v), chunked like `token_loss`; float32 [...].

  Args:
    model: merged module, for its LM head.
    hidden: [..., D] normalised hidden states.
    teacher: [..., D] those whose distribution is the target; no gradient.
    chunk_size: static.
  """

  @jax.checkpoint
  def chunk(hidden, teacher):
    own, other = model.logits(hidden), model.logits(teacher)
    law = jax.lax.stop_gradient(jax.nn.softmax(other, axis=-1))
    return -jnp.sum(law * jax.nn.log_softmax(own, axis=-1), axis=-1)

  pair = hidden, jax.lax.stop_gradient(teacher)
  return _by_chunks(chunk, pair, hidden.shape[:-1], chunk_size)


def _teach(model, hidden, anchors, weights, metrics, cfg, norms):
  """The change from hard targets to the main stream's law at the same token."""
  num_streams, length = hidden.streams.shape[2], hidden.main.shape[1]
  offsets = 1 + jnp.arange(num_streams)
  index = anchors[..., None] + offsets[None, None]  # [B, A, J]
  flat = jnp.minimum(index, length - 1).reshape(index.shape[0], -1, 1)
  teacher = jnp.take_along_axis(hidden.main, flat, axis=1)
  teacher = teacher.reshape(hidden.streams.shape)
  values = cross_entropy(model, hidden.streams, teacher, cfg.chunk_size)
  weights = weights[..., 1:]
  totals, counts = (values * weights).sum((0, 1)), weights.sum((0, 1))
  metrics |= {
    f'loss/teacher_{j + 1}': (totals[j], counts[j]) for j in range(num_streams)
  }
  of_stream = lambda kind, j: mean(
    metrics[f'loss/{kind}_{j}'], f'stream_{j}', norms
  )
  change = sum(
    a * (of_stream('teacher', j) - of_stream('stream', j))
    for j, a in enumerate(cfg.stream_weights(num_streams), start=1)
  )
  return change, metrics


def _coupling_loss(model, streams, targets, weights, coefficients, cfg, norms):
  """Loss of streams that are told the token before theirs; trains C alone.

  The parent is the target of the stream before, as it is in every node that a
  verifier can accept. The stream states are cut off from the gradient: by
  themselves they must go on to predict the marginal, which picks candidates.
  """
  hidden = model.coupled(jax.lax.stop_gradient(streams), targets[..., :-1])
  result = token_loss(model, hidden, targets[..., 1:], cfg.chunk_size)
  found = _metrics(result, weights[..., 1:])
  total, metrics = 0.0, {}
  for j, name in enumerate(stream_names(weights.shape[-1] - 2), start=1):
    for kind in ('loss', 'top1'):
      metrics[f'{kind}/coupled_{j}'] = found[f'{kind}/{name}']
    total += coefficients[j] * mean(
      metrics[f'loss/coupled_{j}'], f'stream_{j}', norms
    )
  return total, metrics


def _pruning_step(anchors, cfg):
  """The pruning adapter is trained on every n-th anchor."""
  wanted = min(max(cfg.pruning_anchors, 1), anchors.shape[1])
  return -(-anchors.shape[1] // wanted)


def _pruning_loss(model, insertion, anchors, targets, weights, cfg, norms):
  """Next-token loss of the pruning adapter; trains o_theta alone.

  The hidden state is cut off from the gradient: o_theta must read the main
  stream, not shape it.
  """
  step = _pruning_step(anchors, cfg)
  anchors, targets = anchors[:, ::step], targets[:, ::step, 0]
  weights = weights[:, ::step, 0]
  picked = jnp.take_along_axis(insertion, anchors[..., None], axis=1)
  early = model.early_hidden(jax.lax.stop_gradient(picked))
  result = token_loss(model, early, targets, cfg.chunk_size)
  total = weights.sum()
  metrics = {
    'loss/pruning': ((result.nll * weights).sum(), total),
    'top1/pruning': (((result.rank < 1) * weights).sum(), total),
  }
  return mean(metrics['loss/pruning'], 'pruning', norms), metrics
