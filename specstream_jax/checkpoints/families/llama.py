# SPDX-License-Identifier: Apache-2.0
"""Llama 1 to 3.x and what is built like it: TinyLlama, SmolLM2, Yi, Mistral."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields, huggingface_rope as rope
from specstream_jax.checkpoints.families import family, stored

TOP = (
  stored.Module('model.embed_tokens', ('embed',)),
  stored.Module('model.norm', ('final_norm',)),
  stored.Module('lm_head', ('lm_head',)),
)
ATTENTION = (
  stored.Module('self_attn.q_proj', ('attention/query',)),
  stored.Module('self_attn.k_proj', ('attention/key',)),
  stored.Module('self_attn.v_proj', ('attention/value',)),
  stored.Module('self_attn.o_proj', ('attention/out',)),
  stored.Module('input_layernorm', ('attention_norm',)),
)
MLP = (
  stored.Module('mlp.gate_proj', ('mlp/gate',)),
  stored.Module('mlp.up_proj', ('mlp/up',)),
  stored.Module('mlp.down_proj', ('mlp/down',)),
)
LAYER = (
  *ATTENTION,
  *MLP,
  stored.Module('post_attention_layernorm', ('mlp_norm',)),
)
QK_NORMS = (
  stored.Module('self_attn.q_norm', ('attention/query_norm',)),
  stored.Module('self_attn.k_norm', ('attention/key_norm',)),
)
KINDS = {
  **dict.fromkeys(family.SIZES, family.SIZE),
  'num_key_value_heads': family.SIZE,
  'head_dim': family.SIZE,
  'max_position_embeddings': family.SIZE,
  'rms_norm_eps': fields.POSITIVE,
  'tie_word_embeddings': fields.BOOL,
}
DEFAULTS = {
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 2048,
  'tie_word_embeddings': False,
}
NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'rope_interleaved': (False,),
  'partial_rotary_factor': (1.0,),
}


def sizes(raw: Mapping[str, Any], theta: float = 10000.0) -> dict[str, Any]:
  """Fields of `ModelConfig` that most families spell as Llama does."""
  heads = raw['num_attention_heads']
  values = {ours: raw[theirs] for theirs, ours in family.SIZES.items()}
  base, scaling = rope.read(raw, theta)
  return values | {
    'num_kv_heads': raw.get('num_key_value_heads', heads),
    'head_dim': raw.get('head_dim', raw['hidden_size'] // heads),
    'rope_theta': base,
    'rope_scaling': scaling,
    'rms_norm_eps': float(raw['rms_norm_eps']),
    'max_position_embeddings': raw['max_position_embeddings'],
    'tie_word_embeddings': raw['tie_word_embeddings'],
  }


def write_sizes(cfg: config.ModelConfig) -> dict[str, Any]:
  """Undoes `sizes`."""
  raw = {theirs: getattr(cfg, ours) for theirs, ours in family.SIZES.items()}
  return raw | {
    'num_key_value_heads': cfg.num_kv_heads,
    'head_dim': cfg.head_dim,
    'rms_norm_eps': cfg.rms_norm_eps,
    'max_position_embeddings': cfg.max_position_embeddings,
    'tie_word_embeddings': cfg.tie_word_embeddings,
    'rope_theta': cfg.rope_theta,
    'rope_scaling': rope.dump(cfg.rope_scaling),
  }


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  has_bias = raw['attention_bias']
  return sizes(raw) | {
    'attention': config.AttentionConfig(
      has_bias=has_bias, has_out_bias=has_bias
    ),
    'mlp': config.MlpConfig(has_bias=raw['mlp_bias']),
  }


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  return write_sizes(cfg) | {
    'hidden_act': 'silu',
    'attention_bias': cfg.attention.has_bias,
    'mlp_bias': cfg.mlp.has_bias,
  }


LLAMA = family.Family(
  name='llama',
  architecture='LlamaForCausalLM',
  model_type='llama',
  top=TOP,
  layer=LAYER,
  prefix='model.layers',
  kinds={**KINDS, 'attention_bias': fields.BOOL, 'mlp_bias': fields.BOOL},
  defaults={**DEFAULTS, 'attention_bias': False, 'mlp_bias': False},
  neutral=NEUTRAL | {'use_sliding_window': (False,)},
  ignored=frozenset(['is_llama_config']),
  read_fields=_read,
  write_fields=_write,
)
