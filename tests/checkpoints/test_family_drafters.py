# SPDX-License-Identifier: Apache-2.0
"""Every family with every kind of drafter that has weights of its own."""

import dataclasses
import functools

import family_models
import jax
import numpy as np
import pytest
import test_families
import test_family_training

from specstream_jax import config, runtime
from specstream_jax.checkpoints import loading
from specstream_jax.config import model as config_model
from specstream_jax.decoding import decoder, transformer_fns
from specstream_jax.drafters import dart, draft_model, medusa
from specstream_jax.modeling import (
  build,
  dart as dart_lib,
  heads as heads_lib,
  params,
)
from specstream_jax.training import (
  dart_losses,
  distillation,
  head_losses,
  step as step_lib,
)
from specstream_jax.workflows import train_draft_model

pytestmark = pytest.mark.slow

LENGTH = test_families.LENGTH
TREE = config.TreeConfig('full', depth=2, branching=2)
CFG = config.ObjectiveConfig(anchors_per_sequence=LENGTH, chunk_size=64)


def quick(*names):
  """Parameters of a test: all families, all but a few of them slow."""
  return [
    name if name in names else pytest.param(name, marks=pytest.mark.slow)
    for name in family_models.NAMES
  ]


def decode(made, drafter, weights):
  """What the plain model writes with a drafter."""
  num_new = made.text.shape[1] - LENGTH
  cfg = config.DecodeConfig(max_new_tokens=num_new, prompt_bucket=LENGTH)
  fns = transformer_fns.model_fns(made.plain)
  decoding = decoder.Decoder(fns, drafter, cfg)
  weights = transformer_fns.Params(made.base, {}, weights)
  return decoding.generate(weights, made.text[:, :LENGTH].tolist()).tokens


def stepped(step, weights, made):
  """(loss, weights) after one step of the optimiser."""
  optimizer = step_lib.make_optimizer(config.OptimizerConfig(warmup_steps=0), 9)
  state = step_lib.init_state(weights, optimizer)
  advance = jax.jit(
    functools.partial(step, optimizer=optimizer, cfg=CFG, seed=0)
  )
  after, metrics = advance(state, made.base, test_family_training.batch(made))
  assert np.isfinite(metrics['loss/total'][0])
  return after.adapter


def check_moved(after, before):
  before = params.flatten(before)
  for path, leaf in params.flatten(after).items():
    assert np.isfinite(leaf).all(), path
    assert (leaf != before[path]).any(), path


@pytest.mark.parametrize('name', quick('gemma3'))
def test_a_trained_adapter_decodes_as_plain_decoding(name, tmp_path):
  """From a folder, as users do; the base has LoRA folded in."""
  made = family_models.load(name)
  test_family_training.saved(tmp_path, name, params.flatten(made.adapter))
  model = runtime.load(str(made.folder), str(tmp_path))
  prompts = made.text[:, :LENGTH].tolist()
  cfg = config.DecodeConfig(max_new_tokens=12, prompt_bucket=LENGTH)
  tokens = {}
  for drafter in ('none', 'streams'):
    made_decoder = model.decoder(drafter, cfg)
    found = made_decoder.generate(made_decoder.params, prompts)
    tokens[drafter] = found.tokens
  assert tokens['streams'] == tokens['none']
  tuned = made.built.merge(made.base, made.adapter)
  text = np.concatenate([prompts, np.array(tokens['none'])], axis=1)
  hidden = family_models.train_pass(tuned, text[:, :-1]).main
  best = np.asarray(tuned.logits(hidden)).argmax(-1)[:, LENGTH - 1 :]
  np.testing.assert_array_equal(best, tokens['none'])


@pytest.mark.parametrize('name', quick('phi'))
def test_medusa_heads_leave_tokens_as_they_are(name):
  made = family_models.load(name)
  heads = heads_lib.build(made.cfg, 2)
  weights = heads_lib.init(heads, made.base)
  # They start as the model's own next token.
  model = made.plain.merge(made.base, {})
  hidden = family_models.train_pass(model, made.text[:, :5]).main
  own = np.asarray(model.logits(hidden))
  if made.cfg.has_head_bias or made.cfg.logit_softcap:
    own = np.asarray(hidden @ own_head(made).T)
  np.testing.assert_allclose(
    heads.merge(weights).logits(hidden)[..., 0, :], own, atol=1e-4
  )
  step = functools.partial(
    head_losses.train_step, built=made.plain, heads=heads
  )
  after = stepped(step, weights, made)
  check_moved(after, weights)
  tokens = decode(made, medusa.Medusa(heads, TREE), after)
  assert tokens == made.text[:, LENGTH:].tolist()


def own_head(made):
  """Rows [V, D] of the LM head, its divisor in them."""
  flat = made.flat
  rows = flat.get('lm_head/kernel', flat['embed/embedding'].T).T
  return rows / made.cfg.logit_divisor


@pytest.mark.parametrize('name', quick('gemma2'))
def test_a_dart_layer_leaves_tokens_as_they_are(name):
  made = family_models.load(name)
  layer = dart_lib.build(made.cfg, 2, dtype='float32')
  start = dart_lib.init(layer, made.flat, jax.random.key(0))
  step = functools.partial(dart_losses.train_step, built=made.plain, dart=layer)
  after = params.flatten(stepped(step, start, made))
  for path, leaf in params.flatten(start).items():
    assert np.isfinite(after[path]).all(), path
    if path.endswith(('out/kernel', 'down/kernel', 'masks', 'fuse/kernel')):
      assert (after[path] != leaf).any(), path
  num_new = made.text.shape[1] - LENGTH
  cfg = config.DecodeConfig(max_new_tokens=num_new, prompt_bucket=LENGTH)
  fns = transformer_fns.model_fns(made.plain)
  fns = dart.with_layer(fns, made.plain, layer)
  decoding = decoder.Decoder(fns, dart.Dart(made.plain, layer, TREE), cfg)
  weights = transformer_fns.Params(
    made.base, drafter=dart.Weights(params.unflatten(after))
  )
  tokens = decoding.generate(weights, made.text[:, :LENGTH].tolist()).tokens
  assert tokens == made.text[:, LENGTH:].tolist()


@pytest.mark.parametrize('name', quick('opt'))
def test_a_draft_model_of_the_family(name):
  made = family_models.load(name)
  cfg, flat = distillation.truncate(made.cfg, made.flat, 2)
  weights, built = params.unflatten(flat), build.build(cfg)
  step = functools.partial(
    distillation.train_step, target=made.plain, draft=built
  )
  after = stepped(step, weights, made)
  moved = [
    (leaf != flat[path]).any() for path, leaf in params.flatten(after).items()
  ]
  # Tokens and positions that are not in the batch have no gradient.
  assert np.mean(moved) > 0.9
  fns = transformer_fns.model_fns(built)
  drafter = draft_model.DraftModel(
    fns, TREE, config.DecodeConfig(made.text.shape[1] - LENGTH)
  )
  tokens = decode(made, drafter, after)
  assert tokens == made.text[:, LENGTH:].tolist()


@pytest.mark.parametrize('name', ['gemma3', 'qwen2', 'smollm3'])
def test_a_draft_model_has_the_layers_of_its_target(name, tmp_path):
  loaded = loading.load_model(family_models.FOLDER / name)
  for count in range(1, loaded.config.num_layers):
    cfg, flat = distillation.truncate(loaded.config, loaded.params, count)
    assert cfg.kinds == loaded.config.kinds[:count]
    assert (cfg.window > 0) == ('window' in cfg.kinds)
    folder = tmp_path / str(count)
    nested = params.unflatten(flat)
    train_draft_model.export_draft_model(folder, loaded, cfg, nested, {})
    again = loading.load_model(folder)
    assert again.config.kinds == cfg.kinds
    for path, leaf in flat.items():
      np.testing.assert_array_equal(again.params[path], leaf)
  with pytest.raises(ValueError, match='draft_model_layers is 9 but the tar'):
    distillation.sizes(loaded.config, 9)


def test_the_lowest_layers_of_one_kind():
  cfg = family_models.load('gemma3').cfg  # window, full, window, full
  assert config_model.lowest_layers(cfg, 4) == cfg
  one = config_model.lowest_layers(cfg, 1)
  assert (one.layer_kinds, one.window) == (('window',), cfg.window)
  cfg = family_models.load('qwen2').cfg  # full, window, window
  one = config_model.lowest_layers(cfg, 1)
  assert (one.layer_kinds, one.window, one.num_layers) == ((), 0, 1)
  plain = dataclasses.replace(one, num_layers=3)
  assert config_model.lowest_layers(plain, 1) == one
