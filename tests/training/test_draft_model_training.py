# SPDX-License-Identifier: Apache-2.0
"""Distilling a draft model: the loss, one run to a folder that decodes."""

import dataclasses
import functools
import json
import os

import byte_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers
from tokenizers import models, pre_tokenizers
import training_batches as tb

import specstream_jax as ss
from specstream_jax import config, drafters
from specstream_jax.checkpoints import loading
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records
from specstream_jax.modeling import build, params
from specstream_jax.training import distillation, step as step_lib
from specstream_jax.workflows import train_draft_model, train_run

TARGET = dataclasses.replace(tiny.CONFIG, num_layers=3)
DRAFT = dataclasses.replace(tiny.CONFIG, num_layers=2)
CFG = config.ObjectiveConfig(anchors_per_sequence=17, chunk_size=5)


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def weights(cfg, seed=0):
  return tiny.model(cfg, None, None, seed)[1]


# The loss


@functools.cache
def gradient_fn():
  target, draft = build.build(TARGET), build.build(DRAFT)

  def loss(draft_weights, base, batch):
    pair = target.merge(base, {}), draft.merge(draft_weights, {})
    return distillation.loss(*pair, batch, jax.random.key(0), CFG)

  return tb.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@functools.cache
def full_logits(cfg):
  """(weights, batch) -> logits [B, T, V], no chunks and no anchors."""
  built = build.build(cfg)

  def run(base, batch):
    model = built.merge(base, {})
    return model.logits(distillation.hidden_states(model, batch))

  return tb.jit(run)


def test_loss_is_the_mean_divergence_at_positions_that_carry_loss():
  batch = tb.pack(tb.examples())
  base, draft_weights = weights(TARGET), weights(DRAFT, seed=5)
  (total, metrics), _ = gradient_fn()(draft_weights, base, batch)
  both = [
    np.float64(full_logits(cfg)(w, batch))
    for cfg, w in ((TARGET, base), (DRAFT, draft_weights))
  ]
  laws = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in both]
  carries = np.asarray(batch['decoder_loss_weights']) > 0
  kl = (np.exp(laws[0]) * (laws[0] - laws[1])).sum(-1)[carries]
  agrees = (laws[0].argmax(-1) == laws[1].argmax(-1))[carries]
  np.testing.assert_allclose(total, kl.mean(), rtol=1e-4)
  assert kl.mean() > 0.1
  assert float(metrics['top1/main'][0]) == agrees.sum()
  assert float(metrics['loss/main'][1]) == carries.sum() > 0


def test_only_the_draft_model_is_pulled():
  batch = tb.pack(tb.examples(1))
  _, (draft_gradient, target_gradient) = gradient_fn()(
    weights(DRAFT, seed=5), weights(TARGET), batch
  )
  norm = lambda tree: sum(
    float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree)
  )
  assert norm(draft_gradient) > 0.1
  hidden = {k: v for k, v in target_gradient.items() if k != 'embed'}
  assert norm(hidden) == 0


def test_equal_models_do_not_diverge():
  built, base = build.build(TARGET), weights(TARGET)
  batch = tb.pack(tb.examples())

  def loss(base):
    model = built.merge(base, {})
    return distillation.loss(model, model, batch, jax.random.key(0), CFG)

  total, metrics = tb.jit(loss)(base)
  np.testing.assert_allclose(total, 0.0, atol=1e-6)
  top1, count = metrics['top1/main']
  assert float(top1) == float(count) > 0


def test_truncation_keeps_embedding_first_layers_norm_and_head():
  untied = dataclasses.replace(TARGET, tie_word_embeddings=False)
  flat = params.flatten(weights(untied))
  cfg, kept = distillation.truncate(untied, flat, 2)
  assert cfg.num_layers == 2
  assert set(kept) == set(params.flatten(build.build(cfg).base))
  assert {'lm_head/kernel', 'final_norm/scale', 'embed/embedding'} <= set(kept)
  for path, leaf in kept.items():
    np.testing.assert_array_equal(leaf, flat[path])
  with pytest.raises(ValueError, match='is 3 but the target has 3 layers'):
    distillation.truncate(untied, flat, 3)


def test_its_embedding_learns_at_the_rate_of_the_rest():
  """Only stream embeddings have a rate of their own."""
  cfg = config.OptimizerConfig(
    learning_rate=0.5, embedding_learning_rate=4.0, warmup_steps=0
  )
  optimizer = step_lib.make_optimizer(cfg, num_steps=5)
  leaf = jnp.ones((2, 3))
  tree = {'embed': {'embedding': leaf}, 'streams': {'embedding': leaf}}
  updates, _ = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree)
  found = [float(-u.mean()) for u in jax.tree.leaves(updates)]
  np.testing.assert_allclose(found, [0.5, 4.0], rtol=1e-4)


def test_tokens_per_call_counts_agreement_along_the_text():
  """By hand: a chain's tokens are the draft model's own on the text."""
  target, draft = build.build(TARGET), build.build(DRAFT)
  tree = config.TreeConfig('chain', depth=2)
  batch, draft_weights = tb.pack(tb.examples(2)), weights(DRAFT, seed=5)
  best = np.asarray(full_logits(DRAFT)(draft_weights, batch)).argmax(-1)
  # Make some of the text what the draft model says.
  text = np.array(batch['decoder_target_tokens'])
  text[:, ::2] = best[:, ::2]
  batch = batch | {'decoder_target_tokens': text}
  measure = tb.jit(
    functools.partial(
      distillation.eval_step, target=target, draft=draft, cfg=CFG, tree=tree
    )
  )
  total, count = measure(draft_weights, weights(TARGET), batch)[
    'tokens_per_call'
  ]
  carries = np.asarray(batch['decoder_loss_weights']) > 0
  segments, hits = np.asarray(batch['decoder_segment_ids']), []
  for row, t in np.argwhere(carries):
    accepted = 0
    for place in (t + 1, t + 2):
      inside = place < text.shape[1] and carries[row, place]
      same = inside and segments[row, place] == segments[row, t]
      if not (same and best[row, place] == text[row, place]):
        break
      accepted += 1
    hits.append(1 + accepted)
  assert float(count) == len(hits) and max(hits) > 1
  assert float(total) == sum(hits)


# A run


MODEL = byte_model.model_config()


@pytest.fixture(name='root', scope='module')
def _root(tmp_path_factory):
  """A folder with model/ and records/."""
  root = tmp_path_factory.mktemp('distil')
  byte_model.write_model(root / 'model', MODEL)
  rows = [(text, ' the sky is blue') for text in ('sky', 'colour', 'hm')]
  byte_model.write_records(root / 'records', rows * 8)
  return root


def recipe(num_steps=40):
  return train_draft_model.DraftRecipe(
    objective=config.ObjectiveConfig(anchors_per_sequence=32, chunk_size=64),
    optimizer=config.OptimizerConfig(learning_rate=0.01, warmup_steps=4),
    train=config.TrainConfig(
      num_steps=num_steps,
      batch_size=2,
      log_every=10,
      eval_every=20,
      eval_batches=1,
      save_every=10,
    ),
    data=config.DataConfig(sequence_length=64, eval_batch_size=2),
    tree=config.TreeConfig('chain', depth=3),
    num_layers=1,
  )


def run(root, folder, progress_recipe=None, **options):
  return train_draft_model.train(
    str(root / 'model'),
    str(root / 'records'),
    str(folder),
    eval_data_dir=str(root / 'records'),
    recipe=progress_recipe or recipe(),
    progress=False,
    **options,
  )


@pytest.fixture(name='whole', scope='module')
def _whole(root):
  """The folder of an uninterrupted run."""
  done = run(root, root / 'run', export='last')
  assert done == train_run.Trained(str(root / 'run' / 'draft_model'), 40)
  return root / 'run'


def lines(folder):
  text = (folder / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in x.items() if 'per_second' not in k} for x in found]


def test_a_run_learns_and_writes_what_it_promises(whole):
  train = [line for line in lines(whole) if line['split'] == 'train']
  assert train[-1]['loss/main'] < 0.5 * train[0]['loss/main']
  evaluated = [line for line in lines(whole) if line['split'] == 'eval']
  assert evaluated[-1]['top1/main'] > 0.5
  assert 1 <= evaluated[-1]['tokens_per_call'] <= 4
  for name in ('curves.svg', 'recipe.json', 'operative_config.gin'):
    assert os.path.exists(whole / name), name
  provenance = train_draft_model.read_provenance(whole / 'draft_model')
  assert provenance['target'] == 'model' and provenance['step'] == 40
  assert provenance['recipe']['num_layers'] == 1
  # Padding is not seen: at most 40 steps of two rows of 64.
  assert 0.5 * 40 * 128 < provenance['tokens_seen'] <= 40 * 128


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_batches_and_counts(
  root, whole, tmp_path, monkeypatch
):
  place = train_run.CountedBatches.__next__

  def stop_at_15(self):
    stop_at_15.calls += 1
    if stop_at_15.calls == 15:
      os.kill(os.getpid(), 15)
    return place(self)

  stop_at_15.calls = 0
  monkeypatch.setattr(train_run.CountedBatches, '__next__', stop_at_15)
  stopped = run(root, tmp_path, export='last')
  assert stopped == train_run.Trained(None, 15, signal=15)
  run(root, tmp_path, export='last')
  assert stop_at_15.calls == 40
  ours, theirs = (
    train_draft_model.read_provenance(folder / 'draft_model')
    for folder in (tmp_path, whole)
  )
  assert ours == theirs
  ours, theirs = (
    loading.load_model(folder / 'draft_model').params
    for folder in (tmp_path, whole)
  )
  for name, leaf in ours.items():
    np.testing.assert_allclose(leaf, theirs[name], atol=1e-4)


def test_the_draft_model_decodes_with_the_tokens_of_plain_decoding(root, whole):
  model = ss.load(str(root / 'model'))
  path = str(whole / 'draft_model')
  drafter = config_drafting.parse(f'draft_model:path={path},kind=chain,depth=3')
  decode = config.DecodeConfig(max_new_tokens=24, prompt_bucket=8)
  prompts = [model.encode(text) for text in ('sky', 'colour')]
  plain = model.decoder('none', decode).generate(model.params('none'), prompts)
  fast = model.decoder(drafter, decode)
  result = fast.generate(model.params(drafter), prompts)
  assert result.tokens == plain.tokens
  assert result.calls.sum() < plain.calls.sum()


def assemble(root, text):
  model = ss.load(str(root / 'model'))
  cfg = config_drafting.parse(text)
  return drafters.load(model, cfg, config.DecodeConfig())


def test_draft_models_that_do_not_fit_are_refused(root, tmp_path):
  with pytest.raises(ValueError, match="'draft_model' has no path"):
    assemble(root, 'draft_model')
  with pytest.raises(ValueError, match="'no_such_model' is not found"):
    assemble(root, 'draft_model:path=no_such_model')
  larger = dataclasses.replace(MODEL, vocab_size=263)
  byte_model.write_model(tmp_path / 'larger', larger)
  (tmp_path / 'larger' / 'tokenizer.json').unlink()
  with pytest.raises(
    ValueError,
    match=r'vocabulary of 263 tokens but the target.*not both tokenizers',
  ):
    assemble(root, f'draft_model:path={tmp_path / "larger"}')
  names = ['<eos>', *sorted(pre_tokenizers.ByteLevel.alphabet())[::-1]]
  other = tokenizers.Tokenizer(
    models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[])
  )
  byte_model.write_model(tmp_path / 'other', MODEL, other)
  with pytest.raises(ValueError, match=r'another tokenizer.*there and 1 here'):
    assemble(root, f'draft_model:path={tmp_path / "other"}')
  with pytest.raises(ValueError, match='top 300 tokens of a node'):
    assemble(root, f'draft_model:path={root / "model"},branching=300')


def test_records_of_another_tokenizer_are_refused(root, tmp_path):
  metadata = {'task': 'x', 'tokenizer_sha256': '0' * 64, 'eos_id': 0}
  one = (np.array([1], np.int32), np.array([2, 0], np.int32))
  records.write([one], str(tmp_path / 'records'), metadata=metadata)
  with pytest.raises(ValueError, match='tokenizer'):
    train_draft_model.train(
      str(root / 'model'), str(tmp_path / 'records'), str(tmp_path / 'run')
    )


def test_dry_run_counts_parameters(root):
  text = train_draft_model.describe(str(root / 'model'), recipe())
  per_layer = 24 * 24 * 2 + 24 * 12 * 2 + 3 * 24 * 36 + 2 * 24
  assert f'{257 * 24 + per_layer + 24:,} parameters in 1 layers' in text
