# SPDX-License-Identifier: Apache-2.0
"""Lossless streams on a model that LoRA has tuned: its answers stay."""

import dataclasses
import json
import os

import byte_model
import numpy as np
import pytest

import specstream_jax as ss
from specstream_jax import config, runtime
from specstream_jax.checkpoints import adapters, loading, sidecar
from specstream_jax.cli import info
from specstream_jax.modeling import params
from specstream_jax.workflows import (
  check,
  export as export_workflow,
  train as train_workflow,
  train_start,
)

ROWS = [
  ('colour of sky', ' the sky is blue and the sky is wide'),
  ('hi', ' hello'),
]


def recipe(mode='lossless', rank=2, steps=40):
  return ss.Recipe(
    stream=config.StreamConfig(
      num_streams=3,
      num_msa_layers=1,
      pruning_rank=2,
      coupling_rank=2,
      mode=mode,
    ),
    lora=config.LoraConfig(rank=rank, alpha=2.0 * rank),
    objective=config.ObjectiveConfig(anchors_per_sequence=48, chunk_size=128),
    optimizer=config.OptimizerConfig(
      learning_rate=0.02, embedding_learning_rate=0.02, warmup_steps=5
    ),
    train=config.TrainConfig(num_steps=steps, batch_size=2, log_every=20),
    data=config.DataConfig(sequence_length=96, eval_batch_size=4),
    tree=config.TreeConfig(depth=3, branching=2, num_nodes=6),
  )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """model/, records/, a fine-tuned tuned/ and a lossless run/ on top of it."""
  root = tmp_path_factory.mktemp('folded')
  cfg = byte_model.model_config(
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
  )
  byte_model.write_model(root / 'model', cfg)
  byte_model.write_records(root / 'records', ROWS * 8)
  train(root, 'tuned', recipe('fine_tuned', rank=4))
  train(root, 'run', recipe(), fold_adapter=str(root / 'tuned' / 'adapter'))
  return root


def train(root, name, recipe, model='model', **adapters):
  return train_workflow.train(
    str(root / model),
    str(root / 'records'),
    str(root / name),
    recipe=recipe,
    progress=False,
    **adapters,
  )


def export(root, name, to, **options):
  return export_workflow.export(
    str(root / 'model'),
    str(root / name / 'adapter'),
    str(root / to),
    export_workflow.Options(**options),
  )


def load(root, name, **kwargs):
  return ss.load(str(root / 'model'), str(root / name / 'adapter'), **kwargs)


def tokens(model, drafter):
  prompts = [prompt for prompt, _ in ROWS]
  made = ss.generate(model, prompts, max_new_tokens=24, drafter=drafter)
  return [row.tokens for row in made]


def test_weights_and_answers_are_those_of_the_folded_lora(root):
  tuned, lossless = load(root, 'tuned'), load(root, 'run')
  base = ss.load(str(root / 'model'))
  for path, leaf in params.flatten(tuned.base).items():
    np.testing.assert_array_equal(leaf, params.flatten(lossless.base)[path])
  wanted = tokens(tuned, 'none')
  assert tokens(lossless, 'none') == wanted != tokens(base, 'none')
  assert tokens(lossless, 'streams') == wanted
  assert lossless.lora.rank == 2  # that of the streams stays unfolded
  bare = load(root, 'run', streams=False)
  assert not bare.adapter and bare.stream is None
  assert tokens(bare, 'none') == wanted


@pytest.mark.slow
def test_streams_learn_what_they_learn_on_the_merged_model(root):
  export(root, 'tuned', 'merged')
  train(root, 'on_merged', recipe(), model='merged')
  same, _ = adapters.load_adapter(root / 'on_merged' / 'adapter')
  flat, cfg = adapters.load_adapter(root / 'run' / 'adapter')
  _, folded_cfg, rest = adapters.split(flat, cfg)
  assert folded_cfg == config.LoraConfig(rank=4, alpha=8.0)
  assert rest.keys() == same.keys()
  for path, leaf in rest.items():
    np.testing.assert_allclose(leaf, same[path], rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_check_passes(root):
  again = lambda streams: load(root, 'run', streams=streams)
  options = check.Options(
    drafters=('streams',),
    num_prompts=2,
    max_new_tokens=8,
    temperatures=(0.0,),
    laws=False,
  )
  found = {p.name: p for p in check.check(again(True), options, None, again)}
  name = 'tokens of the model without streams at temperature 0'
  assert found[name].passed
  assert found[
    'weights that decoded and those of the model without streams on disk'
  ].passed
  untouched = lambda streams: ss.load(str(root / 'model'))
  found = {
    p.name: p for p in check.check(again(True), options, None, untouched)
  }
  assert found[name].passed is False


def test_merging_keeps_streams_lossless(root):
  export(root, 'run', 'plain')
  streams = root / 'plain' / sidecar.FOLDER
  assert adapters.read_config(streams).folded_lora.rank == 0
  model = ss.load(str(root / 'plain'), str(streams))
  assert tokens(model, 'streams') == tokens(load(root, 'tuned'), 'none')


@pytest.mark.slow
def test_going_on_keeps_the_folded_lora(root):
  train(
    root, 'more', recipe(steps=2), init_adapter=str(root / 'run' / 'adapter')
  )
  before, _ = adapters.load_adapter(root / 'run' / 'adapter')
  after, cfg = adapters.load_adapter(root / 'more' / 'adapter')
  folded = [path for path in before if path.startswith('folded/')]
  assert folded and cfg.folded_lora.rank == 4
  for path in folded:
    np.testing.assert_array_equal(after[path], before[path])
  assert (after['coupling/up'] != before['coupling/up']).any()


def test_streams_may_stand_on_a_peft_folder(root):
  done = export(root, 'tuned', 'peft', format='peft')
  assert done.has_streams
  loaded = loading.load_model(root / 'model')
  tuned, folder = str(root / 'tuned' / 'adapter'), str(root / 'peft')
  own = train_start.start(None, tuned, loaded, recipe())
  same = train_start.start(None, folder, loaded, recipe())
  assert same.folded_lora == own.folded_lora
  assert same.folded.keys() == own.folded.keys()
  for path, leaf in own.folded.items():
    np.testing.assert_array_equal(leaf, same.folded[path])
  assert same.origins['fold_adapter']['provenance']['format'] == 'peft'
  with pytest.raises(ValueError, match=r'is a plain LoRA, StreamConfig.mode'):
    train_start.start(folder, None, loaded, recipe())
  further = train_start.start(folder, None, loaded, recipe('fine_tuned'))
  assert further.initial.keys() == own.folded.keys()
  assert further.recipe.lora == own.folded_lora


def test_two_lora_are_counted_and_named(root):
  path = str(root / 'run' / 'adapter')
  flat, cfg = adapters.load_adapter(path)
  counts = adapters.parameter_counts(flat)
  tuned, _ = adapters.load_adapter(root / 'tuned' / 'adapter')
  assert counts['folded'] == adapters.parameter_counts(tuned)['lora'] > 0
  assert counts['total'] == sum(leaf.size for leaf in flat.values())
  text = info.describe(path)
  assert 'folded LoRA:       rank 4, alpha 8' in text
  assert f'{counts["lora"]:,} + {counts["folded"]:,} folded' in text
  assert cfg.provenance['fold_adapter']['name'] == 'adapter'


def test_folded_lora_that_does_not_fit_its_config_is_refused(root, tmp_path):
  flat, cfg = adapters.load_adapter(root / 'run' / 'adapter')
  for wrong, text in (
    (config.LoraConfig(rank=0), 'folded/ is unexpected'),
    (config.LoraConfig(rank=3), 'has 4 in axis -1, not 3'),
  ):
    with pytest.raises(ValueError, match=text):
      adapters.save_adapter(
        tmp_path / 'a', flat, dataclasses.replace(cfg, folded_lora=wrong)
      )


def test_adapters_written_before_there_was_a_folded_lora_are_read(
  root, tmp_path
):
  flat, cfg = adapters.load_adapter(root / 'tuned' / 'adapter')
  adapters.save_adapter(tmp_path / 'old', flat, cfg)
  path = tmp_path / 'old' / adapters.CONFIG
  fields = json.loads(path.read_text())
  del fields['folded_lora']
  path.write_text(json.dumps(fields))
  assert adapters.read_config(tmp_path / 'old') == cfg
  del fields['lora']
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r"lacks \['lora'\]"):
    adapters.read_config(tmp_path / 'old')


def test_mistakes(root):
  tuned, run = (str(root / name / 'adapter') for name in ('tuned', 'run'))
  for text, made, given in (
    ('is for lossless streams', recipe('fine_tuned'), {'fold_adapter': tuned}),
    ('holds no LoRA of the main stream', recipe(), {'fold_adapter': run}),
    (
      'brings the LoRA that its streams',
      recipe(),
      {'fold_adapter': tuned, 'init_adapter': run},
    ),
  ):
    with pytest.raises(ValueError, match=text):
      train(root, 'mistake', made, **given)
  assert not os.path.exists(root / 'mistake')
  with pytest.raises(ValueError, match='fold was '):
    train(root, 'run', recipe())


def test_medusa_heads_and_draft_models_read_the_tuned_weights(root):
  from specstream_jax.workflows import train_draft_model, train_medusa

  model, adapter = str(root / 'model'), str(root / 'run' / 'adapter')
  wanted = params.flatten(load(root, 'tuned').base)
  path = 'layers/1/mlp/up/kernel'
  medusa, _ = train_medusa._main_model(model, adapter, 'float32', 2)
  target = train_draft_model._load_target(model, adapter, 'float32')
  for loaded in (medusa, target):
    np.testing.assert_array_equal(loaded.params[path].T, wanted[path])
  untouched = ss.load(model)
  assert (params.flatten(untouched.base)[path] != wanted[path]).any()
  assert isinstance(untouched, runtime.Model)
