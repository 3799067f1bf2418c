# SPDX-License-Identifier: Apache-2.0
"""The n-gram objective (paper, eq. 5), at the positions that carry loss.

    L = - a_0 sum_t log p(y_t) - sum_j a_j sum_t log p_j(y_{t+j})

Streams, and the LM head, run at anchors only: positions whose next token is a
target. The groups of different anchors are independent given the main stream,
so leaving the others out is exact; `anchors` says what a random part of them
changes. Beyond the paper, a stream may learn from other terms than the
cross-entropy, see `losses`.

Axis letters: B rows, T positions, A anchors, J streams, D model width.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import forward, transformer
from specstream_jax.training import anchors as anchors_lib, losses

# What the sum of a term of the loss is divided by, by its name.
Norms = Mapping[str, arrays.Array] | None
Metrics = dict[str, tuple[arrays.Array, arrays.Array]]


def loss(
  model: transformer.Transformer,
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  *,
  remat: str = 'none',
  norms: Norms = None,
  step: arrays.Array | None = None,
) -> tuple[arrays.Array, Metrics]:
  """The objective on one batch.

  Args:
    model: merged module with streams.
    batch: the batch contract, arrays [B, T].
    key: chooses anchors where a row has too many.
    cfg: weights and chunking.
    remat: a name of `blocks.REMAT`.
    norms: what the sum of each term is divided by; None takes its own weight,
      or, of streams with a budget of tokens, that of all positions.
    step: of the curriculum; None is past it.

  Returns:
    The scalar loss (float32, mean over targets per stream, then weighted) and
    metrics as (sum, weight) pairs: loss/x, top1/x, top4/x for x in main,
    stream_1 …, pruning, coupled_1 …, and loss/x_j of further terms x. Where no
    stream has a weight, no streams run, and the step is that of plain LoRA.
  """
  num_streams = model.stream_settings.num_streams
  num_streams = num_streams if any(cfg.stream_weights(num_streams)) else 0
  if norms is None and num_streams and cfg.stream_tokens:
    found = term_weights(batch, key, cfg, num_streams)
    norms = {name: jnp.maximum(weight, 1) for name, weight in found.items()}
  chosen = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  streams = None
  if num_streams:
    streams = anchors_lib.predicted(
      batch, key, cfg, num_streams, chosen=chosen, step=step
    )
  hidden = forward.forward_train(
    model,
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
    None if streams is None else streams.anchors,
    remat=remat,
  )
  main = _main_targets(batch, chosen)
  results = _head_losses(model, hidden, chosen[0], main[0], streams, cfg)
  total, metrics = _main_loss(results[0], main[1], cfg, norms)
  for more, found in _extras(
    model, hidden, batch, chosen, streams, results[1], cfg, norms
  ):
    total, metrics = total + more, metrics | found
  return total, metrics


def _extras(model, hidden, batch, chosen, streams, result, cfg, norms):
  """(loss, metrics) of streams, coupling and pruning adapter, what there is."""
  if streams is not None:
    yield _stream_loss(hidden, streams, result, cfg, norms)
  has_coupling = model.stream_cfg.coupling_rank and cfg.coupling_weight
  if has_coupling and streams is not None:
    yield _coupling_loss(model, hidden.streams, streams, cfg, norms)
  if model.stream_cfg.pruning_rank and cfg.pruning_weight * cfg.pruning_anchors:
    yield _pruning_loss(model, hidden.insertion, batch, chosen, cfg, norms)


def stream_names(num_streams: int) -> list[str]:
  """['main', 'stream_1', …]."""
  return ['main', *(f'stream_{j + 1}' for j in range(num_streams))]


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
    Scalars by name: main, stream_1 …, pruning. Coupling and further terms have
    those of their streams.
  """
  chosen = anchors_lib.choose_anchors(
    key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
  )
  _, weights = _main_targets(batch, chosen)
  if cfg.stream_tokens:
    counts = anchors_lib.all_weights(batch, num_streams)
  else:
    streams = anchors_lib.predicted(batch, key, cfg, num_streams, chosen=chosen)
    counts = streams.weights.sum(axis=(0, 1))
  pruned = weights[:, :: _pruning_step(weights, cfg)]
  names = stream_names(num_streams)[1:]
  found = {name: counts[j] for j, name in enumerate(names)}
  return found | {'main': weights.sum(), 'pruning': pruned.sum()}


def _main_targets(batch, chosen):
  """Targets and weights [B, A] of the main stream at its anchors."""
  targets, weights = anchors_lib.stream_targets(batch, chosen[0], 0)
  return targets[..., 0], weights[..., 0] * chosen[1]


def _head_losses(model, hidden, anchors, targets, streams, cfg):
  """TokenLoss of the main stream [B, A] and of streams [B, A, J] or None.

  A frozen main stream only goes forward. Where both learn from their tokens,
  the head is gone through once, for every chunk gathers it where it is split.
  """
  main = anchors_lib.take(hidden.main, anchors)
  run = lambda *args: losses.token_loss(model, *args)
  if streams is None:
    return run(main, targets, cfg.chunk_size), None
  teacher = None
  if cfg.stream_terms.keys() & {'teacher', 'total_variation'}:
    teacher = anchors_lib.take(hidden.main, streams.places)
  own = hidden.streams, streams.targets
  if model.is_lossless:
    main = jax.lax.stop_gradient(main)
  if model.is_lossless or teacher is not None:
    return (
      run(main, targets, cfg.chunk_size),
      run(*own, cfg.chunk_size, teacher),
    )
  flat = lambda x, like: x.reshape(len(x), -1, *like.shape[2:])
  joined = [
    jnp.concatenate([a, flat(b, a)], axis=1)
    for a, b in zip((main, targets), own, strict=True)
  ]
  result, count = run(*joined, cfg.chunk_size), targets.shape[1]
  return (
    jax.tree.map(lambda x: x[:, :count], result),
    jax.tree.map(lambda x: x[:, count:].reshape(own[1].shape), result),
  )


def _main_loss(result, weights, cfg, norms):
  """Next-token loss from a TokenLoss [B, A]."""
  total = weights.sum()
  metrics = {
    f'{kind}/main': ((value * weights).sum(), total)
    for kind, value in _kinds(result).items()
  }
  return cfg.main_weight * mean(metrics['loss/main'], 'main', norms), metrics


def _kinds(result):
  """What is told of every stream, by name, from a TokenLoss."""
  return {'loss': result.nll, 'top1': result.rank < 1, 'top4': result.rank < 4}


def _stream_loss(hidden, streams, result, cfg, norms):
  """The terms of every stream, from its TokenLoss; see `losses`."""
  terms = cfg.stream_terms
  values = {f'{kind}/stream': value for kind, value in _kinds(result).items()}
  for name in ('teacher', 'total_variation'):
    if name in terms:
      values[f'loss/{name}'] = getattr(result, name)
  if 'hidden' in terms:
    teacher = anchors_lib.take(hidden.main, streams.places)
    values['loss/hidden'] = losses.hidden_error(hidden.streams, teacher)
  metrics = _by_stream(values, streams)
  total = _weighted(metrics, terms, cfg, norms, streams)
  return total, metrics


def _by_stream(values, streams):
  """(sum, weight) as 'name_j' of values [B, A, J] by name."""
  sums = {name: streams.by_stream(value) for name, value in values.items()}
  counts = streams.by_stream(jnp.ones(()))
  return {
    f'{name}_{j + 1}': (total[j], counts[j])
    for name, total in sums.items()
    for j in range(counts.shape[0])
  }


def _weighted(metrics, terms, cfg, norms, streams):
  """sum_j a_j of the terms of stream j, by their weights."""
  num_streams = streams.targets.shape[-1]
  return sum(
    a * weight * mean(metrics[f'loss/{name}_{j}'], f'stream_{j}', norms)
    for j, a in enumerate(cfg.stream_weights(num_streams), start=1)
    for name, weight in terms.items()
  )


def _coupling_loss(model, hidden, streams, cfg, norms):
  """Loss of streams that are told the token before theirs; trains C alone.

  The parent is the target of the stream before, as it is in every node that a
  verifier can accept. The stream states are cut off from the gradient: by
  themselves they must go on to predict the marginal, which picks candidates.
  """
  hidden = model.coupled(jax.lax.stop_gradient(hidden), streams.parents)
  result = losses.token_loss(model, hidden, streams.targets, cfg.chunk_size)
  values = {'loss/coupled': result.nll, 'top1/coupled': result.rank < 1}
  metrics = _by_stream(values, streams)
  total = _weighted(metrics, {'coupled': 1.0}, cfg, norms, streams)
  return cfg.coupling_weight * total, metrics


def _pruning_step(anchors, cfg):
  """The pruning adapter is trained on every n-th anchor."""
  wanted = min(max(cfg.pruning_anchors, 1), anchors.shape[1])
  return -(-anchors.shape[1] // wanted)


def _pruning_loss(model, insertion, batch, chosen, cfg, norms):
  """Next-token loss of the pruning adapter; trains o_theta alone.

  The hidden state is cut off from the gradient: o_theta must read the main
  stream, not shape it.
  """
  step = _pruning_step(chosen[0], cfg)
  targets, weights = (
    values[:, ::step] for values in _main_targets(batch, chosen)
  )
  picked = anchors_lib.take(insertion, chosen[0][:, ::step])
  early = model.early_hidden(jax.lax.stop_gradient(picked))
  result = losses.token_loss(model, early, targets, cfg.chunk_size)
  total = weights.sum()
  metrics = {
    'loss/pruning': ((result.nll * weights).sum(), total),
    'top1/pruning': (((result.rank < 1) * weights).sum(), total),
  }
  more = mean(metrics['loss/pruning'], 'pruning', norms)
  return cfg.pruning_weight * more, metrics
