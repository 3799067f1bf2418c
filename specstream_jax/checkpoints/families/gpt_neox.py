# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX and Pythia: parallel blocks with two norms, fused projections."""

from collections.abc import Mapping
import re
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama, stored

_QKV = ('attention/query', 'attention/key', 'attention/value')


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  has_bias = raw['attention_bias']
  raw = {**raw, 'rms_norm_eps': raw['layer_norm_eps']}
  return llama.sizes(raw) | {
    'rotary_dim': family.rotary_dim(raw),
    'norm': config.NormConfig('layer'),
    'attention': config.AttentionConfig(has_bias, has_out_bias=has_bias),
    'mlp': config.MlpConfig(
      family.ACTIVATIONS[raw['hidden_act']], is_gated=False, has_bias=True
    ),
    'block': 'parallel' if raw['use_parallel_residual'] else 'pre',
  }


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.write_sizes(cfg)
  names = ('rms_norm_eps', 'head_dim', 'num_key_value_heads')
  raw = {name: raw[name] for name in raw if name not in names}
  return raw | {
    'layer_norm_eps': cfg.rms_norm_eps,
    'hidden_act': family.activation(cfg, 'gelu_new'),
    'rotary_emb_base': raw.pop('rope_theta'),
    'rotary_pct': cfg.num_rotated / cfg.head_dim,
    'use_parallel_residual': cfg.block == 'parallel',
    'attention_bias': cfg.attention.has_bias,
  }


def _respell(raw: dict[str, Any]) -> dict[str, Any]:
  """Names of its own for what others call the base and the fraction."""
  for theirs, common in (
    ('rotary_emb_base', 'rope_theta'),
    ('rotary_pct', 'partial_rotary_factor'),
  ):
    value = raw.pop(theirs, None)
    if value is not None and raw.get(common) is None:
      raw[common] = value
  if raw.get('partial_rotary_factor') is None:
    raw['partial_rotary_factor'] = 0.25
  return raw


GPT_NEOX = family.Family(
  name='gpt_neox',
  architecture='GPTNeoXForCausalLM',
  model_type='gpt_neox',
  top=(
    stored.Module('gpt_neox.embed_in', ('embed',)),
    stored.Module('gpt_neox.final_layer_norm', ('final_norm',)),
    stored.Module('embed_out', ('lm_head',)),
  ),
  layer=(
    stored.Module('attention.query_key_value', _QKV, 'interleaved'),
    stored.Module('attention.dense', ('attention/out',)),
    stored.Module('input_layernorm', ('attention_norm',)),
    stored.Module('mlp.dense_h_to_4h', ('mlp/up',)),
    stored.Module('mlp.dense_4h_to_h', ('mlp/down',)),
    stored.Module('post_attention_layernorm', ('mlp_norm',)),
  ),
  prefix='gpt_neox.layers',
  kinds={
    **dict.fromkeys(family.SIZES, family.SIZE),
    'max_position_embeddings': family.SIZE,
    'layer_norm_eps': fields.POSITIVE,
    'hidden_act': family.ACTIVATION,
    'tie_word_embeddings': fields.BOOL,
    'use_parallel_residual': fields.BOOL,
    'attention_bias': fields.BOOL,
    'partial_rotary_factor': fields.POSITIVE,
  },
  defaults={
    'max_position_embeddings': 2048,
    'layer_norm_eps': 1e-5,
    'hidden_act': 'gelu',
    'tie_word_embeddings': False,
    'use_parallel_residual': True,
    'attention_bias': True,
  },
  neutral={},
  ignored=frozenset(['classifier_dropout']),
  read_fields=_read,
  write_fields=_write,
  respell=_respell,
  derived=re.compile(
    r'gpt_neox\.layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)'
  ),
)
