# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: what it changes, at which rate, and what it measures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import train_process
import training_batches as tb

from specstream_jax import config, partitioning
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import build, initialize, params
from specstream_jax.training import objective, step as step_lib

CFG = config.ObjectiveConfig(chunk_size=29)


def optimizer_config(**options):
  defaults = {
    'learning_rate': 0.02,
    'embedding_learning_rate': 0.05,
    'warmup_steps': 0,
  }
  return config.OptimizerConfig(**{**defaults, **options})


def compiled(built, optimizer, cfg=CFG):
  """Jitted (state, base, batch) -> (state, metrics)."""
  return tb.jit(
    functools.partial(
      step_lib.train_step, built=built, optimizer=optimizer, cfg=cfg, seed=0
    )
  )


# The optimiser, on gradients made by hand


def fake_adapter():
  return {
    'streams': {'embedding': jnp.ones((3, 2))},
    'layers': {0: {'lora_a': jnp.ones((2, 5))}},
  }


def updates_of(optimizer, count):
  """Updates to (embedding, LoRA) on `count` equal gradients, as means."""
  adapter = fake_adapter()
  state, found = optimizer.init(adapter), []
  gradient = jax.tree.map(jnp.ones_like, adapter)
  update = jax.jit(optimizer.update)
  for _ in range(count):
    updates, state = update(gradient, state, adapter)
    found.append(
      [float(leaf.mean()) for leaf in jax.tree.leaves(updates)][::-1]
    )
  return -np.array(found)


def test_warm_up_then_linear_decay_at_two_rates():
  # Adam's update on equal gradients is the rate itself.
  optimizer = step_lib.make_optimizer(
    optimizer_config(
      learning_rate=0.8, embedding_learning_rate=4.0, warmup_steps=2
    ),
    num_steps=6,
  )
  rates = np.array([0, 0.5, 1, 0.75, 0.5, 0.25])
  expected = np.stack([4.0 * rates, 0.8 * rates], axis=1)
  np.testing.assert_allclose(updates_of(optimizer, 6), expected, rtol=1e-4)


def test_weight_decay_leaves_stream_embeddings_alone():
  optimizer = step_lib.make_optimizer(
    optimizer_config(
      learning_rate=0.5, embedding_learning_rate=0.5, weight_decay=0.1
    ),
    num_steps=5,
  )
  expected = [[0.5, 0.5 * (1 + 0.1)]]
  np.testing.assert_allclose(updates_of(optimizer, 1), expected, rtol=1e-4)


def test_accumulation_updates_once_per_group_and_counts_updates():
  optimizer = step_lib.make_optimizer(
    optimizer_config(
      learning_rate=0.5, embedding_learning_rate=0.5, accumulation_steps=3
    ),
    num_steps=6,
  )
  expected = [0, 0, 0.5, 0, 0, 0.25]
  found = updates_of(optimizer, 6)
  np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)


# Steps


@pytest.fixture(name='trained', scope='module')
def _trained():
  """(states after 0, 3 and 100 steps, last metrics, base before, base)."""
  lora = config.LoraConfig(rank=8, alpha=16.0, modules=('query', 'down'))
  built, base, _ = tiny.model(tb.CONFIG, tiny.STREAMS, lora)
  # The head is frozen: without larger logits the loss could not reach zero.
  base = base | {'final_norm': {'scale': 3 * base['final_norm']['scale']}}
  before = jax.tree.map(np.array, base)
  adapter = initialize.init_adapter(
    jax.random.key(1), tb.CONFIG, tiny.STREAMS, lora, hidden_rms=0.5
  )
  optimizer = step_lib.make_optimizer(
    optimizer_config(learning_rate=0.03, warmup_steps=10), num_steps=100
  )
  advance = compiled(built, optimizer)
  states, batch = [step_lib.init_state(adapter, optimizer)], tiny_batch()
  for _ in range(100):
    state, metrics = advance(states[-1], base, batch)
    states.append(state)
  return [states[n] for n in (0, 3, 100)], metrics, before, base


def tiny_batch():
  return tb.pack([tb.draw([(2, 6)], 1), tb.draw([(3, 4)], 2), []])


def test_only_the_adapter_changes(trained):
  (start, state, _), _, before, base = trained
  jax.tree.map(np.testing.assert_array_equal, before, base)
  assert jax.tree.structure(state.adapter) == jax.tree.structure(start.adapter)
  old, new = params.flatten(start.adapter), params.flatten(state.adapter)
  assert all(np.any(old[path] != new[path]) for path in old)
  assert all(leaf.dtype == jnp.float32 for leaf in new.values())
  assert int(state.step) == 3


def test_step_metrics_hold_totals(trained):
  _, metrics, _, _ = trained
  tokens = (tiny_batch()['decoder_segment_ids'] > 0).sum()
  assert [float(x) for x in metrics['tokens']] == [tokens, 1]
  assert float(metrics['gradient_norm'][0]) > 0
  weighted = {'main': 1.0, 'pruning': 0.1} | {
    f'stream_{j}': 0.25 for j in (1, 2, 3)
  }
  expected = sum(
    a * metrics[f'loss/{x}'][0] / metrics[f'loss/{x}'][1]
    for x, a in weighted.items()
  )
  np.testing.assert_allclose(metrics['loss/total'][0], expected, rtol=1e-5)


def test_overfits_one_batch_with_all_streams(trained):
  _, metrics, _, _ = trained
  for name in objective.stream_names(tiny.STREAMS.num_streams):
    summed, weight = metrics[f'loss/{name}']
    assert float(summed / weight) < 0.1, name
    assert float(metrics[f'top1/{name}'][0]) == float(weight), name


def lossless(num_layers):
  """(built, base, adapter) as shapes, lossless mode, two MSA layers."""
  cfg = dataclasses.replace(tb.CONFIG, num_layers=num_layers)
  streams = dataclasses.replace(tiny.STREAMS, mode='lossless')
  return build.build(cfg, streams, tb.LORA)


def test_lossless_has_no_adapter_below_the_stream_layers():
  paths = params.flatten(lossless(5).adapter)
  layers = {path.split('/')[1] for path in paths if path.startswith('layers/')}
  assert layers == {'3', '4'}


def num_products(function, *args):
  return str(jax.make_jaxpr(function)(*args)).count('dot_general')


def test_lossless_differentiates_nothing_below_the_stream_layers():
  """Two more lower layers add their forward products and no others."""
  batch, counts = tb.pack(tb.examples()), {}
  for num_layers in (3, 5):
    built = lossless(num_layers)

    def loss(adapter, base, built=built):
      model = built.merge(base, adapter)
      return objective.loss(model, batch, jax.random.key(0), CFG)[0]

    args = (built.adapter, built.base)
    counts[num_layers] = (
      num_products(loss, *args),
      num_products(jax.value_and_grad(loss), *args),
    )
  forward, backward = np.subtract(counts[5], counts[3])
  assert forward == backward > 0
  assert counts[3][1] > counts[3][0]


def test_two_micro_batches_equal_one_big_batch():
  built, base, adapter = tiny.model(
    train_process.CONFIG, train_process.STREAMS, train_process.LORA
  )
  # The same lengths in every row, so that every stream has equal weights.
  rows = [[tb.draw([(3, 5)], seed)[0]] for seed in range(8)]
  micro = optimizer_config(accumulation_steps=2)
  accumulate = step_lib.make_optimizer(micro, num_steps=20)
  at_once = step_lib.make_optimizer(optimizer_config(), num_steps=10)
  first = step_lib.init_state(adapter, accumulate)
  second = step_lib.init_state(adapter, at_once)
  step_micro, step_big = compiled(built, accumulate), compiled(built, at_once)
  for i in range(2):
    for half in (0, 2):
      batch = tb.pack(rows[4 * i + half : 4 * i + half + 2])
      first, _ = step_micro(first, base, batch)
    second, _ = step_big(second, base, tb.pack(rows[4 * i : 4 * i + 4]))
  assert int(first.step) == 2 * int(second.step) == 4
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    first.adapter,
    second.adapter,
  )
  moved = optax.tree.norm(jax.tree.map(jnp.subtract, second.adapter, adapter))
  assert float(moved) > 0.1


# Evaluation


def stream_logits():
  """{(row, position): float64 [J, V]} at every anchor, by the oracle."""
  oracle, found = tb.oracle(), {}
  for row, row_examples in enumerate(tb.examples()):
    start = 0
    for prompt, answer in row_examples:
      tokens = np.concatenate([prompt, answer])[:-1]
      _, groups = oracle.run(tokens, range(len(prompt) - 1, len(tokens)))
      for t, hidden in groups.items():
        found[row, start + t] = oracle.logits(hidden)
      start += len(tokens)
  return found


def steered_batch(logits):
  """The batch with targets the streams guess: 3, 2, 1 tokens, and by rank 2."""
  batch = tb.pack(tb.examples())
  ranked = {place: np.argsort(-x, axis=1) for place, x in logits.items()}
  plan = {(0, 2): (0, 0), (0, 8): (0, 0, 0), (1, 0): (0, 1), (1, 8): (0,)}
  plan[0, 5] = (0,)  # A hit in the next segment, which must not count.
  for (row, t), ranks in plan.items():
    for j, rank in enumerate(ranks):
      token = ranked[row, t][j, rank]
      batch['decoder_target_tokens'][row, t + 1 + j] = token
  return batch


def walk(tokens, parents, truth):
  """How many true tokens a walk from the root finds."""
  node, depth = 0, 0
  while depth < len(truth):
    matches = [
      m
      for m in range(1, len(tokens))
      if parents[m] == node and tokens[m] == truth[depth]
    ]
    if not matches:
      break
    node, depth = matches[0], depth + 1
  return depth


def expected_calls(batch, logits, tree):
  """Mean of 1 + accepted over the anchors; truth ends with its segment."""
  found = []
  for (row, t), anchor_logits in logits.items():
    segment = batch['decoder_segment_ids'][row]
    end = 1 + np.flatnonzero(segment == segment[t]).max()
    truth = batch['decoder_target_tokens'][row, t + 1 : end]
    drafts = tree_lib.from_stream_logits(
      jnp.asarray(anchor_logits[None], jnp.float32),
      jnp.zeros(1, jnp.int32),
      tree,
    )
    tokens, parents = (
      np.asarray(drafts.tokens[0]),
      np.asarray(drafts.parents[0]),
    )
    found.append(1 + walk(tokens, parents, truth[: tiny.STREAMS.num_streams]))
  return found


def test_tokens_per_call_follows_the_true_continuation():
  tree = config.TreeConfig(kind='full', depth=3, branching=2)
  logits = stream_logits()
  batch = steered_batch(logits)
  built, base, adapter = tb.model()
  measure = tb.jit(
    functools.partial(
      step_lib.eval_step, built=built, cfg=CFG, tree=tree, tree_anchors=16
    )
  )
  metrics = measure(adapter, base, batch)
  expected = expected_calls(batch, logits, tree)
  summed, weight = map(float, metrics['tokens_per_call'])
  assert weight == len(expected) == batch['decoder_loss_weights'].sum()
  assert summed == sum(expected)
  assert {1, 2, 3, 4} == set(expected)
  assert {'loss/main', 'top1/stream_3', 'loss/pruning'} <= metrics.keys()


# Initial scale of the stream embeddings


def test_hidden_rms_equals_numpy():
  built, base, _ = tb.model()
  oracle, batch = tb.oracle(), tb.pack(tb.examples())
  oracle.a, squares = {}, []
  for prompt, answer in (e for row in tb.examples() for e in row):
    main = [oracle.p['embed/embedding'][t] for t in [*prompt, *answer][:-1]]
    qkv = [oracle.qkv(0, x, t, False) for t, x in enumerate(main)]
    keys, values = [k for _, k, _ in qkv], [v for _, _, v in qkv]
    for t in range(1, len(main)):
      x = oracle.mix(
        0, main[t], qkv[t][0], keys[: t + 1], values[: t + 1], False
      )
      squares.append(np.mean(x * x))
  rms = step_lib.hidden_rms(built, base, batch, partitioning.default())
  assert rms == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)


def test_stream_embeddings_start_at_the_scale_of_the_hidden_state():
  streams = dataclasses.replace(
    tiny.STREAMS, num_streams=7, embedding_init_scale=0.5
  )
  cfg = dataclasses.replace(tb.CONFIG, hidden_size=101)
  init = lambda rms: initialize.init_adapter(
    jax.random.key(0), cfg, streams, tb.LORA, hidden_rms=rms
  )
  small, large = init(1.0), init(4.0)
  embedding = np.asarray(large['streams']['embedding'])
  assert embedding.std() == pytest.approx(0.5 * 4.0, rel=0.1)
  np.testing.assert_allclose(
    embedding, 4 * small['streams']['embedding'], rtol=1e-6
  )
  rest = lambda tree: {
    path: leaf
    for path, leaf in params.flatten(tree).items()
    if path != 'streams/embedding'
  }
  jax.tree.map(np.testing.assert_array_equal, rest(small), rest(large))
