# SPDX-License-Identifier: Apache-2.0
"""Coupled drafting: parents re-rank their children, tokens stay the same."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runtime

from specstream_jax import config, runtime
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import forward, params
from specstream_jax.training import objective, step as step_lib

STREAMS = dataclasses.replace(tiny.STREAMS, coupling_rank=3)
KINDS = ('bilinear', 'mlp')
TREE = config.TreeConfig(num_nodes=9, depth=3, branching=3)


def untied():
  return dataclasses.replace(tiny.CONFIG, tie_word_embeddings=False)


def of_kind(kind):
  return dataclasses.replace(STREAMS, coupling=kind)


@pytest.mark.parametrize('kind', KINDS)
def test_correction_by_hand(kind):
  built, base, adapter = tiny.model(streams=of_kind(kind))
  model = built.merge(base, adapter)
  weights = {k: np.asarray(v) for k, v in adapter['coupling'].items()}
  assert set(weights) == {'down', 'up'} | (
    {'state'} if kind == 'mlp' else set()
  )
  rng = np.random.default_rng(3)
  e, h = rng.normal(size=(2, 7, tiny.CONFIG.hidden_size))
  low = e / np.sqrt(np.mean(e**2, axis=-1, keepdims=True)) @ weights['down']
  if kind == 'mlp':
    low = low + h @ weights['state']
    low = low / (1 + np.exp(-low))
  found = model.coupling(jnp.asarray(e), jnp.asarray(h))
  np.testing.assert_allclose(found, low @ weights['up'], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('cfg', [tiny.CONFIG, untied()], ids=['tied', 'untied'])
def test_candidates_get_what_the_whole_head_would_give(cfg, kind):
  built, base, adapter = tiny.model(cfg, of_kind(kind))
  model = built.merge(base, adapter)
  hidden = jax.random.normal(jax.random.key(1), (2, cfg.hidden_size))
  parents = jnp.array([[5, 9, 0], [52, 1, 7]])
  candidates = jnp.array([[3, 4], [50, 2]])
  added = model.coupling_logits(hidden, parents, candidates)
  for row, w in itertools.product(range(2), range(3)):
    whole = model.logits(model.coupled(hidden[row], parents[row, w]))
    plain = model.logits(hidden[row])
    np.testing.assert_allclose(
      added[row, w], (whole - plain)[candidates[row]], atol=1e-4
    )


def test_scores_are_a_law_over_the_candidates_mass():
  own = jnp.log(jnp.array([[0.5, 0.2, 0.1]]))
  added = jnp.array([[[0.0, 2.0, -1.0], [0.0, 0.0, 0.0]]])
  states = jnp.arange(3)[None]

  def add(hidden, parents, candidates):
    assert hidden.tolist() == [1]  # of the stream that drafts depth 2
    return added

  score = tree_lib.coupled_edges(add, states)
  edges = score(2, None, jnp.zeros((1, 2), int), jnp.zeros((1, 3), int), own)
  law = np.exp(np.asarray(own[:, None] + edges))
  np.testing.assert_allclose(law.sum(-1), [[0.8, 0.8]], rtol=1e-6)
  # Odds between candidates change by the added logits; zeros change nothing.
  np.testing.assert_allclose(
    law[0, 0, 1] / law[0, 0, 0], 0.4 * np.exp(2), rtol=1e-5
  )
  np.testing.assert_allclose(edges[0, 1], 0, atol=1e-6)


def test_tree_holds_the_best_joint_candidates():
  rng = np.random.default_rng(3)
  vocab, width, depth = 11, 3, 3
  logits = jnp.asarray(rng.normal(size=(1, depth, vocab)), jnp.float32)
  table = jnp.asarray(2 * rng.normal(size=(vocab, vocab)), jnp.float32)
  added = lambda hidden, parents, candidates: (
    hidden[:, None, None] * table[parents[:, :, None], candidates[:, None]]
  )
  root = jnp.array([4])
  strength = jnp.array([[1.0, 0.5, 2.0]])
  tree = tree_lib.from_stream_logits(
    logits, root, TREE, edge_scores=tree_lib.coupled_edges(added, strength),
    before_root=root,
  )  # fmt: skip
  # Every path of candidates, scored one by one.
  log_probs = np.asarray(jax.nn.log_softmax(logits[0], axis=-1))
  top = np.argsort(-log_probs, axis=1)[:, :width]
  scores = {}
  for length in range(1, depth + 1):
    for path in itertools.product(*top[:length].tolist()):
      total, parent = 0.0, 4
      for d, token in enumerate(path):
        own = log_probs[d, top[d]]
        more = np.asarray(table)[parent, top[d]]
        coupled = own + strength[0, d] * more
        law = coupled - np.logaddexp.reduce(coupled) + np.logaddexp.reduce(own)
        total += law[top[d].tolist().index(token)]
        parent = token
      scores[path] = total
  best = sorted(scores, key=scores.get, reverse=True)[: TREE.num_nodes - 1]
  tokens, parents = np.asarray(tree.tokens[0]), np.asarray(tree.parents[0])
  found = set()
  for node in range(1, TREE.num_nodes):
    path = []
    while node:
      path.insert(0, int(tokens[node]))
      node = int(parents[node])
    found.add(tuple(path))
  assert found == set(best)


def batch(built, seed=5):
  shape = (2, 12)
  tokens = tiny.tokens(seed, (2, 13), built.cfg.vocab_size)
  return {
    'decoder_input_tokens': tokens[:, :-1],
    'decoder_target_tokens': tokens[:, 1:],
    'decoder_loss_weights': jnp.ones(shape),
    'decoder_segment_ids': jnp.ones(shape, jnp.int32),
    'decoder_positions': jnp.broadcast_to(jnp.arange(12), shape),
  }


@pytest.mark.parametrize('kind', KINDS)
def test_loss_moves_the_coupling_and_leaves_the_streams_alone(kind):
  built, base, adapter = tiny.model(streams=of_kind(kind))
  plain, coupled = (
    config.ObjectiveConfig(coupling_weight=w, anchors_per_sequence=4)
    for w in (0.0, 1.0)
  )

  @jax.jit
  def gradients(adapter):
    def total(adapter, cfg):
      model = built.merge(base, adapter)
      return objective.loss(model, batch(built), jax.random.key(0), cfg)[0]

    return [jax.grad(total)(adapter, cfg) for cfg in (plain, coupled)]

  without, with_it = map(params.flatten, gradients(adapter))
  for path, gradient in with_it.items():
    if path.startswith('coupling/'):
      assert jnp.abs(gradient).max() > 0 and not without[path].any()
    else:
      np.testing.assert_allclose(gradient, without[path], atol=2e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_loss_tells_each_stream_the_token_before_its_own(kind):
  built, base, adapter = tiny.model(streams=of_kind(kind))
  num_streams, weight = STREAMS.num_streams, 0.3
  cfg = config.ObjectiveConfig(
    stream_weight=weight,
    anchors_per_sequence=12,
    pruning_weight=0.0,
    coupling_weight=0.5,
  )
  data, anchors = batch(built), jnp.tile(jnp.arange(12), (2, 1))

  @jax.jit
  def run(adapter):
    model = built.merge(base, adapter)
    total, metrics = objective.loss(model, data, jax.random.key(0), cfg)
    hidden = forward.forward_train(
      model,
      data['decoder_input_tokens'],
      data['decoder_positions'],
      data['decoder_segment_ids'],
      anchors,
    ).streams
    # Logits of every stream under every parent that a row may name.
    by_parent = jax.vmap(
      lambda token: model.logits(
        model.coupled(hidden, jnp.full(hidden.shape[:-1], token))
      )
    )(jnp.arange(built.cfg.vocab_size))
    return total, metrics, jax.nn.log_softmax(by_parent, axis=-1)

  whole, metrics, log_probs = run(adapter)
  targets = np.asarray(data['decoder_target_tokens'])
  for j in range(1, num_streams + 1):
    losses = [
      -log_probs[targets[b, t + j - 1], b, t, j - 1, targets[b, t + j]]
      for b in range(2)
      for t in range(12 - j)
    ]
    total, count = metrics[f'loss/coupled_{j}']
    assert count == len(losses)
    np.testing.assert_allclose(total / count, np.mean(losses), rtol=1e-5)
  mean = lambda name: metrics[f'loss/{name}'][0] / metrics[f'loss/{name}'][1]
  terms = [mean('main')]
  for j in range(1, num_streams + 1):
    terms += [weight * mean(f'stream_{j}'), 0.5 * weight * mean(f'coupled_{j}')]
  np.testing.assert_allclose(whole, sum(terms), rtol=1e-5)


def test_training_a_part_moves_that_part():
  built, base, adapter = tiny.model(streams=STREAMS)
  cfg = config.OptimizerConfig(trainable='coupling/', warmup_steps=0)
  optimizer = step_lib.make_optimizer(cfg, 20)
  state = step_lib.init_state(adapter, optimizer)

  @jax.jit
  def advance(state, base, data):
    return step_lib.train_step(
      state,
      base,
      data,
      built=built,
      optimizer=optimizer,
      cfg=config.ObjectiveConfig(anchors_per_sequence=12),
      seed=0,
      trainable='coupling/',
    )

  data, losses = batch(built), []
  for _ in range(20):
    state, metrics = advance(state, base, data)
    losses.append(float(metrics['loss/coupled_2'][0]))
  before, after = params.flatten(adapter), params.flatten(state.adapter)
  moved = {p for p in before if not np.array_equal(before[p], after[p])}
  assert moved == {'coupling/down', 'coupling/up'}
  assert losses[-1] < losses[0]


@pytest.fixture(
  scope='module',
  params=[pytest.param('bilinear', marks=pytest.mark.slow), 'mlp'],
)
def model(request):
  """A tiny runtime model whose streams have a strong random coupling."""
  plain = tiny_runtime.model()
  stream = dataclasses.replace(
    plain.stream, coupling_rank=4, coupling=request.param
  )
  made = runtime.with_random_streams(
    dataclasses.replace(plain, stream=None, adapter={}), stream
  )
  keys = jax.random.split(jax.random.key(2))
  noise = {
    'down': jax.random.normal(keys[0], (16, 4)),
    'up': 3 * jax.random.normal(keys[1], (4, 16)),
  }
  if request.param == 'mlp':
    noise['state'] = jax.random.normal(keys[0], (16, 4))
  return dataclasses.replace(made, adapter={**made.adapter, 'coupling': noise})


@pytest.mark.parametrize(
  'temperature', [0.8, pytest.param(0.0, marks=pytest.mark.slow)]
)
def test_tokens_equal_plain_decoding(model, temperature):
  decode = config.DecodeConfig(max_new_tokens=12, eos_ids=model.eos_ids)
  sampling = config.SamplingConfig(temperature=temperature)
  tree = config.TreeConfig(num_nodes=6, depth=2, branching=3)
  prompts = [model.encode('one two'), model.encode('x')]
  results = {}
  for name, coupling in (('none', True), ('streams', True), ('streams', False)):
    drafter = config_drafting.DrafterConfig(name, tree, coupling=coupling)
    decoder = model.decoder(drafter, decode)
    results[name, coupling] = decoder.generate(
      model.params(drafter), prompts, seed=3, sampling=sampling
    )
  tokens = [result.tokens for result in results.values()]
  assert tokens[0] == tokens[1] == tokens[2]
