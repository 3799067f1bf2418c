# SPDX-License-Identifier: Apache-2.0
"""A DART layer: the loss against numpy, one step, and from records to drafts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
import tiny
import tokenizers
from tokenizers import models, pre_tokenizers
import train_process
import training_batches as tb

from specstream_jax import config, runtime
from specstream_jax.checkpoints import (
  dart as checkpoint,
  huggingface,
  loading,
  token_ids,
)
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records
from specstream_jax.modeling import dart as dart_lib, params
from specstream_jax.training import dart_losses, distillation
from specstream_jax.workflows import train_dart as workflow

J = 3
CFG = config.ObjectiveConfig(stream_weight=1.0, stream_decay=0.8, chunk_size=7)
CONFIG = train_process.CONFIG
LAYER = dart_lib.build(CONFIG, J, dtype='float32')


def model():
  """(built, base) without an adapter, and a noisy layer."""
  built, base, _ = tiny.model(CONFIG, None, None)
  start = dart_lib.init(LAYER, params.flatten(base), jax.random.key(2))
  flat = params.flatten(start)
  keys = jax.random.split(jax.random.key(5), len(flat))
  noisy = {
    path: leaf + 0.2 * jax.random.normal(key, leaf.shape)
    for key, (path, leaf) in zip(keys, flat.items())
  }
  return built, base, params.unflatten(noisy)


def oracle_loss(base, layer):
  """(loss, {metric: mean}, hits of the text) by loops over rows and drafts."""
  oracle = reference.Model(params.flatten(base), {}, CONFIG, None, None)
  flat = params.flatten(layer)
  kl, rank, hits = ([[] for _ in range(J)] for _ in range(3))
  for prompt, answer in [e for row in tb.examples() for e in row]:
    tokens = np.concatenate([prompt, answer])
    hidden, _ = oracle.run(tokens[:-1])
    for t in range(len(prompt) - 1, len(tokens) - 1):
      states = reference.dart_drafts(oracle, flat, tokens, t, J)
      for j in range(J):
        if t + 2 + j >= len(tokens):
          continue
        said = oracle.logits(hidden[t + 1 + j])
        drafted = oracle.logits(states[j])
        target, draft = reference.softmax(said), reference.softmax(drafted)
        kl[j].append(float(np.sum(target * np.log(target / draft))))
        rank[j].append(int((drafted > drafted[said.argmax()]).sum()))
        hits[j].append(int((drafted > drafted[tokens[t + 2 + j]]).sum()))
  total = sum(0.8**j * np.mean(kl[j]) for j in range(J))
  means = {}
  for j in range(J):
    means[f'loss/stream_{j + 1}'] = np.mean(kl[j])
    means[f'top1/stream_{j + 1}'] = np.mean(np.array(rank[j]) < 1)
    means[f'top4/stream_{j + 1}'] = np.mean(np.array(rank[j]) < 4)
  return total, means, hits


def test_loss_and_tokens_per_call_equal_the_oracle():
  built, base, layer = model()
  batch = tb.pack(tb.examples())

  @tb.jit
  def measure(layer, base):
    target = built.merge(base, {})
    hidden = distillation.hidden_states(target, batch)
    module, key = LAYER.merge(layer), jax.random.key(0)
    found = dart_losses.loss(target, module, J, hidden, batch, key, CFG)
    evaluated = dart_losses.eval_step(
      layer,
      base,
      batch,
      built=built,
      dart=LAYER,
      cfg=CFG,
      tree=config.TreeConfig('full', depth=1, branching=4),
      tree_anchors=tb.LENGTH,
    )
    return *found, evaluated['tokens_per_call']

  total, metrics, (value, weight) = measure(layer, base)
  expected, means, hits = oracle_loss(base, layer)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert metrics.keys() == means.keys()
  for name, (summed, count) in metrics.items():
    np.testing.assert_allclose(summed / count, means[name], rtol=1e-5)
  anchors = sum(len(answer) for row in tb.examples() for _, answer in row)
  assert weight == anchors
  np.testing.assert_allclose(value, anchors + (np.array(hits[0]) < 4).sum())


def test_at_the_start_it_says_what_the_state_says_and_masks_the_mean():
  built, base, _ = tiny.model(CONFIG, None, None)
  size = len(base['final_norm']['scale'])
  base['final_norm']['scale'] = np.linspace(0.3, 2.5, size, dtype=np.float32)
  batch = tb.pack(tb.examples())
  mean = np.asarray(dart_losses.mean_state(built, base, batch))
  hidden = distillation.hidden_states(built.merge(base, {}), batch)
  normed = hidden / np.sqrt(np.mean(np.square(hidden), -1, keepdims=True))
  counts = batch['decoder_loss_weights'] > 0
  np.testing.assert_allclose(mean, normed[counts].mean(0), atol=1e-5)
  start = dart_lib.init(LAYER, params.flatten(base), jax.random.key(2), mean)
  anchors = np.tile(np.arange(4), (len(hidden), 1))
  states = dart_losses.drafted(
    built.merge(base, {}), LAYER.merge(start), J, hidden, batch, anchors
  )
  scale = np.sqrt(np.mean(np.square(base['final_norm']['scale'])))
  np.testing.assert_allclose(
    states[:, :, 0], normed[:, :4] * scale, rtol=1e-3, atol=1e-4
  )
  mean = mean * scale / np.sqrt(np.mean(mean**2))
  apart = np.asarray(states[:, :, 1:]) - mean
  assert np.abs(apart).max() < 0.2 * np.abs(mean).max()


# From records to a decoder


@pytest.fixture(autouse=True, scope='module')
def _compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


PROMPTS = ('ab', 'ba', 'c')


def letters():
  vocabulary = {'<eos>': 0} | {c: i + 1 for i, c in enumerate('abcdefgh')}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return tokenizer


def recipe(steps):
  return workflow.DartRecipe(
    num_drafts=J,
    objective=config.ObjectiveConfig(anchors_per_sequence=32, chunk_size=64),
    optimizer=config.OptimizerConfig(learning_rate=0.02, warmup_steps=1),
    train=config.TrainConfig(
      num_steps=steps, batch_size=4, log_every=10, eval_every=60, eval_batches=1
    ),
    data=config.DataConfig(sequence_length=32, eval_batch_size=3),
    tree=config.TreeConfig(depth=3, branching=2, num_nodes=6),
  )


def write_model(folder, seed):
  cfg = config.ModelConfig(
    vocab_size=9,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
  )
  _, base, _ = tiny.model(cfg, None, None, seed=seed)
  flat = {k: np.asarray(v) for k, v in params.flatten(base).items()}
  huggingface.export(folder, cfg, flat, huggingface.Extras(letters()))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder with model/, records/ and a trained run/."""
  root = tmp_path_factory.mktemp('dart')
  write_model(root / 'model', 4)
  # What the model itself says: that is what the layer has to foresee.
  answers = decode(root, 'none').tokens
  prompts = [loaded(root).encode(prompt) for prompt in PROMPTS]
  pairs = [
    (np.array(a, np.int32), np.array(b, np.int32))
    for a, b in zip(prompts, answers)
  ]
  metadata = {
    'task': 'letters',
    'tokenizer_sha256': token_ids.tokenizer_hash(letters()),
    'eos_id': 0,
  }
  records.write(pairs * 4, str(root / 'records'), metadata=metadata)
  done = train(root)
  assert done.step == 60 and not done.interrupted
  assert done.folder == str(root / 'run' / 'dart')
  return root


def train(root, folder='run', steps=60):
  return workflow.train(
    str(root / 'model'),
    str(root / 'records'),
    str(root / folder),
    eval_data_dir=str(root / 'records'),
    recipe=recipe(steps),
    save_dtype='float32',
    progress=False,
  )


@functools.cache
def loaded(root):
  return runtime.load(str(root / 'model'))


@functools.cache
def decode(root, drafter):
  decode_cfg = config.DecodeConfig(max_new_tokens=15)
  made = loaded(root).decoder(drafter, decode_cfg)
  weights = loaded(root).params(drafter)
  return made.generate(weights, [loaded(root).encode(p) for p in PROMPTS])


def dart_of(root, folder='run/dart', **settings):
  path = str(root / folder)
  return config_drafting.DrafterConfig('dart', path=path, **settings)


def test_a_trained_layer_is_accepted_and_changes_no_token(root):
  tree = config.TreeConfig('chain', depth=3)
  fast = decode(root, dart_of(root, tree=tree))
  assert fast.tokens == decode(root, 'none').tokens
  assert fast.tokens_per_call() > 1.5
  for name in ('metrics.jsonl', 'curves.svg', 'recipe.json'):
    assert (root / 'run' / name).stat().st_size > 0, name
  flat, _ = checkpoint.load(root / 'run' / 'dart')
  base = loading.load_model(str(root / 'model'))
  layer = dart_lib.build(base.config, J, dtype='float32')
  start = dart_lib.init(layer, base.params, jax.random.key(0))
  for path, leaf in params.flatten(start).items():
    assert (flat[path] != np.asarray(leaf)).any(), path


@pytest.mark.slow
def test_training_is_what_makes_it_accepted(root):
  done = train(root, 'short', 1)
  assert done.step == 1
  slow = decode(root, dart_of(root, 'short/dart'))
  fast = decode(root, dart_of(root))
  assert fast.tokens == slow.tokens == decode(root, 'none').tokens
  assert fast.tokens_per_call() > 1.2 * slow.tokens_per_call()


def test_a_layer_of_another_model_is_refused(root, tmp_path):
  write_model(tmp_path / 'model', 5)
  with pytest.raises(ValueError, match='the same sizes but other weights'):
    decode(tmp_path, dart_of(root))
  with pytest.raises(ValueError, match="'dart' has no path"):
    decode(root, 'dart')
  flat, cfg = checkpoint.load(root / 'run' / 'dart')
  flat['fuse/kernel'] = flat['fuse/kernel'][:-1]
  checkpoint.save(tmp_path / 'cut', flat, cfg, dtype='float32')
  with pytest.raises(ValueError, match='weights are not those of a layer of'):
    decode(
      root, config_drafting.DrafterConfig('dart', path=str(tmp_path / 'cut'))
    )
  flat, _ = checkpoint.load(root / 'run' / 'dart')
  narrow = dataclasses.replace(cfg, num_drafts=2)
  flat['masks'] = flat['masks'][:1]
  checkpoint.save(tmp_path / 'two', flat, narrow, dtype='float32')
  deep = dart_of(tmp_path, 'two', tree=config.TreeConfig('chain', depth=3))
  with pytest.raises(ValueError, match='depth 3 but the DART layer drafts 2'):
    decode(root, deep)
