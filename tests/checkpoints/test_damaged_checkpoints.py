# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, tokenizers, adapters and heads, damaged in every way."""

import contextlib
import functools
import json
import os
import pathlib
import shutil

import byte_model
import fuzzing
import numpy as np
import pytest

from specstream_jax import config, runtime
from specstream_jax.checkpoints import (
  adapters,
  dart,
  eos,
  files,
  huggingface,
  loading,
  medusa,
  tokenizer_files,
  weights,
)
from specstream_jax.data import vocabulary
from specstream_jax.modeling import dart as dart_lib, initialize, params

STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=2)
LORA = config.LoraConfig(rank=2)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A checkpoint with everything that may lie beside its weights."""
  folder = tmp_path_factory.mktemp('checkpoint') / 'model'
  scaling = config.RopeScaling('linear', 2.0)
  cfg = byte_model.model_config(rope_scaling=scaling)
  byte_model.write_model(folder, cfg)
  generation = {'eos_token_id': [0, 1], 'temperature': 0.5}
  (folder / 'generation_config.json').write_text(json.dumps(generation))
  named = [{'name': 'default', 'template': 'T'}]
  fields = {'eos_token': {'content': '<eos>'}, 'chat_template': named}
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))
  return folder


def load(folder):
  """All that loading reads; weights and tokenizer are used once."""
  loaded = loading.load_model(folder)
  if not isinstance(loaded.tokenizer, loading.MissingTokenizer):
    loaded.tokenizer.encode('a')
  return loaded


@pytest.mark.parametrize(
  'name',
  ['config.json', 'generation_config.json', 'tokenizer_config.json'],
)
@fuzzing.modes
def test_configs_of_a_checkpoint(model, mode, name):
  good = json.loads((model / name).read_text())
  read = functools.partial(load, model)
  fuzzing.attempt(mode, fuzzing.json_damage(good), model / name, read)


@fuzzing.modes
def test_safetensors(model, mode):
  path = model / 'model.safetensors'
  damages = fuzzing.tensor_damage(path.read_bytes())
  fuzzing.attempt(mode, damages, path, functools.partial(load, model))


@fuzzing.modes
def test_index(model, mode, tmp_path):
  folder = tmp_path / 'sharded'
  cfg = huggingface.read_config(model)
  flat = huggingface.open_params(model, cfg)
  huggingface.export(folder, cfg, dict(flat), max_shard_bytes=30000)
  path = folder / huggingface.INDEX
  good = json.loads(path.read_text())
  fuzzing.attempt(
    mode,
    fuzzing.json_damage(good),
    path,
    functools.partial(huggingface.open_params, folder, cfg),
  )


def small_tokenizer():
  """A tokenizer.json with a merge and something of every part."""
  raw = json.loads(byte_model.byte_tokenizer().to_str())
  raw['model'] |= {
    'vocab': {'<eos>': 0, 'a': 1, 'b': 2, 'ab': 3},
    'merges': [['a', 'b']],
  }
  raw['normalizer'] = {'type': 'Sequence', 'normalizers': [{'type': 'NFC'}]}
  piece = lambda kind, name: {kind: {'id': name, 'type_id': 0}}
  raw['post_processor'] = {
    'type': 'TemplateProcessing',
    'single': [piece('SpecialToken', '<eos>'), piece('Sequence', 'A')],
    'pair': [piece('Sequence', 'A'), piece('Sequence', 'B')],
    'special_tokens': {
      '<eos>': {'id': '<eos>', 'ids': [0], 'tokens': ['<eos>']}
    },
  }
  return raw


@fuzzing.modes
def test_tokenizer(tmp_path, mode):
  """As `prepare` reads it, and as a model's."""
  raw = small_tokenizer()
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(raw))

  def read():
    found = vocabulary.load(str(path), eos_token='<eos>')
    assert len(found.sha256) == 64
    with contextlib.suppress(ValueError):  # whatever text it cannot spell
      found.encode('ab a')
    eos.read(tmp_path, tokenizer_files.read(tmp_path))

  # The library's messages name no fields.
  damages = fuzzing.json_damage(raw)
  fuzzing.attempt(mode, damages, path, read, is_named=False)


@pytest.fixture(scope='module')
def adapter(model):
  folder = model.parent / 'adapter'
  loaded = loading.load_model(model)
  flat = initialize.init_adapter(_key(), loaded.config, STREAM, LORA)
  flat = {k: np.asarray(v) for k, v in params.flatten(flat).items()}
  cfg = adapters.AdapterConfig(
    'm',
    loaded.config_hash,
    loaded.fingerprint,
    STREAM,
    LORA,
    config.TreeConfig(depth=2, branching=2, num_nodes=4),
    {'eos_ids': [0]},
  )
  adapters.save_adapter(folder, flat, cfg)
  return folder


def _key():
  import jax

  return jax.random.key(0)


@fuzzing.modes
def test_adapter_config(model, adapter, mode):
  path = adapter / adapters.CONFIG
  good = json.loads(path.read_text())
  read = functools.partial(runtime.load, str(model), str(adapter))
  other = 'adapter was trained on base'
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read, other=other)


def sign(folder, kind):
  """Writes the hash of weights, damaged as they are, into the config."""
  path = pathlib.Path(folder, kind.weights)
  if path.is_file() and os.access(path, os.R_OK):
    other = pathlib.Path(folder, kind.config)
    raw = json.loads(other.read_text())
    raw['weights_sha256'] = files.sha256(path)
    other.write_text(json.dumps(raw))


@fuzzing.modes
def test_adapter_weights(model, adapter, mode, tmp_path):
  folder = tmp_path / 'adapter'
  shutil.copytree(adapter, folder)
  path = folder / adapters.WEIGHTS
  fuzzing.attempt(
    mode,
    fuzzing.tensor_damage(path.read_bytes()),
    path,
    functools.partial(runtime.load, str(model), str(folder)),
    prepare=functools.partial(sign, folder, adapters.KIND),
  )


@pytest.fixture(scope='module')
def heads(model):
  folder = model.parent / 'heads'
  cfg = byte_model.model_config()
  rng = np.random.default_rng(0)
  shapes = {'kernel': (24, 24), 'bias': (24,), 'projection': (257, 24)}
  flat = {
    f'heads/{j}/{name}': rng.normal(size=shape).astype(np.float32)
    for j in range(2)
    for name, shape in shapes.items()
  }
  made = medusa.MedusaConfig(
    'm', weights.config_hash(cfg), ('f',), '', 2, ((0,), (0, 0))
  )
  medusa.save_heads(folder, flat, made, dtype='float32')
  return folder


def load_heads(folder):
  flat, cfg = medusa.load_heads(folder)
  return flat, cfg.tree.size


@fuzzing.modes
def test_medusa_config(heads, mode):
  path = heads / medusa.CONFIG
  good = json.loads(path.read_text())
  read = functools.partial(load_heads, heads)
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read)


@pytest.fixture(scope='module')
def layer(model):
  folder = model.parent / 'layer'
  cfg = byte_model.model_config()
  rng = np.random.default_rng(0)
  flat = {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in params.flatten(
      dart_lib.build(cfg, 2, dtype='float32').shapes
    ).items()
  }
  made = dart.DartConfig('m', weights.config_hash(cfg), ('f',), '', 2)
  dart.save(folder, flat, made, dtype='float32')
  return folder


@fuzzing.modes
def test_dart_config(layer, mode):
  path = layer / dart.CONFIG
  good = json.loads(path.read_text())
  read = functools.partial(dart.load, layer)
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read)


@fuzzing.modes
def test_medusa_weights(heads, mode, tmp_path):
  folder = tmp_path / 'heads'
  shutil.copytree(heads, folder)
  path = folder / medusa.WEIGHTS
  fuzzing.attempt(
    mode,
    fuzzing.tensor_damage(path.read_bytes()),
    path,
    functools.partial(load_heads, folder),
    prepare=functools.partial(sign, folder, medusa.KIND),
  )
