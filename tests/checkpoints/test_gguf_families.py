# SPDX-License-Identifier: Apache-2.0
"""GGUF files of every architecture that is read."""

import dataclasses

import family_models
import gguf as gguf_package
import model_files
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import (
  gguf,
  gguf_architectures,
  weights,
)

NAMES = sorted(gguf_architectures.ARCHITECTURES.keys() - {'llama'})


def config_of(name):
  """The tiny config of a family, without what GGUF cannot say."""
  cfg = family_models.load(name).cfg
  return dataclasses.replace(
    cfg, layer_kinds=(), window=0, rope_scaling=config.RopeScaling()
  )


def write(path, name, tensors, **metadata):
  """A GGUF file of a family."""
  cfg = config_of(name)
  writer = gguf_package.GGUFWriter(path, name)
  writer.add_block_count(cfg.num_layers)
  writer.add_context_length(cfg.max_position_embeddings)
  writer.add_embedding_length(cfg.hidden_size)
  writer.add_feed_forward_length(cfg.intermediate_size)
  writer.add_head_count(cfg.num_heads)
  writer.add_head_count_kv(cfg.num_kv_heads)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  writer.add_rope_freq_base(cfg.rope_theta)
  writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
  for key, value in metadata.items():
    writer.add_uint32(f'{name}.{key}', value)
  for tensor, leaf in tensors.items():
    writer.add_tensor(tensor, np.ascontiguousarray(leaf))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def stored(name):
  """What a GGUF file of a family holds, by hand: norms of Gemma as 1 + w."""
  cfg, flat = config_of(name), family_models.load(name).flat
  tensors = {}
  for path, tensor in weights.gguf_names(cfg).items():
    leaf = flat[path]
    if path.endswith('kernel'):
      leaf = leaf.T
    elif name == 'gemma' and path.endswith('scale'):
      leaf = leaf + 1
    tensors[tensor] = leaf
  return tensors


@pytest.mark.parametrize('name', NAMES)
def test_gguf_of_a_family(name, tmp_path):
  header = gguf.open_file(write(tmp_path / 'm.gguf', name, stored(name)))
  assert header.config == config_of(name)
  assert weights.config_hash(header.config) == weights.config_hash(
    config_of(name)
  )
  read = gguf.open_params(header)
  flat = family_models.load(name).flat
  assert set(read) == set(flat)
  for path, leaf in flat.items():
    np.testing.assert_allclose(read[path], leaf, atol=2e-7)


def test_tensors_have_llama_cpps_names():
  names = set(weights.gguf_names(config_of('qwen2')).values())
  assert {'blk.2.attn_q.bias', 'blk.0.attn_v.bias'} <= names
  names = set(weights.gguf_names(config_of('qwen3')).values())
  assert {'blk.0.attn_q_norm.weight', 'blk.1.attn_k_norm.weight'} <= names


def test_what_is_not_understood_is_named_by_its_own_key(tmp_path):
  path = write(tmp_path / 'm.gguf', 'qwen2', stored('qwen2'), expert_count=8)
  with pytest.raises(ValueError, match=r'qwen2.expert_count is 8; accepted: 0'):
    gguf.open_file(path)
  path = model_files.write_gguf(tmp_path / 'n.gguf', architecture='mamba')
  accepted = "is 'mamba'; accepted: 'llama', 'qwen2', 'qwen3', 'gemma'"
  with pytest.raises(ValueError, match=accepted):
    gguf.open_file(path)
