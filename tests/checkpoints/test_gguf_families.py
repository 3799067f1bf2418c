# SPDX-License-Identifier: Apache-2.0
"""GGUF files of every architecture that is read.

Tensors get their names from the `gguf` package's own table, and are what
llama.cpp's converter makes of a Hugging Face checkpoint.
"""

import dataclasses

import family_models
import gguf as gguf_package
import model_files
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from specstream_jax import config
from specstream_jax.checkpoints import gguf, gguf_architectures, weights

# Tiny checkpoint -> architecture of its GGUF files.
ARCHITECTURES = {
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'gemma': 'gemma',
  'gemma2': 'gemma2',
  'gemma3': 'gemma3',
  'phi': 'phi2',
  'phi3': 'phi3',
  'gpt2': 'gpt2',
}
NAMES = sorted(ARCHITECTURES)
_ON_IN_OUT = ('c_attn.weight', 'c_proj.weight', 'c_fc.weight')


def test_every_architecture_is_tried():
  tried = {'llama', *ARCHITECTURES.values()}
  assert tried == set(gguf_architectures.ARCHITECTURES)


def config_of(name):
  """The tiny config of a family, without what GGUF cannot say."""
  cfg = family_models.load(name).cfg
  if name in ('qwen2', 'qwen3'):
    return dataclasses.replace(
      cfg, layer_kinds=(), window=0, rope_scaling=config.RopeScaling()
    )
  if name in ('gemma2', 'gemma3'):  # llama.cpp knows their scale by their size
    attention = dataclasses.replace(
      cfg.attention, query_scale=cfg.head_dim**-0.5
    )
    return dataclasses.replace(cfg, attention=attention)
  return cfg


def metadata(name):
  """What the converter writes beside the sizes."""
  cfg = config_of(name)
  if name in ('phi', 'gpt2'):
    found = {'attention.layer_norm_epsilon': cfg.rms_norm_eps}
  else:
    found = {'attention.layer_norm_rms_epsilon': cfg.rms_norm_eps}
  if name != 'gpt2':
    found |= {'rope.freq_base': cfg.rope_theta}
  if name == 'gemma2':
    found |= {
      'attention.sliding_window': cfg.window,
      'attn_logit_softcapping': cfg.attention.softcap,
      'final_logit_softcapping': cfg.logit_softcap,
    }
  if name == 'gemma3':
    found |= {
      'attention.sliding_window': cfg.window,
      'attention.sliding_window_pattern': 2,
      'rope.freq_base_swa': cfg.local_rope_theta,
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': cfg.rope_scaling.factor,
    }
  if name in ('phi', 'phi3'):
    found['rope.dimension_count'] = cfg.num_rotated
  if name == 'phi3':
    scaling = cfg.rope_scaling
    found |= {
      'attention.sliding_window': cfg.window,
      'rope.scaling.attn_factor': scaling.attention_factor,
      'rope.scaling.original_context_length': (
        scaling.original_max_position_embeddings
      ),
    }
  return found


def stored(name):
  """Tensors of the file."""
  cfg, architecture = config_of(name), ARCHITECTURES[name]
  kind = next(
    key
    for key, value in gguf_package.MODEL_ARCH_NAMES.items()
    if value == architecture
  )
  names = gguf_package.get_tensor_name_map(kind, cfg.num_layers)
  path = family_models.FOLDER / name / 'model.safetensors'
  tensors = {}
  for theirs, leaf in safetensors_numpy.load_file(path).items():
    leaf = leaf.astype(np.float32)
    if theirs.endswith(_ON_IN_OUT):
      leaf = leaf.T
    if name.startswith('gemma') and theirs.endswith('norm.weight'):
      leaf = leaf + 1
    tensors[names.get_name(theirs, ('.weight', '.bias'))] = leaf
  if name == 'phi3':
    scaling = cfg.rope_scaling
    tensors['rope_factors_short.weight'] = np.float32(scaling.divisors)
    tensors['rope_factors_long.weight'] = np.float32(scaling.long_divisors)
  return tensors


def write(path, name, tensors, **more):
  """A GGUF file of a family."""
  cfg, architecture = config_of(name), ARCHITECTURES[name]
  writer = gguf_package.GGUFWriter(path, architecture)
  writer.add_block_count(cfg.num_layers)
  writer.add_context_length(cfg.max_position_embeddings)
  writer.add_embedding_length(cfg.hidden_size)
  writer.add_feed_forward_length(cfg.intermediate_size)
  writer.add_head_count(cfg.num_heads)
  writer.add_head_count_kv(cfg.num_kv_heads)
  if name not in ('phi', 'phi3', 'gpt2'):
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
  for key, value in (metadata(name) | more).items():
    add = {int: writer.add_uint32, float: writer.add_float32}
    add.get(type(value), writer.add_string)(f'{architecture}.{key}', value)
  for tensor, leaf in tensors.items():
    writer.add_tensor(tensor, np.ascontiguousarray(leaf))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('name', NAMES)
def test_gguf_of_a_family(name, tmp_path):
  header = gguf.open_file(write(tmp_path / 'm.gguf', name, stored(name)))
  found, wanted = header.config, config_of(name)
  if name == 'phi3':  # of float32
    factor = wanted.rope_scaling.attention_factor
    assert found.rope_scaling.attention_factor == pytest.approx(factor)
    scaling = dataclasses.replace(found.rope_scaling, attention_factor=factor)
    found = dataclasses.replace(found, rope_scaling=scaling)
  assert found == wanted
  assert weights.config_hash(found) == weights.config_hash(wanted)
  read = gguf.open_params(header)
  flat = family_models.load(name).flat
  assert set(read) == set(flat)
  for path, leaf in flat.items():
    np.testing.assert_allclose(read[path], leaf, atol=2e-7)


def test_query_key_and_value_may_be_one_tensor(tmp_path):
  tensors = stored('phi')
  for i in range(config_of('phi').num_layers):
    for end in ('weight', 'bias'):
      parts = [tensors.pop(f'blk.{i}.attn_{x}.{end}') for x in 'qkv']
      tensors[f'blk.{i}.attn_qkv.{end}'] = np.concatenate(parts)
  read = gguf.open_params(
    gguf.open_file(write(tmp_path / 'm.gguf', 'phi', tensors))
  )
  for path, leaf in family_models.load('phi').flat.items():
    np.testing.assert_array_equal(read[path], leaf)


def test_an_lm_head_of_its_own(tmp_path):
  """Files of GPT-2 may repeat the embedding."""
  tensors = stored('gpt2')
  tensors['output.weight'] = tensors['token_embd.weight']
  header = gguf.open_file(write(tmp_path / 'm.gguf', 'gpt2', tensors))
  assert not header.config.tie_word_embeddings
  read = gguf.open_params(header)
  np.testing.assert_array_equal(
    read['lm_head/kernel'].T, read['embed/embedding']
  )


@pytest.mark.parametrize(
  ('name', 'num_layers', 'is_other'),
  [('gemma2', 46, True), ('gemma2', 42, False), ('gemma3', 62, True)],
)
def test_the_largest_gemma_scales_queries_by_its_width(
  name, num_layers, is_other
):
  values = {
    'block_count': num_layers,
    'embedding_length': 24,
    'attention.head_count': 4,
  }
  made = gguf_architectures.ARCHITECTURES[name].read(
    lambda key, default=None: values.get(key, default), 10
  )
  assert made['attention'].query_scale == (6 if is_other else 10) ** -0.5


def test_defaults_of_llama_cpp():
  values = {
    'block_count': 12,
    'embedding_length': 24,
    'attention.head_count': 4,
  }
  get = lambda key, default=None: values.get(key, default)
  read = lambda name: gguf_architectures.ARCHITECTURES[name].read(get, 10)
  made = read('gemma2')
  assert made['window'] == 4096
  assert made['layer_kinds'] == ('window', 'full') * 6
  assert (made['attention'].softcap, made['logit_softcap']) == (50.0, 30.0)
  assert 'window' not in read('gemma3')
  values['attention.sliding_window'] = 512
  made = read('gemma3')
  assert made['layer_kinds'] == (*('window',) * 5, 'full') * 2
  assert (made['window'], made['local_rope_theta']) == (512, 10000.0)
  assert read('phi3')['layer_kinds'] == ('window',) * 12


def test_what_is_not_understood_is_named_by_its_own_key(tmp_path):
  path = write(tmp_path / 'm.gguf', 'qwen2', stored('qwen2'), expert_count=8)
  with pytest.raises(ValueError, match=r'qwen2.expert_count is 8; accepted: 0'):
    gguf.open_file(path)
  path = model_files.write_gguf(tmp_path / 'n.gguf', architecture='mamba')
  accepted = "is 'mamba'; accepted: 'llama', 'qwen2', 'qwen3', 'gemma', 'gemma2"
  with pytest.raises(ValueError, match=accepted):
    gguf.open_file(path)
  tensors = stored('phi3')
  del tensors['rope_factors_long.weight']
  path = write(tmp_path / 'o.gguf', 'phi3', tensors)
  with pytest.raises(ValueError, match=r'no tensor rope_factors_long\.weight'):
    gguf.open_file(path)
  tensors['rope_factors_long.weight'] = np.ones(5, np.float32)
  path = write(tmp_path / 'p.gguf', 'phi3', tensors)
  with pytest.raises(
    ValueError, match=r'rope_factors_long.* shape \(5,\), not'
  ):
    gguf.open_file(path)
  tensors = stored('gemma') | {'rope_factors_long.weight': np.ones(5)}
  path = write(tmp_path / 'q.gguf', 'gemma', tensors)
  with pytest.raises(ValueError, match=r'unexpected rope_factors_long\.weight'):
    gguf.open_file(path)


# How numbers are stored

KINDS = {
  kind.name: kind
  for kind in gguf_package.GGMLQuantizationType
  if kind in gguf_package.GGML_QUANT_SIZES
}
# Those that the `gguf` package writes, with the largest error of numbers up to
# 1: half a step of their grid, or what is left of a float32.
WRITTEN = {
  'F32': 0.0,
  'F16': 2**-11,
  'BF16': 2**-8,
  'Q8_0': 1 / 254,
  'Q5_0': 1 / 15,
  'Q5_1': 1 / 31,
  'Q4_0': 1 / 7,
  'Q4_1': 1 / 15,
}
READ = (
  *('Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ4_NL', 'IQ4_XS'),
  *('IQ1_S', 'IQ1_M', 'IQ2_XXS', 'IQ2_XS', 'IQ2_S', 'IQ3_XXS', 'IQ3_S'),
  *('TQ1_0', 'TQ2_0', 'MXFP4', 'NVFP4'),
)
REFUSED = ('F64', 'I8', 'I16', 'I32', 'I64', 'Q8_1', 'Q8_K', 'Q1_0')


def read_back(path, raw, kind):
  """A file with one tensor, mapped again."""
  writer = gguf_package.GGUFWriter(path, 'llama')
  writer.add_tensor('x', raw, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return gguf._open(str(path))[1]['x']


@pytest.mark.parametrize('name', WRITTEN)
def test_stored_numbers_come_back(name, tmp_path):
  kind = KINDS[name]
  values = np.random.default_rng(0).uniform(-1, 1, (3, 64)).astype(np.float32)
  raw = gguf_package.quantize(values, kind)
  tensor = read_back(tmp_path / 'q.gguf', raw, kind)
  assert tensor.shape == values.shape
  found = gguf._dequantise('q', tensor)
  assert np.abs(found - values).max() <= WRITTEN[name] + 1e-3 * bool(
    WRITTEN[name]
  )


@pytest.mark.parametrize('name', READ)
def test_blocks_of_any_bytes_are_read_as_the_package_reads_them(name, tmp_path):
  kind = KINDS.get(name)
  if kind is None:
    pytest.skip(f'this version of gguf does not know {name}')
  block, block_bytes = gguf_package.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(0)
  # No byte is 0x7C or above, as an exponent of a NaN is.
  raw = rng.integers(0, 0x3C, (3, 2 * block_bytes), dtype=np.uint8)
  tensor = read_back(tmp_path / 'q.gguf', raw, kind)
  assert tensor.shape == (3, 2 * block)
  found = gguf._dequantise('q', tensor)
  one = gguf_package.dequantize(raw[1, block_bytes:].copy(), kind)
  np.testing.assert_array_equal(found[1, block:], one.reshape(-1))
  assert np.isfinite(found).all() and np.ptp(found) > 0


@pytest.mark.parametrize('name', REFUSED)
def test_types_that_cannot_be_read_are_refused_by_name(name):
  kind = KINDS.get(name)
  if kind is None:
    pytest.skip(f'this version of gguf does not know {name}')
  block, block_bytes = gguf_package.GGML_QUANT_SIZES[kind]
  plain = {'F64': '<f8', 'I8': '<i1', 'I16': '<i2', 'I32': '<i4', 'I64': '<i8'}
  data = np.zeros((1, block_bytes), np.uint8)
  if name in plain:
    data = data.view(plain[name])
  tensor = gguf.gguf_file.Tensor('blk.0.x', kind, (1, block), data)
  with pytest.raises(
    ValueError, match=rf"'q' stores blk.0.x as {name}, which cannot be dequant"
  ):
    gguf._dequantise('q', tensor)
