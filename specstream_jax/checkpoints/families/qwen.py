# SPDX-License-Identifier: Apache-2.0
"""Qwen2, 2.5 and 3: biases, or norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama

_KINDS = {
  **llama.KINDS,
  'use_sliding_window': fields.BOOL,
  'sliding_window': family.SIZE,
  'max_window_layers': fields.COUNT,
  'layer_types': fields.TEXTS,
}
_DEFAULTS = llama.DEFAULTS | {
  'max_position_embeddings': 32768,
  'num_key_value_heads': 32,
  'use_sliding_window': False,
  'sliding_window': 4096,
  'max_window_layers': 28,
}


def _windows(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Version 5 lists the layers, version 4 says from which on."""
  window = raw.get('sliding_window') if raw['use_sliding_window'] else None
  types = raw.get('layer_types')
  if types is None:
    types = [
      'sliding_attention'
      if window and i >= raw['max_window_layers']
      else 'full_attention'
      for i in range(raw['num_hidden_layers'])
    ]
  return family.layer_kinds(types, window)


def _write_windows(cfg: config.ModelConfig) -> dict[str, Any]:
  kinds = list(cfg.kinds)
  first = kinds.index('window') if 'window' in kinds else cfg.num_layers
  return {
    'use_sliding_window': cfg.window > 0,
    'sliding_window': cfg.window or None,
    'max_window_layers': first,
    'layer_types': family.layer_types(cfg),
  }


def _read_2(raw: Mapping[str, Any]) -> dict[str, Any]:
  attention = config.AttentionConfig(has_bias=True)
  return llama.sizes(raw) | _windows(raw) | {'attention': attention}


def _read_3(raw: Mapping[str, Any]) -> dict[str, Any]:
  has_bias = raw['attention_bias']
  attention = config.AttentionConfig(
    has_bias=has_bias, has_out_bias=has_bias, qk_norm='head'
  )
  head_dim = {'head_dim': raw['head_dim']}
  return llama.sizes(raw) | _windows(raw) | head_dim | {'attention': attention}


def _write_2(cfg: config.ModelConfig) -> dict[str, Any]:
  return llama.write_sizes(cfg) | _write_windows(cfg) | {'hidden_act': 'silu'}


def _write_3(cfg: config.ModelConfig) -> dict[str, Any]:
  return (
    llama.write_sizes(cfg)
    | _write_windows(cfg)
    | {'hidden_act': 'silu', 'attention_bias': cfg.attention.has_bias}
  )


QWEN2 = family.Family(
  name='qwen2',
  architecture='Qwen2ForCausalLM',
  model_type='qwen2',
  top=llama.TOP,
  layer=llama.LAYER,
  prefix='model.layers',
  kinds=_KINDS,
  defaults=_DEFAULTS,
  neutral=llama.NEUTRAL,
  read_fields=_read_2,
  write_fields=_write_2,
)
QWEN3 = family.Family(
  name='qwen3',
  architecture='Qwen3ForCausalLM',
  model_type='qwen3',
  top=llama.TOP,
  layer=(*llama.LAYER, *llama.QK_NORMS),
  prefix='model.layers',
  kinds={**_KINDS, 'attention_bias': fields.BOOL},
  defaults=_DEFAULTS | {'head_dim': 128, 'attention_bias': False},
  neutral=llama.NEUTRAL,
  read_fields=_read_3,
  write_fields=_write_3,
)
