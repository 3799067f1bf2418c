# SPDX-License-Identifier: Apache-2.0
"""SmolLM3: a Llama of which some layers have no RoPE."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama

_THETA = 2e6


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  count, has_bias = raw['num_hidden_layers'], raw['attention_bias']
  every = raw['no_rope_layer_interval']
  # 1 for a layer with RoPE, whatever the name says.
  has_rope = raw.get(
    'no_rope_layers', [int((i + 1) % every != 0) for i in range(count)]
  )
  kinds = tuple('full' if has else 'nope' for has in has_rope)
  return llama.sizes(raw, _THETA) | {
    'attention': config.AttentionConfig(has_bias, has_out_bias=has_bias),
    'mlp': config.MlpConfig(has_bias=raw['mlp_bias']),
    'layer_kinds': kinds,
  }


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.write_sizes(cfg)
  return raw | {
    'hidden_act': 'silu',
    'attention_bias': cfg.attention.has_bias,
    'mlp_bias': cfg.mlp.has_bias,
    'no_rope_layers': [int(kind != 'nope') for kind in cfg.kinds],
    'use_sliding_window': False,
  }


SMOLLM3 = family.Family(
  name='smollm3',
  architecture='SmolLM3ForCausalLM',
  model_type='smollm3',
  top=llama.TOP,
  layer=llama.LAYER,
  prefix='model.layers',
  kinds={
    **llama.KINDS,
    'attention_bias': fields.BOOL,
    'mlp_bias': fields.BOOL,
    'no_rope_layers': fields.COUNTS,
    'no_rope_layer_interval': family.SIZE,
  },
  defaults=llama.DEFAULTS
  | {
    'num_key_value_heads': 4,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': True,
    'attention_bias': False,
    'mlp_bias': False,
    'no_rope_layer_interval': 4,
  },
  neutral=llama.NEUTRAL | {'use_sliding_window': (False,)},
  optional=frozenset(['num_key_value_heads', 'head_dim', 'no_rope_layers']),
  ignored=frozenset(['max_window_layers', 'sliding_window']),
  theta=_THETA,
  read_fields=_read,
  write_fields=_write,
)
