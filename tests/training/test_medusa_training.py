# SPDX-License-Identifier: Apache-2.0
"""Medusa-1: the loss against numpy, resuming, and heads that learn."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
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
  adapters,
  huggingface,
  loading,
  medusa as checkpoint,
  token_ids,
)
from specstream_jax.cli import info
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records
from specstream_jax.modeling import heads as heads_lib, params
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  head_losses,
  loop,
  metric_files as metrics_lib,
  step as step_lib,
)
from specstream_jax.workflows import train_medusa as workflow

J = 3
CFG = config.ObjectiveConfig(stream_weight=1.0, stream_decay=0.8, chunk_size=7)
CONFIG = train_process.CONFIG
HEADS = heads_lib.build(CONFIG, J)


def model():
  """(built, base) without an adapter, and noisy heads."""
  built, base, _ = tiny.model(CONFIG, None, None)
  flat = params.flatten(heads_lib.init(HEADS, base))
  keys = jax.random.split(jax.random.key(5), len(flat))
  noisy = {
    path: leaf + 0.3 * jax.random.normal(key, leaf.shape)
    for key, (path, leaf) in zip(keys, flat.items())
  }
  return built, base, params.unflatten(noisy)


def oracle_loss(base, heads):
  """(loss, {metric: mean}) by loops over rows, examples, positions, heads."""
  oracle = reference.Model(params.flatten(base), {}, CONFIG, None, None)
  nll = [[] for _ in range(J)]
  rank = [[] for _ in range(J)]
  for prompt, answer in [e for row in tb.examples() for e in row]:
    tokens = np.concatenate([prompt, answer])
    hidden, _ = oracle.run(tokens[:-1])
    for t in range(len(prompt) - 1, len(tokens) - 1):
      for j in range(J):
        if t + 2 + j >= len(tokens):
          continue
        head = {k: np.asarray(v, float) for k, v in heads['heads'][j].items()}
        inner = head['kernel'] @ hidden[t] + head['bias']
        logits = head['projection'] @ (hidden[t] + inner / (1 + np.exp(-inner)))
        target = logits[tokens[t + 2 + j]]
        nll[j].append(np.log(np.exp(logits - target).sum()))
        rank[j].append(int((logits > target).sum()))
  total = sum(0.8**j * np.mean(nll[j]) for j in range(J))
  means = {}
  for j in range(J):
    means[f'loss/stream_{j + 1}'] = np.mean(nll[j])
    means[f'top1/stream_{j + 1}'] = np.mean(np.array(rank[j]) < 1)
    means[f'top4/stream_{j + 1}'] = np.mean(np.array(rank[j]) < 4)
  return total, means, rank


def test_loss_and_accuracies_equal_the_oracle():
  built, base, heads = model()
  batch = tb.pack(tb.examples())

  @tb.jit
  def measure(heads, base):
    hidden = head_losses.main_hidden(built, base, batch)
    module = HEADS.merge(heads)
    return head_losses.loss(module, hidden, batch, jax.random.key(0), CFG)

  total, metrics = measure(heads, base)
  expected, means, rank = oracle_loss(base, heads)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert metrics.keys() == means.keys()
  for name, (value, weight) in metrics.items():
    np.testing.assert_allclose(value / weight, means[name], rtol=1e-5)
  count = functools.partial(
    head_losses.rank_counts, built=built, heads=HEADS, cfg=CFG, num_ranks=11
  )
  hits, totals = tb.jit(count)(heads, base, batch)['accuracy']
  for j in range(J):
    found = np.bincount(rank[j], minlength=CONFIG.vocab_size)[:11]
    np.testing.assert_allclose(hits[j], found)
    np.testing.assert_allclose(totals[j], len(rank[j]))


def test_expected_tokens_per_call_of_a_chain_by_the_oracle():
  built, base, heads = model()
  batch = tb.pack(tb.examples())
  measure = functools.partial(
    head_losses.eval_step,
    built=built,
    heads=HEADS,
    cfg=CFG,
    tree=config.TreeConfig('full', depth=1, branching=4),
    tree_anchors=tb.LENGTH,
  )
  value, weight = tb.jit(measure)(heads, base, batch)['tokens_per_call']
  _, _, rank = oracle_loss(base, heads)
  anchors = sum(len(answer) for row in tb.examples() for _, answer in row)
  assert weight == anchors
  np.testing.assert_allclose(value, anchors + (np.array(rank[0]) < 4).sum())


# Through the loop


@pytest.fixture(autouse=True, scope='module')
def _compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def run(folder, batches, open_eval=None):
  """Five steps of the tiny heads in `folder`, resuming."""
  built, base, heads = model()
  setup = loop.TrainSetup(
    built=built,
    base=base,
    adapter=heads,
    train=config.TrainConfig(
      num_steps=5, seed=3, log_every=1, eval_every=5, eval_batches=1
    ),
    objective=config.ObjectiveConfig(
      stream_weight=1.0, anchors_per_sequence=3, chunk_size=7
    ),
    optimizer=config.OptimizerConfig(warmup_steps=2),
    tree=config.TreeConfig('chain', depth=2),
    steps=functools.partial(head_losses.steps, HEADS),
  )
  checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints')
  writer = metrics_lib.Writer(str(folder))
  outcome = loop.train(
    setup, batches, open_eval, checkpoints, writer, progress=True
  )
  checkpoints.close()
  writer.close()
  return outcome


@pytest.mark.slow
def test_stopped_run_continues_to_the_same_heads(tmp_path):
  open_eval = lambda: iter([train_process.make_batch(1000)])
  whole = run(tmp_path / 'whole', train_process.Memory(), open_eval)
  stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
  batches = train_process.Watched(train_process.Memory(), 3, stop)
  first = run(tmp_path / 'cut', batches)
  assert first.interrupted and int(first.state.step) == 3
  batches = train_process.Watched(train_process.Memory())
  rest = run(tmp_path / 'cut', batches)
  assert int(rest.state.step) == 5 and len(batches.seen) == 2
  same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
  jax.tree.map(same, rest.state.adapter, whole.state.adapter)
  text = (tmp_path / 'whole' / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [line['split'] for line in lines] == ['train'] * 5 + ['eval']
  assert {'loss/total', 'top1/stream_3', 'top4/stream_1'} <= set(lines[0])
  assert 1 <= lines[-1]['tokens_per_call'] <= 3


def test_step_moves_every_weight_of_every_head_and_nothing_else():
  built, base, heads = model()
  optimizer = step_lib.make_optimizer(config.OptimizerConfig(warmup_steps=0), 9)
  state = step_lib.init_state(heads, optimizer)
  before = jax.tree.map(np.array, base)
  advance = functools.partial(
    head_losses.train_step,
    built=built,
    heads=HEADS,
    optimizer=optimizer,
    cfg=CFG,
    seed=0,
  )
  after, _ = tb.jit(advance)(state, base, tb.pack(tb.examples()))
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.adapter, heads)
  assert all(jax.tree.leaves(moved))
  jax.tree.map(np.testing.assert_array_equal, base, before)


# From records to a decoder

ALPHABET = 'abcdefgh'
PROMPTS = ('ab', 'ba', 'c')


def letters():
  vocabulary = {'<eos>': 0} | {c: i + 1 for i, c in enumerate(ALPHABET)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return tokenizer


NUM_STEPS = 60


def recipe():
  return workflow.HeadsRecipe(
    num_heads=J,
    calibration_batches=1,
    objective=config.ObjectiveConfig(anchors_per_sequence=32, chunk_size=64),
    optimizer=config.OptimizerConfig(learning_rate=0.02, warmup_steps=1),
    train=config.TrainConfig(
      num_steps=NUM_STEPS,
      batch_size=4,
      log_every=30,
      eval_every=60,
      eval_batches=1,
    ),
    data=config.DataConfig(sequence_length=32, eval_batch_size=3),
    tree=config.TreeConfig(depth=3, branching=2, num_nodes=6),
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with model/, records/, run/ and untrained heads/."""
  root = tmp_path_factory.mktemp('medusa')
  cfg = config.ModelConfig(
    vocab_size=9,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
  )
  _, base, _ = tiny.model(cfg, None, None, seed=4)
  flat = {k: np.asarray(v) for k, v in params.flatten(base).items()}
  tokenizer = letters()
  huggingface.export(root / 'model', cfg, flat, huggingface.Extras(tokenizer))
  # What the model itself says: that is what heads have to foresee.
  answers = decode(root, 'none').tokens
  prompts = [loaded(root).encode(prompt) for prompt in PROMPTS]
  pairs = [
    (np.array(a, np.int32), np.array(b, np.int32))
    for a, b in zip(prompts, answers)
  ]
  metadata = {
    'task': 'letters',
    'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer),
    'eos_id': 0,
  }
  records.write(pairs * 4, str(root / 'records'), metadata=metadata)
  done = train(root)
  assert done.step == NUM_STEPS and not done.interrupted
  start = heads_lib.init(heads_lib.build(cfg, J), base)
  trained_cfg = checkpoint.read_config(done.folder)
  checkpoint.save_heads(root / 'heads', params.flatten(start), trained_cfg)
  return root


def train(root):
  return workflow.train(
    str(root / 'model'),
    str(root / 'records'),
    str(root / 'run'),
    eval_data_dir=str(root / 'records'),
    recipe=recipe(),
    progress=False,
  )


@functools.cache
def loaded(root):
  return runtime.load(str(root / 'model'))


def decoder_of(root, drafter):
  decode_cfg = config.DecodeConfig(max_new_tokens=15)
  return loaded(root).decoder(drafter, decode_cfg), loaded(root).params(drafter)


@functools.cache
def decode(root, drafter):
  made, weights = decoder_of(root, drafter)
  return made.generate(weights, [loaded(root).encode(p) for p in PROMPTS])


def medusa_of(root, folder='run/medusa', **settings):
  path = str(root / folder)
  return config_drafting.DrafterConfig('medusa', path=path, **settings)


@pytest.mark.slow
def test_trained_heads_accept_more_than_untrained_ones(trained):
  tree = config.TreeConfig('chain', depth=3)
  fast = decode(trained, medusa_of(trained, tree=tree))
  slow = decode(trained, medusa_of(trained, 'heads', tree=tree))
  plain = decode(trained, 'none')
  assert fast.tokens == slow.tokens == plain.tokens
  assert fast.tokens_per_call() > 1.3 * slow.tokens_per_call()


@pytest.mark.slow
def test_calibrated_tree_is_the_default_and_is_saved(trained):
  cfg = checkpoint.read_config(trained / 'run' / 'medusa')
  assert cfg.tree.kind == 'fixed' and 1 < cfg.tree.size <= 6
  accuracies = np.array(cfg.provenance['rank_accuracies'])
  # Nine ranks are all there are.
  np.testing.assert_allclose(accuracies.sum(axis=1), np.ones(J), atol=1e-4)
  made, _ = decoder_of(trained, medusa_of(trained))
  assert made.setup.drafter.size == cfg.tree.size
  result = decode(trained, medusa_of(trained))
  assert result.tokens == decode(trained, 'none').tokens
  assert result.tokens_per_call() > 1.5


def test_run_writes_what_it_promises_and_ends_twice_the_same(trained):
  run_dir = trained / 'run'
  for name in ('metrics.jsonl', 'curves.svg', 'recipe.json'):
    assert (run_dir / name).stat().st_size > 0, name
  lines = [
    json.loads(line)
    for line in (run_dir / 'metrics.jsonl').read_text().splitlines()
    if '"train"' in line
  ]
  assert lines[-1]['loss/total'] < 0.7 * lines[0]['loss/total']
  path = run_dir / 'medusa' / checkpoint.WEIGHTS
  before = path.read_bytes()
  train(trained)
  assert path.read_bytes() == before


def test_info_prints_heads_beside_streams(trained):
  text = info.describe(str(trained / 'run' / 'medusa'))
  # 3 · (16² + 16 · 9) + 3 · 16, and 3 · 16 + 16 · 16.
  assert '1,248 = γ(h² + hV) + γh biases, γ = 3, h = 16, V = 9' in text
  assert '304 = γh + 16h, 4 times fewer' in text


def test_heads_of_another_model_are_refused(trained, tmp_path):
  cfg = loaded(trained).config
  _, base, _ = tiny.model(cfg, None, None, seed=5)
  flat = {k: np.asarray(v) for k, v in params.flatten(base).items()}
  extras = huggingface.Extras(letters())
  huggingface.export(tmp_path / 'model', cfg, flat, extras)
  with pytest.raises(ValueError, match='the same sizes but other weights'):
    decode(tmp_path, medusa_of(trained))
  with pytest.raises(ValueError, match="'medusa' has no path"):
    decode(trained, 'medusa')


def test_heads_are_for_the_model_with_its_adapter(trained):
  """What `runtime.load` makes of base and adapter is what the heads know."""
  cfg = loaded(trained).config
  stream = config.StreamConfig(num_streams=J, num_msa_layers=1, pruning_rank=2)
  lora = config.LoraConfig(rank=2, alpha=4.0)
  flat = params.flatten(tiny.model(cfg, stream, lora)[2])
  base = loading.load_model(str(trained / 'model'))
  adapters.save_adapter(
    trained / 'adapter',
    flat,
    adapters.AdapterConfig(
      base_model_id='letters',
      base_config_hash=base.config_hash,
      base_fingerprint=base.fingerprint,
      stream=stream,
      lora=lora,
      tree=config.TreeConfig(depth=J),
    ),
  )
  folder = str(trained / 'adapter')
  merged, heads_cfg = workflow._main_model(
    str(trained / 'model'), folder, 'float32', J
  )
  assert heads_cfg.adapter == folder
  for dtype in config.DTYPES:
    tuned = runtime.load(str(trained / 'model'), folder, dtype=dtype)
    own = params.transpose_kernels(params.flatten(tuned.base))
    checkpoint.check_base(heads_cfg, own, tuned.config)
    if dtype == 'float32':
      assert own.keys() == merged.params.keys()
      for path, leaf in merged.params.items():
        np.testing.assert_array_equal(own[path], leaf)
  with pytest.raises(ValueError, match='with adapter'):
    checkpoint.check_base(heads_cfg, base.params, cfg)
