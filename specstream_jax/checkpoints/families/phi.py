# SPDX-License-Identifier: Apache-2.0
"""Phi-1.5 and 2 (parallel blocks), Phi-3 and 4 (fused projections)."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama, mistral, stored

_DROPOUT = frozenset(['resid_pdrop', 'embd_pdrop', 'embed_pdrop'])
_QKV = ('attention/query', 'attention/key', 'attention/value')


def _read_phi(raw: Mapping[str, Any]) -> dict[str, Any]:
  if raw['tie_word_embeddings']:
    raise ValueError(
      'tie_word_embeddings is True; accepted: False, as the LM head of a Phi '
      'has a bias and weights of its own'
    )
  raw = {**raw, 'rms_norm_eps': raw['layer_norm_eps']}
  return llama.sizes(raw) | {
    'rotary_dim': family.rotary_dim(raw),
    'norm': config.NormConfig('layer'),
    'attention': config.AttentionConfig(has_bias=True, has_out_bias=True),
    'mlp': config.MlpConfig(
      family.ACTIVATIONS[raw['hidden_act']], is_gated=False, has_bias=True
    ),
    'block': 'parallel_shared',
    'has_head_bias': True,
  }


def _write_phi(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.write_sizes(cfg)
  del raw['rms_norm_eps']
  return raw | {
    'layer_norm_eps': cfg.rms_norm_eps,
    'hidden_act': family.activation(cfg, 'gelu_new'),
    'partial_rotary_factor': cfg.num_rotated / cfg.head_dim,
    'qk_layernorm': False,
  }


def _read_phi3(raw: Mapping[str, Any]) -> dict[str, Any]:
  window = raw.get('sliding_window')
  values = llama.sizes(raw) | mistral.windows(raw, window)
  return values | {'rotary_dim': family.rotary_dim(raw)}


def _write_phi3(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.write_sizes(cfg)
  scaling = cfg.rope_scaling
  if scaling.kind == 'longrope':
    original = raw['rope_scaling'].pop('original_max_position_embeddings')
    raw['original_max_position_embeddings'] = original
  return raw | {
    'hidden_act': 'silu',
    'partial_rotary_factor': cfg.num_rotated / cfg.head_dim,
    'sliding_window': cfg.window or None,
  }


def _respell_phi3(raw: dict[str, Any]) -> dict[str, Any]:
  """Early files call their way of stretching `su`."""
  table = raw.get('rope_scaling')
  if isinstance(table, dict) and table.get('type') in ('su', 'yarn'):
    raw = raw | {'rope_scaling': table | {'type': 'longrope'}}
  return raw


_KINDS = {
  **{
    name: kind for name, kind in llama.KINDS.items() if name != 'rms_norm_eps'
  },
  'partial_rotary_factor': fields.POSITIVE,
}
PHI = family.Family(
  name='phi',
  architecture='PhiForCausalLM',
  model_type='phi',
  top=(
    stored.Module('model.embed_tokens', ('embed',)),
    stored.Module('model.final_layernorm', ('final_norm',)),
    stored.Module('lm_head', ('lm_head',)),
  ),
  layer=(
    stored.Module('self_attn.q_proj', ('attention/query',)),
    stored.Module('self_attn.k_proj', ('attention/key',)),
    stored.Module('self_attn.v_proj', ('attention/value',)),
    stored.Module('self_attn.dense', ('attention/out',)),
    stored.Module('input_layernorm', ('attention_norm',)),
    stored.Module('mlp.fc1', ('mlp/up',)),
    stored.Module('mlp.fc2', ('mlp/down',)),
  ),
  prefix='model.layers',
  kinds={
    **_KINDS,
    'layer_norm_eps': fields.POSITIVE,
    'hidden_act': family.ACTIVATION,
  },
  defaults={
    'max_position_embeddings': 2048,
    'tie_word_embeddings': False,
    'layer_norm_eps': 1e-5,
    'hidden_act': 'gelu_new',
    'partial_rotary_factor': 0.5,
  },
  neutral={'qk_layernorm': (False,)},
  ignored=_DROPOUT,
  read_fields=_read_phi,
  write_fields=_write_phi,
)
PHI3 = family.Family(
  name='phi3',
  architecture='Phi3ForCausalLM',
  model_type='phi3',
  top=llama.TOP,
  layer=(
    stored.Module('self_attn.qkv_proj', _QKV),
    stored.Module('self_attn.o_proj', ('attention/out',)),
    stored.Module('input_layernorm', ('attention_norm',)),
    stored.Module('mlp.gate_up_proj', ('mlp/gate', 'mlp/up')),
    stored.Module('mlp.down_proj', ('mlp/down',)),
    stored.Module('post_attention_layernorm', ('mlp_norm',)),
  ),
  prefix='model.layers',
  kinds={
    **_KINDS,
    'rms_norm_eps': fields.POSITIVE,
    'sliding_window': family.SIZE,
    'original_max_position_embeddings': family.SIZE,
  },
  defaults={
    'max_position_embeddings': 4096,
    'original_max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False,
    'partial_rotary_factor': 1.0,
  },
  neutral={
    'hidden_act': ('silu',),
    'attention_bias': (False,),
    'mlp_bias': (False,),
    'lm_head_bias': (False,),
    'interpolate_factor': (1,),
    'full_attn_mod': (1,),
  },
  ignored=_DROPOUT,
  respell=_respell_phi3,
  read_fields=_read_phi3,
  write_fields=_write_phi3,
)
