# SPDX-License-Identifier: Apache-2.0
"""The n-gram objective against the oracle, and its choice of anchors."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
import training_batches as tb

from specstream_jax import config, partitioning
from specstream_jax.data import features
from specstream_jax.modeling import forward, params, streams as streams_lib
from specstream_jax.training import anchors as anchors_lib, losses, objective

STREAMS = tiny.STREAMS.num_streams
CFG = config.ObjectiveConfig(
  stream_weight=0.25, stream_decay=0.5, pruning_anchors=17, chunk_size=7
)


# Stream targets


def all_positions(batch):
  shape = batch['decoder_target_tokens'].shape
  return jnp.broadcast_to(jnp.arange(shape[1]), shape)


@pytest.mark.parametrize('num_streams', [1, 3, 19])
def test_stream_targets_equal_those_of_the_data(num_streams):
  batch = tb.pack(tb.examples())
  targets, weights = anchors_lib.stream_targets(
    batch, all_positions(batch), num_streams
  )
  expected, expected_weights = features.stream_targets(batch, num_streams)
  np.testing.assert_array_equal(weights[..., 1:], expected_weights)
  np.testing.assert_array_equal(
    np.where(expected_weights > 0, targets[..., 1:], 0),
    np.where(expected_weights > 0, expected, 0),
  )
  np.testing.assert_array_equal(targets[..., 0], batch['decoder_target_tokens'])
  np.testing.assert_array_equal(weights[..., 0], batch['decoder_loss_weights'])


def test_stream_targets_stop_at_the_end_of_their_segment():
  rows = tb.examples()
  batch = tb.pack(rows)
  targets, weights = anchors_lib.stream_targets(
    batch, all_positions(batch), STREAMS
  )
  for row, row_examples in enumerate(rows):
    start = 0
    for prompt, answer in row_examples:
      tokens = np.concatenate([prompt, answer])
      for t in range(len(tokens) - 1):
        for j in range(STREAMS + 1):
          has_target = len(prompt) <= t + 1 + j < len(tokens)
          assert weights[row, start + t, j] == has_target
          if has_target:
            assert targets[row, start + t, j] == tokens[t + 1 + j]
      start += len(tokens) - 1
    assert not weights[row, start:].any()


# Anchors


def test_every_position_with_loss_is_an_anchor_when_there_is_room():
  weights = tb.pack(tb.examples())['decoder_loss_weights']
  anchors, scale = anchors_lib.choose_anchors(jax.random.key(3), weights, 128)
  assert anchors.shape == weights.shape
  placed = np.zeros_like(weights)
  np.put_along_axis(placed, np.asarray(anchors), np.asarray(scale), axis=1)
  np.testing.assert_array_equal(placed, weights)


def test_anchors_are_a_uniform_unbiased_subset_without_room():
  weights = np.zeros((4, 11), np.float32)
  weights[0, [1, 2, 4, 5, 7, 9, 10]] = 1
  weights[1, [0, 6]] = 1
  weights[2, 8] = 1
  keys = jax.random.split(jax.random.key(0), 4000)
  choose = lambda key: anchors_lib.choose_anchors(key, weights, 3)
  anchors, scale = jax.tree.map(np.asarray, jax.jit(jax.vmap(choose))(keys))
  assert np.all(np.diff(anchors, axis=-1) > 0)
  placed = np.zeros((len(keys), *weights.shape))
  np.put_along_axis(placed, anchors, scale, axis=2)
  assert np.all(placed[:, weights == 0] == 0)
  expected = np.broadcast_to(weights.sum(1), placed.shape[:2])
  np.testing.assert_allclose(placed.sum(2), expected, rtol=1e-6)
  # Standard error: 7/3 * sqrt(3/7 * 4/7 / 4000) = 0.018.
  np.testing.assert_allclose(placed.mean(0), weights, atol=0.08)
  for row in (1, 2):
    np.testing.assert_array_equal(placed[:, row], [weights[row]] * len(keys))


def test_a_row_without_loss_divides_by_no_zero():
  weights = np.float32([[0, 0, 0, 0], [0, 0, 1, 0]])
  with jax.disable_jit():  # compiled, 0 / 0 may be left out
    found = anchors_lib.choose_anchors(jax.random.key(0), weights, 2)
  assert [x.tolist() for x in found] == [[[0, 1], [0, 2]], [[0, 0], [0, 1]]]


# Ranks


class Identity:
  """A model whose hidden states are its logits."""

  def logits(self, hidden):
    return hidden


def test_nll_and_rank_by_hand():
  logits = jnp.log(jnp.array([[1, 2, 4, 1.0], [4, 2, 1, 1.0], [2, 2, 2, 2.0]]))
  targets = jnp.array([1, 2, 3])
  result = losses.token_loss(Identity(), logits, targets, chunk_size=2)
  expected = -np.log([2 / 8, 1 / 8, 1 / 4])
  np.testing.assert_allclose(result.nll, expected, rtol=1e-6)
  np.testing.assert_array_equal(result.rank, [1, 2, 0])


def test_a_frozen_main_stream_has_its_loss_but_no_gradient():
  rng = np.random.default_rng(0)
  main, streams = (
    jnp.float32(rng.normal(size=(2, 3, *more, 5))) for more in ((), (2,))
  )
  targets = jnp.asarray(rng.integers(0, 5, (2, 3, 3)))
  anchors = jnp.tile(jnp.arange(3), (2, 1))
  own = predicted(jnp.ones((2, 3, 2)))._replace(targets=targets[..., 1:])
  model = Identity()

  def total(main, streams, is_lossless):
    model.is_lossless = is_lossless
    result = objective._head_losses(
      model,
      forward.TrainHidden(main, streams, main),
      anchors,
      targets[..., 0],
      own,
      CFG,
    )
    return sum((i + 1) * one.nll.sum() for i, one in enumerate(result)), result

  run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  run = jax.jit(run, static_argnums=2)
  (_, trained), (moved, expected) = run(main, streams, False)
  assert np.any(moved)
  (_, frozen), (of_main, of_streams) = run(main, streams, True)
  check = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(check, frozen, trained)
  assert not np.any(of_main)
  check(of_streams, expected)


def predicted(weights, slots=None):
  """What `objective` is told of stream tokens with these weights [B, A, J]."""
  zeros = jnp.zeros(weights.shape, jnp.int32)
  anchors = zeros[..., 0] if slots is None else slots
  return anchors_lib.Predicted(anchors, zeros, zeros, zeros, weights)


def test_top1_and_top4_count_ranks():
  rank = jnp.array([[[0, 3], [1, 4], [0, 9]]])
  weights = jnp.array([[[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]]])
  kinds = objective._kinds(losses.TokenLoss(rank.astype(jnp.float32), rank))
  metrics = objective._by_stream(kinds, predicted(weights))
  as_floats = {name: tuple(map(float, pair)) for name, pair in metrics.items()}
  assert as_floats == {
    'loss_1': (1.0, 2.0),
    'top1_1': (1.0, 2.0),
    'top4_1': (2.0, 2.0),
    'loss_2': (14.0, 4.0),
    'top1_2': (0.0, 4.0),
    'top4_2': (2.0, 4.0),
  }


def test_slots_count_for_the_stream_they_hold():
  numbers = jnp.array([[[0, 1], [0, 0]]])
  slots = streams_lib.Slots(jnp.zeros_like(numbers), numbers)
  weights = jnp.array([[[1.0, 2.0], [3.0, 5.0]]])
  values = {'loss/x': jnp.array([[[7.0, 11.0], [13.0, 17.0]]])}
  metrics = objective._by_stream(values, predicted(weights, slots))
  assert {k: tuple(map(float, v)) for k, v in metrics.items()} == {
    'loss/x_1': (7 + 3 * 13 + 5 * 17, 9.0),
    'loss/x_2': (22.0, 2.0),
  }


# The loss


def test_mean_by_hand():
  pair = lambda *x: tuple(map(jnp.float32, x))
  assert objective.mean(pair(3, 1), 'main', None) == 3
  assert objective.mean(pair(6, 4), 'main', None) == 1.5
  assert objective.mean(pair(6, 0.5), 'main', None) == 6  # of less than one
  assert objective.mean(pair(6, 4), 'main', {'main': 12, 'other': 1}) == 0.5


@pytest.mark.parametrize('pruning_anchors', [2, 17])
def test_weights_of_terms_are_those_of_the_loss(pruning_anchors):
  batch, key = tb.pack(tb.examples()), jax.random.key(0)
  cfg = dataclasses.replace(
    CFG, anchors_per_sequence=5, pruning_anchors=pruning_anchors
  )
  built, base, adapter = tb.model()
  weights = objective.term_weights(batch, key, cfg, STREAMS)
  assert set(weights) == {*objective.stream_names(STREAMS), 'pruning'}

  @jax.jit
  def found():
    _, metrics = objective.loss(built.merge(base, adapter), batch, key, cfg)
    # Without the sums nothing of the model is compiled.
    return {name: metrics[f'loss/{name}'][1] for name in weights}

  for name, weight in found().items():
    np.testing.assert_allclose(weight, weights[name], rtol=1e-6)


def insertion_states(oracle, tokens):
  """Main stream at the input of the first MSA layer, token by token."""
  main = [oracle.p['embed/embedding'][t] for t in tokens]
  for layer in range(tb.CONFIG.num_layers - tiny.STREAMS.num_msa_layers):
    qkv = [oracle.qkv(layer, x, t, False) for t, x in enumerate(main)]
    keys, values = [k for _, k, _ in qkv], [v for _, _, v in qkv]
    main = [
      oracle.mix(layer, x, qkv[t][0], keys[: t + 1], values[: t + 1], False)
      for t, x in enumerate(main)
    ]
  return main


def scores(logits, target):
  """(negative log-probability, tokens that outscore the target)."""
  return -np.log(reference.softmax(logits)[target]), sum(
    logits > logits[target]
  )


def expected_scores(oracle, prompt, answer):
  """Scores of one example by stream name, each segment on its own."""
  tokens = np.concatenate([prompt, answer])
  anchors = range(len(prompt) - 1, len(tokens) - 1)
  main, groups = oracle.run(tokens[:-1], anchors)
  insertion = insertion_states(oracle, tokens[:-1])
  found = {name: [] for name in (*objective.stream_names(STREAMS), 'pruning')}
  for t in anchors:
    found['main'].append(scores(oracle.logits(main[t]), tokens[t + 1]))
    for j in range(1, STREAMS + 1):
      if t + 1 + j < len(tokens):
        logits = oracle.logits(groups[t][j - 1])
        found[f'stream_{j}'].append(scores(logits, tokens[t + 1 + j]))
    x = insertion[t]
    x = x + x @ oracle.a['pruning/down'] @ oracle.a['pruning/up']
    x = reference.norm(x, oracle.p['final_norm/scale'], tb.CONFIG.rms_norm_eps)
    found['pruning'].append(scores(oracle.logits(x), tokens[t + 1]))
  return found


def run_loss(cfg, batch):
  return tb.gradient_fn(cfg)(tb.model()[2], batch)


def test_loss_equals_the_oracle():
  rows, oracle = tb.examples(), tb.oracle()
  (total, metrics), _ = run_loss(CFG, tb.pack(rows))
  found = {}
  for prompt, answer in (example for row in rows for example in row):
    for name, pairs in expected_scores(oracle, prompt, answer).items():
      found.setdefault(name, []).extend(pairs)
  means = {name: np.mean([s[0] for s in found[name]]) for name in found}
  for name, pairs in found.items():
    summed, weight = metrics[f'loss/{name}']
    assert float(summed / weight) == pytest.approx(means[name], abs=2e-5)
    assert float(weight) == len(pairs)
    for k in (1,) if name == 'pruning' else (1, 4):
      hits = sum(rank < k for _, rank in pairs)
      assert float(metrics[f'top{k}/{name}'][0]) == hits
  expected = means['main'] + 0.1 * means['pruning']
  for j in range(STREAMS):
    expected += 0.25 * 0.5**j * means[f'stream_{j + 1}']
  assert float(total) == pytest.approx(expected, abs=5e-5)


def test_chunk_size_changes_neither_loss_nor_gradient():
  batch = tb.pack(tb.examples())
  whole = dataclasses.replace(CFG, chunk_size=1000)
  (small, _), small_gradient = run_loss(CFG, batch)
  (large, _), large_gradient = run_loss(whole, batch)
  assert float(small) == pytest.approx(float(large), rel=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    small_gradient,
    large_gradient,
  )


def test_without_stream_weight_no_stream_runs():
  """The loss and gradient are those of the main stream, the step cheaper."""
  batch, adapter = tb.pack(tb.examples()), tb.model()[2]
  cfg = config.ObjectiveConfig(pruning_weight=0.0)
  plain = dataclasses.replace(cfg, stream_weight=0.0)
  tiny_weight = dataclasses.replace(cfg, stream_weight=1e-12)
  (total, metrics), gradient = tb.gradient_fn(plain)(adapter, batch)
  (other, _), expected = tb.gradient_fn(tiny_weight)(adapter, batch)
  assert set(metrics) == {'loss/main', 'top1/main', 'top4/main'}
  assert float(total) == pytest.approx(float(other), rel=1e-6)
  for (path, leaf), twin in zip(
    params.flatten(gradient).items(), params.flatten(expected).values()
  ):
    np.testing.assert_allclose(leaf, twin, atol=2e-6, err_msg=path)
  assert not np.any(gradient['streams']['embedding'])
  flops = [
    tb.gradient_fn(c).lower(adapter, batch).compile().cost_analysis()['flops']
    for c in (plain, tiny_weight)
  ]
  assert flops[0] < 0.9 * flops[1]


def test_streams_run_as_long_as_one_of_them_counts():
  """A decay of 0 leaves the first one."""
  cfg = config.ObjectiveConfig(stream_decay=0.0, pruning_weight=0.0)
  assert cfg.stream_weights(STREAMS) == (0.25, *[0.0] * (STREAMS - 1))
  built, base, adapter = tb.model()
  trace = lambda a, b: objective.loss(
    built.merge(base, a), b, jax.random.key(0), cfg
  )
  _, metrics = jax.eval_shape(trace, adapter, tb.pack(tb.examples()))
  assert 'loss/stream_1' in metrics


@pytest.mark.parametrize(
  ('num_anchors', 'wanted', 'step'),
  [(17, 5, 4), (17, 17, 1), (17, 99, 1), (17, 1, 17), (17, 0, 17), (16, 8, 2)],
)
def test_the_pruning_adapter_sees_every_nth_anchor(num_anchors, wanted, step):
  cfg = config.ObjectiveConfig(pruning_anchors=wanted)
  assert objective._pruning_step(np.zeros((3, num_anchors)), cfg) == step


def test_pruning_loss_trains_the_pruning_adapter_alone():
  cfg = config.ObjectiveConfig(
    main_weight=0.0, stream_weight=0.0, pruning_weight=1.0, pruning_anchors=5
  )
  _, gradient = run_loss(cfg, tb.pack(tb.examples()))
  for path, leaf in params.flatten(gradient).items():
    assert np.any(leaf) == path.startswith('pruning/'), path


@pytest.mark.parametrize('subset', [1, 5, 16, 100])
def test_pruning_uses_at_most_its_share_of_anchors(subset, monkeypatch):
  cfg = config.ObjectiveConfig(pruning_anchors=subset)
  shapes, original = [], losses.token_loss

  def spy(model, hidden, targets, *rest):
    shapes.append(targets.shape)
    return original(model, hidden, targets, *rest)

  monkeypatch.setattr(losses, 'token_loss', spy)
  built, base, adapter = tb.model()
  trace = lambda a, b: objective.loss(
    built.merge(base, a), b, jax.random.key(0), cfg
  )
  jax.eval_shape(trace, adapter, tb.pack(tb.examples()))
  assert shapes[0] == (3, tb.LENGTH * (1 + STREAMS))
  assert 1 <= shapes[1][1] <= min(subset, tb.LENGTH)


def test_top1_of_the_pruning_adapter_counts_first_places(monkeypatch):
  ranks = np.array([[0, 1, 2, 0], [1, 1, 3, 0]])
  weights = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
  scored = losses.TokenLoss(ranks, ranks)
  monkeypatch.setattr(losses, 'token_loss', lambda *_: scored)
  model = types.SimpleNamespace(early_hidden=lambda x: x)
  anchors = np.zeros((2, 4), np.int32)
  monkeypatch.setattr(objective, '_main_targets', lambda *_: (ranks, weights))
  monkeypatch.setattr(objective, '_pruning_step', lambda *_: 1)
  rest = {}, (anchors, weights), CFG, {}
  metrics = objective._pruning_loss(model, np.zeros((2, 4, 3)), *rest)[1]
  assert metrics['top1/pruning'] == (2, 7)


def test_no_pruning_anchors_means_no_pruning_loss():
  cfg = config.ObjectiveConfig(pruning_anchors=0)
  built, base, adapter = tb.model()
  trace = lambda a, b: objective.loss(
    built.merge(base, a), b, jax.random.key(0), cfg
  )
  _, metrics = jax.eval_shape(trace, adapter, tb.pack(tb.examples()))
  assert 'loss/main' in metrics and 'loss/pruning' not in metrics


def test_a_batch_without_targets_has_no_loss_and_no_weight():
  batch = jax.tree.map(np.zeros_like, tb.pack(tb.examples()))
  (total, metrics), gradient = run_loss(CFG, batch)
  assert float(total) == 0
  assert all(float(weight) == 0 for _, weight in metrics.values())
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


# The main stream as teacher


def test_streams_learn_from_the_main_stream_at_their_token():
  built, base, adapter = tiny.model()
  batch = tb.pack(tb.examples())
  cfg = dataclasses.replace(
    CFG, anchors_per_sequence=batch['decoder_target_tokens'].shape[1]
  )
  run = jax.jit(
    lambda weight: objective.loss(
      built.merge(base, adapter),
      batch,
      jax.random.key(0),
      dataclasses.replace(cfg, teacher_weight=weight),
    ),
    static_argnums=0,
  )
  (hard, plain), (soft, metrics), (half, _) = map(run, (0.0, 1.0, 0.5))
  np.testing.assert_allclose(half, (hard + soft) / 2, rtol=1e-5)
  mean = lambda name: metrics[f'loss/{name}'][0] / metrics[f'loss/{name}'][1]
  change = sum(
    a * (mean(f'teacher_{j}') - mean(f'stream_{j}'))
    for j, a in enumerate(CFG.stream_weights(STREAMS), start=1)
  )
  np.testing.assert_allclose(soft - hard, change, rtol=1e-3)
  # Against the definition, position by position.
  model = built.merge(base, adapter)
  hidden = forward.forward_train(
    model,
    batch['decoder_input_tokens'],
    batch['decoder_positions'],
    batch['decoder_segment_ids'],
    all_positions(batch),
  )
  _, weights = anchors_lib.stream_targets(batch, all_positions(batch), STREAMS)
  main = np.asarray(jax.nn.softmax(model.logits(hidden.main), axis=-1))
  own = np.asarray(jax.nn.log_softmax(model.logits(hidden.streams), axis=-1))
  for j in range(1, STREAMS + 1):
    total = 0.0
    both = np.asarray(weights[..., j] * weights[..., 0])  # anchors carry loss
    for b, t in np.argwhere(both > 0):
      total -= weights[b, t, j] * (main[b, t + j] * own[b, t, j - 1]).sum()
    value, weight = metrics[f'loss/teacher_{j}']
    np.testing.assert_allclose(value, total, rtol=1e-4)
    np.testing.assert_allclose(weight, plain[f'loss/stream_{j}'][1])


def test_a_chunk_holds_so_many_rows_of_each_device(monkeypatch):
  """Four rows of five positions; loops of so many chunks of so many rows."""

  def loops(chunk_size):
    seen = []
    hidden = jnp.arange(40.0).reshape(4, 5, 2)
    targets = 100 * jnp.arange(20).reshape(4, 5)

    def total(hidden, targets):
      seen.append(targets.shape)
      return hidden.sum(-1) + targets

    found = losses.by_chunks(
      total, (hidden, targets), targets.shape, chunk_size
    )
    np.testing.assert_array_equal(found, hidden.sum(-1) + targets)
    return seen[0]

  assert loops(1) == loops(4) == (4, 1)
  assert loops(8) == (4, 2)
  assert loops(12) == (4, 3)
  monkeypatch.setattr(partitioning, 'num_shards', lambda axis, size: 2)
  assert loops(4) == (4, 2)  # two rows of each device, two positions of each
  assert loops(6) == (4, 3)
  assert loops(99) == (4, 5)
