# SPDX-License-Identifier: Apache-2.0
"""A config field of another type is named, wherever its value came from."""

import dataclasses
import json

import gin
import numpy as np
import pytest
import tiny

from specstream_jax import config, mesh, partitioning
from specstream_jax.checkpoints import adapters, dart, medusa
from specstream_jax.cli import gin_files, main
from specstream_jax.config import (
  checks as config_checks,
  drafting as config_drafting,
  serving,
)
from specstream_jax.workflows import (
  bench,
  check,
  distill,
  evaluate,
  train,
  train_dart,
  train_draft_model,
  train_medusa,
)

LAYER = dart.DartConfig('base', 'hash', ('print',), '', 2)
HEADS = medusa.MedusaConfig('base', 'hash', ('print',), '', 2)
ADAPTER = adapters.AdapterConfig(
  'base',
  'hash',
  'print',
  config.StreamConfig(),
  config.LoraConfig(),
  config.TreeConfig(),
)
CONFIGS = (
  tiny.CONFIG,
  config.RopeScaling(),
  config.NormConfig(),
  config.AttentionConfig(),
  config.MlpConfig(),
  config.LoraConfig(),
  config.StreamConfig(),
  config.TreeConfig(),
  config.SamplingConfig(),
  config.DecodeConfig(),
  config.ObjectiveConfig(),
  config.OptimizerConfig(),
  config.TrainConfig(),
  config.DataConfig(),
  config.TaskConfig(),
  config.StreamedWeightsConfig(),
  config.EvalConfig(),
  serving.EngineConfig(),
  config_drafting.DrafterConfig(),
  mesh.MeshConfig(),
  partitioning.AxisRules(),
  HEADS,
  LAYER,
  ADAPTER,
  bench.Options(),
  check.Options(('streams',)),
  distill.Options(),
  evaluate.Options(),
  train_draft_model.DraftRecipe(),
  train.Recipe(),
  train.Execution(),
  train_dart.DartRecipe(),
  train_medusa.HeadsRecipe(),
)
EVERY_FIELD = [
  (cfg, field.name) for cfg in CONFIGS for field in dataclasses.fields(cfg)
]


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def test_every_gin_class_is_among_them():
  names = {type(cfg).__name__ for cfg in CONFIGS}
  assert set(gin_files.classes()) <= names


@pytest.mark.parametrize(
  ('cfg', 'name'),
  EVERY_FIELD,
  ids=[f'{type(c).__name__}.{n}' for c, n in EVERY_FIELD],
)
def test_no_field_takes_just_anything(cfg, name):
  with pytest.raises(ValueError, match=rf'{name} is b.odd.; accepted: \w+'):
    dataclasses.replace(cfg, **{name: b'odd'})


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    (
      'DataConfig.packed=false',
      r"DataConfig.packed is the text 'false'; accepted: True or False \(in "
      r'gin: DataConfig.packed = False\)',
    ),
    ('DataConfig.packed=0', r'packed is 0; .*\(in gin: DataConfig.packed = F'),
    (
      'OptimizerConfig.learning_rate=fast',
      r"learning_rate is the text 'fast'; accepted: a number \(in gin: "
      r'OptimizerConfig.learning_rate = 0.001\)',
    ),
    (
      "LoraConfig.alpha='1e1'",
      r"LoraConfig.alpha is the text '1e1'; .* LoraConfig.alpha = 10.0\)",
    ),
    (
      'TrainConfig.num_steps=1e3',
      r'num_steps is 1000.0; accepted: an integer .*num_steps = 1000\)',
    ),
    ('TrainConfig.num_steps=True', 'num_steps is True; accepted: an integer'),
    (
      'OptimizerConfig.trainable=5',
      r"trainable is 5; accepted: a text \(in gin: .*trainable = '5'\)",
    ),
    (
      'LoraConfig.modules=query',
      r"modules is the text 'query'; accepted: a tuple of texts \(in gin: "
      r"LoraConfig.modules = \('query',\)\)",
    ),
    (
      'StreamConfig.num_streams=None',
      'num_streams is None; accepted: an integer',
    ),
  ],
)
def test_from_gin(binding, message):
  main.parse_gin([], main.split_gin([f'--gin.{binding}'])[1])
  with pytest.raises(ValueError, match=message):
    train.Recipe()


def test_from_a_gin_file(tmp_path):
  (tmp_path / 'a.gin').write_text("DataConfig.packed = 'false'\n")
  main.parse_gin([str(tmp_path / 'a.gin')], [])
  with pytest.raises(ValueError, match=r"packed is the text 'false'"):
    config.DataConfig()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('streams:depth=two', "'streams:depth=two': TreeConfig.depth is the text"),
    ('streams:coupling=no', 'DrafterConfig.coupling is the text .no.; accep'),
    ('lookahead:window=2.5', 'window is 2.5; accepted: an integer'),
    ('medusa:path=a,typical_delta=x', 'typical_delta is the text .x.; accep'),
  ],
)
def test_from_a_drafter_string(text, message):
  with pytest.raises(ValueError, match=message):
    config_drafting.parse(text)


def test_a_folder_whose_name_is_a_number_is_a_text():
  assert config_drafting.parse('medusa:path=7').path == '7'
  assert config_drafting.parse("medusa:path='a b'").path == 'a b'


def test_from_json():
  values = json.loads(json.dumps(config.to_json(tiny.CONFIG)))
  assert config.from_json(config.ModelConfig, values) == tiny.CONFIG
  with pytest.raises(ValueError, match="num_layers is the text '2'; accepted"):
    config.from_json(config.ModelConfig, values | {'num_layers': '2'})
  with pytest.raises(ValueError, match=r"RopeScaling does not know \['odd'\]"):
    config.from_json(config.ModelConfig, values | {'rope_scaling': {'odd': 1}})
  with pytest.raises(ValueError, match=r'rope_scaling is \[\]; accepted: a R'):
    config.from_json(config.ModelConfig, values | {'rope_scaling': []})
  with pytest.raises(ValueError, match='StreamConfig is None; accepted: an'):
    config.from_json(config.StreamConfig, None)


def test_nested_drafter_from_json():
  made = config_drafting.parse('streams:num_nodes=5')
  values = json.loads(json.dumps(config.to_json(made)))
  assert config.from_json(config_drafting.DrafterConfig, values) == made


def test_what_means_the_same_becomes_the_same():
  cfg = config.LoraConfig(
    rank=np.int64(4), alpha=np.float32(0.5), modules=['query', 'key']
  )
  assert [type(v) for v in (cfg.rank, cfg.alpha, cfg.modules)] == [
    int,
    float,
    tuple,
  ]
  assert cfg == config.LoraConfig(4, 0.5, ('query', 'key'))
  assert type(config.LoraConfig(alpha=32).alpha) is float
  tree = config.TreeConfig('fixed', choices=np.array([[0], [1]]))
  assert tree.choices == ((0,), (1,))
  assert config.DataConfig(packed=np.True_).packed is True
  assert config.DecodeConfig(eos_ids=range(2)).eos_ids == (0, 1)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: config.LoraConfig(alpha=float('nan')), 'alpha is nan; accepted'),
    (lambda: config.LoraConfig(alpha=10**400), r'alpha is 10+…; accepted'),
    (
      lambda: config.TreeConfig(choices=((0, 'a'),)),
      'choices is .*; accepted: a tuple of tuples of integers',
    ),
    (
      lambda: train.Execution(profile_steps=(1, 2, 3)),
      r'profile_steps is \(1, 2, 3\); accepted: a tuple of \(an integer, an '
      r'integer\) or None \(write profile_steps=',
    ),
    (
      lambda: bench.Options(drafters='streams'),
      r"drafters is the text 'streams'; accepted: a tuple of texts \(write "
      r"drafters=\('streams',\)\)",
    ),
    (
      lambda: train.Recipe(stream={'num_streams': 3}),
      r'stream is .*; accepted: a StreamConfig \(write stream=a StreamConfig\)',
    ),
    (lambda: train.Execution(remat='all'), "remat is 'all'; accepted: 'none'"),
    (lambda: evaluate.Options(batch=0), 'batch is 0; it must be an integer'),
  ],
)
def test_from_python(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_the_call_that_gin_appends_is_cut_off():
  with pytest.raises(ValueError, match='In call to configurable') as error:
    config.LoraConfig(rank=-1)
  text = config_checks.message(error.value)
  assert text == 'LoraConfig.rank is -1; it must be an integer >= 0'


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: config.TreeConfig(depth='{[]: 1}'),
      'TreeConfig.depth is the text',
    ),
    (
      lambda: config.OptimizerConfig(trainable='('),
      r"trainable is '\(', which is no regular expression: ",
    ),
    (
      lambda: config.TrainConfig(num_steps=3_000_000_000),
      'num_steps is 3000000',
    ),
    (
      lambda: config_drafting.DrafterConfig('lookahead', window=10**5),
      'DrafterConfig.window is 100000; it must be <= 128',
    ),
    (lambda: config_drafting.parse('streams:depth={[]: 1}'), 'depth'),
  ],
)
def test_values_that_python_stumbles_over(make, message):
  with pytest.raises(ValueError, match=message):
    make()
