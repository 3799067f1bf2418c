# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints in both formats, written by hand."""

import json
import os
import pathlib

import gguf
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tokenizers
from tokenizers import models

from specstream_jax import config
from specstream_jax.checkpoints import weights

CONFIG = config.ModelConfig(
  vocab_size=17,
  hidden_size=22,
  intermediate_size=13,
  num_layers=2,
  num_heads=6,
  num_kv_heads=2,
  head_dim=10,
  rope_theta=1e5,
  rms_norm_eps=1e-5,
  max_position_embeddings=29,
)
HF_CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 17,
  'hidden_size': 22,
  'intermediate_size': 13,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 10,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'max_position_embeddings': 29,
  'rope_theta': 1e5,
  'eos_token_id': 2,
}
# Sizes of SmolLM2-135M.
SMOLLM2 = config.ModelConfig(
  vocab_size=49152,
  hidden_size=576,
  intermediate_size=1536,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  rope_theta=1e5,
  rms_norm_eps=1e-5,
  max_position_embeddings=8192,
  tie_word_embeddings=True,
)


def shared(*parts: str) -> pathlib.Path:
  """A file of the folder of test models; skips the test if it is not there."""
  root = pathlib.Path(__file__).parents[2]
  folder = os.environ.get('SPECSTREAM_SHARED', root.parent / 'shared')
  path = pathlib.Path(folder, *parts)
  if not path.exists():
    pytest.skip(f'needs {pathlib.Path(*parts)} in $SPECSTREAM_SHARED')
  return path


def random_params(cfg=CONFIG, seed=0):
  """Flat float32 weights."""
  rng = np.random.default_rng(seed)
  return {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in weights.shapes(cfg).items()
  }


def tokenizer():
  """A word-less tokenizer of a few letters."""
  vocab = {token: i for i, token in enumerate(['a', 'b', '</s>'])}
  return tokenizers.Tokenizer(models.BPE(vocab, []))


def hf_tensors(flat):
  """What a Hugging Face file holds: names spelt out, kernels [out, in]."""
  top = {
    'embed/embedding': 'model.embed_tokens.weight',
    'final_norm/scale': 'model.norm.weight',
    'lm_head/kernel': 'lm_head.weight',
  }
  layer = {
    'attention/query/kernel': 'self_attn.q_proj',
    'attention/key/kernel': 'self_attn.k_proj',
    'attention/value/kernel': 'self_attn.v_proj',
    'attention/out/kernel': 'self_attn.o_proj',
    'attention_norm/scale': 'input_layernorm',
    'mlp/gate/kernel': 'mlp.gate_proj',
    'mlp/up/kernel': 'mlp.up_proj',
    'mlp/down/kernel': 'mlp.down_proj',
    'mlp_norm/scale': 'post_attention_layernorm',
  }
  tensors = {}
  for path, leaf in flat.items():
    if path in top:
      name = top[path]
    else:
      _, index, rest = path.split('/', 2)
      name = f'model.layers.{index}.{layer[rest]}.weight'
    leaf = leaf.T if path.endswith('kernel') else leaf
    tensors[name] = np.ascontiguousarray(leaf)
  return tensors


def write_hf(folder, raw=HF_CONFIG, tensors=None):
  """A Hugging Face folder; returns it."""
  folder = pathlib.Path(folder)
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(raw))
  tensors = hf_tensors(random_params()) if tensors is None else tensors
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  return folder


def permute(rows, num_heads):
  """llama.cpp's row order for interleaved RoPE, one row at a time."""
  head_dim = len(rows) // num_heads
  out = np.empty_like(rows)
  for head in range(num_heads):
    for i in range(head_dim // 2):
      start = head * head_dim
      out[start + 2 * i] = rows[start + i]
      out[start + 2 * i + 1] = rows[start + head_dim // 2 + i]
  return out


GGUF_NAMES = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'input_layernorm': 'attn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'post_attention_layernorm': 'ffn_norm',
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'model.layers': 'blk',
}


def gguf_tensors(flat, cfg=CONFIG):
  """What a GGUF file holds, query and key rows permuted."""
  tensors = {}
  for name, leaf in hf_tensors(flat).items():
    heads = {'q_proj': cfg.num_heads, 'k_proj': cfg.num_kv_heads}
    for part, count in heads.items():
      leaf = permute(leaf, count) if part in name else leaf
    for theirs, ours in GGUF_NAMES.items():
      name = name.replace(theirs, ours)
    tensors[name] = leaf
  return tensors


def write_gguf(
  path, *, tensors=None, architecture='llama', extra=(), cfg=CONFIG
):
  """A GGUF file of `cfg`; `extra` is called with the writer first."""
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(cfg.num_layers)
  writer.add_context_length(29)
  writer.add_embedding_length(cfg.hidden_size)
  writer.add_feed_forward_length(13)
  writer.add_head_count(6)
  writer.add_head_count_kv(2)
  writer.add_key_length(10)
  writer.add_value_length(10)
  writer.add_rope_freq_base(1e5)
  writer.add_layer_norm_rms_eps(1e-5)
  for add in extra:
    add(writer)
  if tensors is None:
    tensors = gguf_tensors(random_params(cfg), cfg)
  for name, leaf in tensors.items():
    writer.add_tensor(name, np.ascontiguousarray(leaf))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return pathlib.Path(path)
