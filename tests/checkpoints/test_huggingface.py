# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: read exactly, written so they read back, refusals."""

import json

import model_files
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from specstream_jax import config
from specstream_jax.checkpoints import (
  chat_format,
  eos,
  huggingface,
  huggingface_config,
  tokenizer_files,
  weights,
)

RAW = model_files.HF_CONFIG
CONFIG = model_files.CONFIG


def parse(**changes):
  return huggingface_config.parse(RAW | changes, 'config.json')


def test_reads_config_and_weights_exactly(tmp_path):
  folder = model_files.write_hf(tmp_path)
  cfg = huggingface.read_config(folder)
  assert cfg == CONFIG
  flat = huggingface.open_params(folder, cfg)
  for path, leaf in model_files.random_params().items():
    np.testing.assert_array_equal(flat[path], leaf, err_msg=path)


def test_reads_bfloat16(tmp_path):
  tensors = model_files.hf_tensors(model_files.random_params())
  narrow = {name: leaf.astype('bfloat16') for name, leaf in tensors.items()}
  folder = model_files.write_hf(tmp_path, tensors=narrow)
  flat = huggingface.open_params(folder, CONFIG)
  wanted = narrow['lm_head.weight'].T.astype(np.float32)
  np.testing.assert_array_equal(flat['lm_head/kernel'], wanted)


def test_old_and_new_rope_fields_agree():
  llama3 = {
    'rope_type': 'llama3',
    'factor': 8,
    'low_freq_factor': 1,
    'high_freq_factor': 4,
    'original_max_position_embeddings': 8192,
  }
  new = dict(
    RAW, rope_parameters=llama3 | {'rope_theta': 5e5}, dtype='bfloat16'
  )
  del new['rope_theta']
  cfg = huggingface_config.parse(new, 'config.json')
  assert cfg.rope_theta == 5e5
  assert cfg.rope_scaling == config.RopeScaling('llama3', 8.0, 1.0, 4.0, 8192)
  assert parse(rope_scaling=llama3, rope_theta=500000) == cfg
  linear = parse(rope_scaling={'type': 'linear', 'factor': 2.0})
  assert linear.rope_scaling == config.RopeScaling('linear', 2.0)


def test_ignores_what_does_not_change_the_maths():
  assert (
    parse(
      use_cache=False,
      transformers_version='4.42.3',
      initializer_range=0.04,
      pretraining_tp=2,  # how a product is split, not what it is
      unsloth_version='2025.1',
      output_past=True,
      rope_interleaved=False,
      rope_scaling=None,
      attention_bias=False,
      torch_dtype='bfloat16',
      is_llama_config=True,
    )
    == CONFIG
  )


def test_absent_fields_take_the_defaults_of_the_architecture():
  raw = {k: v for k, v in RAW.items() if k not in ('head_dim', 'rms_norm_eps')}
  raw = raw | {'hidden_size': 12, 'num_key_value_heads': None}
  cfg = huggingface_config.parse(raw, 'config.json')
  assert (cfg.head_dim, cfg.num_kv_heads, cfg.rms_norm_eps) == (2, 6, 1e-6)
  assert not cfg.tie_word_embeddings


def test_lists_every_field_that_changes_the_maths():
  with pytest.raises(ValueError, match='refused') as error:
    parse(
      hidden_act='gelu',
      logit_scale=0.5,
      quantization_config={'bits': 4},
      rope_scaling={'rope_type': 'odd', 'factor': 2.0},
    )
  for text in (
    "hidden_act is 'gelu'; accepted: 'silu'",
    'logit_scale = 0.5 is not understood',
    "quantization_config = {'bits': 4} is not understood",
    "rope_type is 'odd'; accepted: 'default', 'linear', 'dynamic'",
  ):
    assert text in str(error.value)
  assert '\n' not in str(error.value)


def test_refusals_are_one_line_that_says_what_to_do():
  with pytest.raises(ValueError, match='refused') as error:
    parse(logit_scale=0.5)
  assert str(error.value) == (
    'config.json cannot be read exactly, so it is refused: logit_scale = 0.5 '
    'is not understood; use the unmodified config.json of the checkpoint; a '
    'model that needs more than is understood cannot be run'
  )
  several = (
    r'\(1\) hidden_act is .*; \(2\) logit_scale = .* is not understood; use the'
  )
  with pytest.raises(ValueError, match=several):
    parse(hidden_act='gelu', logit_scale=0.5)


def test_a_problem_of_several_layers_is_said_once():
  names = [f'layers.{i}.up' for i in range(30)]
  found = [*names[:2], *names[3:], 'layers.4.down', 'layers.7.down']
  problems = [f'unexpected {name}' for name in found] + ['missing norm']
  text = (
    r'unexpected layers.\{0,1,3,.*,29\}.up; \(2\) unexpected layers.\{4,7\}.'
    r'down; \(3\) missing norm; mend it$'
  )
  with pytest.raises(ValueError, match=text):
    weights.refuse('it', problems, 'mend it')
  with pytest.raises(ValueError, match=r'refused: no layers.\{0-29\}.up; mend'):
    weights.refuse('it', [f'no {name}' for name in names], 'mend it')


def test_refuses_rope_fields_it_does_not_know():
  with pytest.raises(ValueError, match='missing RoPE factor'):
    parse(rope_scaling={'rope_type': 'linear'})
  with pytest.raises(ValueError, match='RoPE beta_fast = 32 is not understood'):
    parse(rope_scaling={'rope_type': 'linear', 'factor': 2.0, 'beta_fast': 32})


def test_refuses_missing_sizes():
  raw = {k: v for k, v in RAW.items() if k != 'vocab_size'}
  with pytest.raises(ValueError, match='missing vocab_size'):
    huggingface_config.parse(raw, 'config.json')


def test_refuses_other_architectures():
  with pytest.raises(
    ValueError, match=r"\['BloomForCausalLM'\]; accepted: one"
  ):
    parse(architectures=['BloomForCausalLM'])


def test_mistral_without_sliding_window_is_a_llama():
  mistral = {'architectures': ['MistralForCausalLM'], 'model_type': 'mistral'}
  assert parse(**mistral, sliding_window=None) == CONFIG
  windowed = parse(**mistral)
  assert (windowed.window, windowed.kinds) == (4096, ('window', 'window'))


def test_lists_every_tensor_that_does_not_belong(tmp_path):
  tensors = model_files.hf_tensors(model_files.random_params())
  tensors['model.layers.0.self_attn.q_proj.bias'] = np.ones(60, np.float32)
  tensors['model.norm.weight'] = np.ones(21, np.float32)
  tensors['model.layers.1.mlp.up_proj.weight'] = np.ones((13, 22), np.int8)
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(5)
  del tensors['lm_head.weight']
  folder = model_files.write_hf(tmp_path, tensors=tensors)
  with pytest.raises(ValueError, match=r'missing lm_head.weight') as error:
    huggingface.open_params(folder, CONFIG)
  for text in (
    'unexpected model.layers.0.self_attn.q_proj.bias',
    'model.norm.weight has shape (21,), not (22,)',
    'model.layers.1.mlp.up_proj.weight is I8; accepted',
  ):
    assert text in str(error.value)
  assert 'inv_freq' not in str(error.value)


def test_tied_checkpoint_may_repeat_its_embedding(tmp_path):
  tensors = model_files.hf_tensors(model_files.random_params())
  raw = RAW | {'tie_word_embeddings': True}
  folder = model_files.write_hf(tmp_path, raw, tensors)
  cfg = huggingface.read_config(folder)
  with pytest.raises(ValueError, match=r'lm_head.weight is another than'):
    huggingface.open_params(folder, cfg)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  model_files.write_hf(tmp_path, raw, tensors)
  assert 'lm_head/kernel' not in huggingface.open_params(folder, cfg)


def test_missing_and_damaged_files(tmp_path):
  with pytest.raises(ValueError, match=r"config.json' does not exist"):
    huggingface.read_config(tmp_path)
  folder = model_files.write_hf(tmp_path)
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(
    ValueError, match=r'1,000 bytes\) is truncated or corrupt'
  ):
    huggingface.open_params(folder, CONFIG)
  path.unlink()
  with pytest.raises(ValueError, match=r'neither model.safetensors nor'):
    huggingface.open_params(folder, CONFIG)
  (folder / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r"config.json' is not JSON"):
    huggingface.read_config(folder)


def test_missing_shard(tmp_path):
  folder = model_files.write_hf(tmp_path)
  (folder / 'model.safetensors').rename(folder / 'model-1.safetensors')
  index = {'weight_map': {'lm_head.weight': 'model-2.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(
    ValueError, match=r'lacks model-2.safetensors, of the 1 files'
  ):
    huggingface.open_params(folder, CONFIG)


def sharded(tmp_path):
  """(folder, index) of a checkpoint in two shards; one holds a tensor more."""
  folder = model_files.write_hf(tmp_path)
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  places = {
    name: f'model-{1 + i % 2}.safetensors' for i, name in enumerate(tensors)
  }
  for shard in set(places.values()):
    held = {name: tensors[name] for name in tensors if places[name] == shard}
    extra = {'of.another.model': np.zeros(3, np.float32)}
    safetensors_numpy.save_file(held | extra, folder / shard)
  return folder, places


def write_index(folder, places):
  text = json.dumps({'weight_map': places})
  (folder / 'model.safetensors.index.json').write_text(text)


def test_shards_give_the_tensors_that_the_index_lists(tmp_path):
  whole = huggingface.open_params(
    model_files.write_hf(tmp_path / 'whole'), CONFIG
  )
  folder, places = sharded(tmp_path / 'sharded')
  write_index(folder, places)
  read = huggingface.open_params(folder, CONFIG)
  assert set(read) == set(whole)
  for path in whole:
    np.testing.assert_array_equal(read[path], whole[path])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model.norm.weight': '../model-1.safetensors'}, 'which names a file'),
    ({'model.norm.weight': '/etc/passwd'}, 'which names a file'),
    ({'model.norm.weight': 3}, 'accepted: an object that gives the file'),
    ({'not.there': 'model-1.safetensors'}, "places 'not.there' in model-1"),
    ({'of.another.model': 'model-1.safetensors'}, 'unexpected of.another'),
    (None, r'weight_map is \{\}; accepted: an object'),
  ],
)
def test_indices_that_are_refused(tmp_path, change, message):
  folder, places = sharded(tmp_path)
  outside = folder.parent / 'model-1.safetensors'
  outside.write_bytes((folder / 'model-1.safetensors').read_bytes())
  write_index(folder, {} if change is None else places | change)
  with pytest.raises(ValueError, match=message):
    huggingface.open_params(folder, CONFIG)


def test_tokenizer_and_chat_template(tmp_path):
  folder = model_files.write_hf(tmp_path)
  with pytest.raises(
    ValueError, match=r'has no tokenizer.json, tokenizer.model or'
  ):
    tokenizer_files.read(folder)
  (folder / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r"tokenizer.json' cannot be read"):
    tokenizer_files.read(folder)
  assert chat_format.read(folder) is None
  templates = [
    {'name': 'default', 'template': 'T'},
    {'name': 'x', 'template': 'X'},
  ]
  fields = json.dumps({'chat_template': templates})
  (folder / 'tokenizer_config.json').write_text(fields)
  assert chat_format.read(folder) == 'T'
  (folder / 'chat_template.jinja').write_text('file')
  assert chat_format.read(folder) == 'file'


@pytest.mark.parametrize('max_shard_bytes', [10**9, 3000])
@pytest.mark.parametrize(
  'scaling',
  [
    config.RopeScaling(),
    config.RopeScaling('linear', 2.0),
    config.RopeScaling('llama3', 8.0, 1.0, 4.0, 8192),
  ],
)
def test_export_reads_back_exactly(tmp_path, max_shard_bytes, scaling):
  cfg = config.ModelConfig(**vars(CONFIG) | {'rope_scaling': scaling})
  flat = model_files.random_params()
  extras = huggingface.Extras(model_files.tokenizer(), 'T', (2,))
  for limit in (2000, max_shard_bytes):  # The second replaces the first.
    huggingface.export(tmp_path, cfg, flat, extras, max_shard_bytes=limit)
  assert huggingface.read_config(tmp_path) == cfg
  read = huggingface.open_params(tmp_path, cfg)
  for path, leaf in flat.items():
    np.testing.assert_array_equal(read[path], leaf, err_msg=path)
  wanted = {'tokenizer_config.json': (2,), 'config.json': (2,)}
  assert eos.read(tmp_path, extras.tokenizer, 17) == wanted
  assert chat_format.read(tmp_path) == 'T'
  assert tokenizer_files.read(tmp_path).encode('ab').ids == [0, 1]
  assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
  num_shards = len(list(tmp_path.glob('*.safetensors')))
  assert (num_shards > 1) == (max_shard_bytes == 3000)


def test_export_refuses_weights_of_another_model(tmp_path):
  flat = model_files.random_params()
  del flat['lm_head/kernel']
  with pytest.raises(ValueError, match='missing lm_head/kernel'):
    huggingface.export(tmp_path, CONFIG, flat)
  assert not list(tmp_path.iterdir())


def test_reads_stories260k():
  folder = model_files.shared('models', 'stories260k', 'hf')
  cfg = huggingface.read_config(folder)
  assert (cfg.num_layers, cfg.hidden_size, cfg.group_size) == (5, 64, 2)
  assert cfg.tie_word_embeddings
  flat = huggingface.open_params(folder, cfg)
  assert sum(leaf.size for leaf in flat.values()) == 260032
