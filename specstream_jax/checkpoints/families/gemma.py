# SPDX-License-Identifier: Apache-2.0
"""Gemma 1, 2 and 3 (text): norms of 1 + w, scaled embeddings, soft caps."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama, stored

_ACTIVATION = 'gelu_pytorch_tanh'
_GLOBAL_THETA, _LOCAL_THETA = 1e6, 1e4
_LAYER_2 = (
  *llama.ATTENTION,
  *llama.MLP,
  stored.Module('post_attention_layernorm', ('attention_post_norm',)),
  stored.Module('pre_feedforward_layernorm', ('mlp_norm',)),
  stored.Module('post_feedforward_layernorm', ('mlp_post_norm',)),
)
_DEFAULTS = llama.DEFAULTS | {
  'head_dim': 256,
  'max_position_embeddings': 8192,
  'tie_word_embeddings': True,
  'attention_bias': False,
}
_NEUTRAL = {
  name: values for name, values in llama.NEUTRAL.items() if name != 'hidden_act'
}
# transformers takes the tanh form for all of these.
_NEUTRAL_1 = _NEUTRAL | {
  'hidden_act': (_ACTIVATION, 'gelu'),
  'hidden_activation': (_ACTIVATION, 'gelu'),
}
_NEUTRAL_2 = _NEUTRAL | {
  'hidden_act': (_ACTIVATION,),
  'hidden_activation': (_ACTIVATION,),
}
_KINDS_2 = {
  **llama.KINDS,
  'attention_bias': fields.BOOL,
  'query_pre_attn_scalar': fields.POSITIVE,
  'sliding_window': family.SIZE,
  'layer_types': fields.TEXTS,
  'attn_logit_softcapping': fields.POSITIVE,
  'final_logit_softcapping': fields.POSITIVE,
}
_OPTIONAL_2 = frozenset(
  [
    'num_key_value_heads',
    'sliding_window',
    'layer_types',
    'attn_logit_softcapping',
    'final_logit_softcapping',
  ]
)


def _common(raw: Mapping[str, Any], theta: float = 1e4) -> dict[str, Any]:
  return llama.sizes(raw, theta) | {
    'norm': config.NormConfig(is_unit_offset=True),
    'mlp': config.MlpConfig('gelu_tanh'),
    'embedding_scale': raw['hidden_size'] ** 0.5,
  }


def _read_1(raw: Mapping[str, Any]) -> dict[str, Any]:
  has_bias = raw['attention_bias']
  attention = config.AttentionConfig(has_bias, has_out_bias=has_bias)
  return _common(raw) | {'attention': attention}


def _read_later(
  raw: Mapping[str, Any], qk_norm: str, theta: float, pattern: int
) -> dict[str, Any]:
  """Gemma 2 and 3.

  Args:
    raw: config.json.
    qk_norm: see `config.AttentionConfig`.
    theta: RoPE base of a file that names none.
    pattern: every so many layers, one sees all, unless the file lists them.
  """
  has_bias = raw['attention_bias']
  types = raw.get('layer_types')
  if types is None:
    types = [
      'sliding_attention' if (i + 1) % pattern else 'full_attention'
      for i in range(raw['num_hidden_layers'])
    ]
  return (
    _common(raw, theta)
    | family.layer_kinds(types, raw.get('sliding_window'))
    | {
      'block': 'pre_post',
      'attention': config.AttentionConfig(
        has_bias,
        has_out_bias=has_bias,
        qk_norm=qk_norm,
        query_scale=raw['query_pre_attn_scalar'] ** -0.5,
        softcap=float(raw.get('attn_logit_softcapping', 0.0)),
      ),
      'logit_softcap': float(raw.get('final_logit_softcapping', 0.0)),
    }
  )


def _read_2(raw: Mapping[str, Any]) -> dict[str, Any]:
  return _read_later(raw, 'none', 1e4, 2)


def _read_3(raw: Mapping[str, Any]) -> dict[str, Any]:
  values = _read_later(
    raw, 'head', _GLOBAL_THETA, raw['sliding_window_pattern']
  )
  if values.get('window'):
    values['local_rope_theta'] = float(raw['rope_local_base_freq'])
  return values


def _respell_3(raw: dict[str, Any]) -> dict[str, Any]:
  """Version 5's table by kind of layer as version 4's two bases."""
  tables = raw.get('rope_parameters')
  names = {'full_attention', 'sliding_attention'}
  if not isinstance(tables, dict) or not names & tables.keys():
    return raw
  local = tables.get('sliding_attention') or {}
  raw = raw | {'rope_parameters': tables.get('full_attention')}
  is_plain = isinstance(local, dict) and (
    set(local) <= {'rope_type', 'rope_theta'}
    and local.get('rope_type', 'default') == 'default'
  )
  if is_plain:
    theta = local.get('rope_theta', _LOCAL_THETA)
    return raw | {'rope_local_base_freq': theta}
  return raw | {'rope_parameters.sliding_attention': local}


def _write_1(cfg: config.ModelConfig) -> dict[str, Any]:
  return llama.write_sizes(cfg) | {
    'hidden_act': _ACTIVATION,
    'hidden_activation': _ACTIVATION,
    'attention_bias': cfg.attention.has_bias,
  }


def _write_2(cfg: config.ModelConfig) -> dict[str, Any]:
  return _write_1(cfg) | {
    'query_pre_attn_scalar': family.whole(cfg.attention.query_scale**-2),
    'sliding_window': cfg.window or None,
    'layer_types': family.layer_types(cfg),
    'attn_logit_softcapping': cfg.attention.softcap or None,
    'final_logit_softcapping': cfg.logit_softcap or None,
  }


def _write_3(cfg: config.ModelConfig) -> dict[str, Any]:
  local = cfg.local_rope_theta or cfg.rope_theta
  return _write_2(cfg) | {'rope_local_base_freq': local}


GEMMA = family.Family(
  name='gemma',
  architecture='GemmaForCausalLM',
  model_type='gemma',
  top=llama.TOP,
  layer=llama.LAYER,
  prefix='model.layers',
  kinds={**llama.KINDS, 'attention_bias': fields.BOOL},
  defaults=_DEFAULTS | {'num_key_value_heads': 16},
  neutral=_NEUTRAL_1,
  read_fields=_read_1,
  write_fields=_write_1,
)
GEMMA2 = family.Family(
  name='gemma2',
  architecture='Gemma2ForCausalLM',
  model_type='gemma2',
  top=llama.TOP,
  layer=_LAYER_2,
  prefix='model.layers',
  kinds=_KINDS_2,
  defaults=_DEFAULTS
  | {
    'num_key_value_heads': 4,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
  },
  neutral=_NEUTRAL_2,
  optional=_OPTIONAL_2,
  ignored=frozenset(['cache_implementation', 'sliding_window_size']),
  read_fields=_read_2,
  write_fields=_write_2,
)
GEMMA3 = family.Family(
  name='gemma3',
  architecture='Gemma3ForCausalLM',
  model_type='gemma3_text',
  top=llama.TOP,
  layer=(*_LAYER_2, *llama.QK_NORMS),
  prefix='model.layers',
  # transformers keeps a cap of attention in the config and applies none.
  kinds={
    **{k: v for k, v in _KINDS_2.items() if k != 'attn_logit_softcapping'},
    'rope_local_base_freq': fields.POSITIVE,
    'sliding_window_pattern': family.SIZE,
  },
  defaults=_DEFAULTS
  | {
    'max_position_embeddings': 131072,
    'num_key_value_heads': 4,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'sliding_window_pattern': 6,
    'rope_local_base_freq': _LOCAL_THETA,
  },
  neutral=_NEUTRAL_2 | {'attn_logit_softcapping': ()},
  optional=_OPTIONAL_2,
  ignored=frozenset(['cache_implementation', '_sliding_window_pattern']),
  respell=_respell_3,
  theta=_GLOBAL_THETA,
  read_fields=_read_3,
  write_fields=_write_3,
)
