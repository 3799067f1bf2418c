# SPDX-License-Identifier: Apache-2.0
"""OPT and GPT-2: learned positions, LayerNorm, an MLP without a gate."""

from collections.abc import Mapping
import re
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, stored

_SIZES = {**dict.fromkeys(family.SIZES, family.SIZE)}
_QKV = ('attention/query', 'attention/key', 'attention/value')
_OPT_OFFSET = 2  # rows of OPT's table before that of position 0


def _common(raw: Mapping[str, Any], activation: str) -> dict[str, Any]:
  """Fields of `ModelConfig` that both share."""
  heads = raw['num_attention_heads']
  values = {ours: raw[theirs] for theirs, ours in family.SIZES.items()}
  return values | {
    'num_kv_heads': heads,
    'head_dim': raw['hidden_size'] // heads,
    'max_position_embeddings': raw['max_position_embeddings'],
    'tie_word_embeddings': raw['tie_word_embeddings'],
    'norm': config.NormConfig('layer'),
    'attention': config.AttentionConfig(has_bias=True, has_out_bias=True),
    'mlp': config.MlpConfig(
      family.ACTIVATIONS[activation], is_gated=False, has_bias=True
    ),
  }


def _read_opt(raw: Mapping[str, Any]) -> dict[str, Any]:
  width = raw.get('word_embed_proj_dim', raw['hidden_size'])
  if width != raw['hidden_size']:
    raise ValueError(
      f'word_embed_proj_dim is {width}; accepted: hidden_size, which is '
      f'{raw["hidden_size"]} (OPT-350m alone has another; use another size)'
    )
  return _common(raw, raw['activation_function']) | {
    'rms_norm_eps': 1e-5,
    'num_learned_positions': raw['max_position_embeddings'] + _OPT_OFFSET,
    'position_offset': _OPT_OFFSET,
  }


def _read_gpt2(raw: Mapping[str, Any]) -> dict[str, Any]:
  return _common(raw, raw['activation_function']) | {
    'rms_norm_eps': float(raw['layer_norm_epsilon']),
    'num_learned_positions': raw['max_position_embeddings'],
  }


_GPT2_NAMES = {
  'n_embd': 'hidden_size',
  'n_layer': 'num_hidden_layers',
  'n_head': 'num_attention_heads',
  'n_positions': 'max_position_embeddings',
  'n_inner': 'intermediate_size',
}


def _respell_opt(raw: dict[str, Any]) -> dict[str, Any]:
  return family.renamed(raw, {'ffn_dim': 'intermediate_size'})


def _respell_gpt2(raw: dict[str, Any]) -> dict[str, Any]:
  raw = family.renamed(raw, _GPT2_NAMES)
  if raw.get('intermediate_size') is None and 'hidden_size' in raw:
    raw['intermediate_size'] = 4 * raw['hidden_size']
  return raw


def _write_opt(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = {theirs: getattr(cfg, ours) for theirs, ours in family.SIZES.items()}
  raw['ffn_dim'] = raw.pop('intermediate_size')
  return raw | {
    'word_embed_proj_dim': cfg.hidden_size,
    'max_position_embeddings': cfg.num_learned_positions - _OPT_OFFSET,
    'activation_function': family.activation(cfg, 'gelu_new'),
    'do_layer_norm_before': True,
    'tie_word_embeddings': cfg.tie_word_embeddings,
  }


def _write_gpt2(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = {theirs: getattr(cfg, ours) for theirs, ours in family.SIZES.items()}
  raw['max_position_embeddings'] = cfg.num_learned_positions
  back = {ours: theirs for theirs, ours in _GPT2_NAMES.items()}
  return family.renamed(raw, back) | {
    'layer_norm_epsilon': cfg.rms_norm_eps,
    'activation_function': family.activation(cfg, 'gelu_new'),
    'tie_word_embeddings': cfg.tie_word_embeddings,
  }


OPT = family.Family(
  name='opt',
  architecture='OPTForCausalLM',
  model_type='opt',
  top=(
    stored.Module('model.decoder.embed_tokens', ('embed',)),
    stored.Module('model.decoder.embed_positions', ('positions',)),
    stored.Module('model.decoder.final_layer_norm', ('final_norm',)),
    stored.Module('lm_head', ('lm_head',)),
  ),
  layer=(
    stored.Module('self_attn.q_proj', ('attention/query',)),
    stored.Module('self_attn.k_proj', ('attention/key',)),
    stored.Module('self_attn.v_proj', ('attention/value',)),
    stored.Module('self_attn.out_proj', ('attention/out',)),
    stored.Module('self_attn_layer_norm', ('attention_norm',)),
    stored.Module('fc1', ('mlp/up',)),
    stored.Module('fc2', ('mlp/down',)),
    stored.Module('final_layer_norm', ('mlp_norm',)),
  ),
  prefix='model.decoder.layers',
  kinds={
    **_SIZES,
    'max_position_embeddings': family.SIZE,
    'activation_function': family.ACTIVATION,
    'tie_word_embeddings': fields.BOOL,
    'word_embed_proj_dim': family.SIZE,
  },
  defaults={
    'max_position_embeddings': 2048,
    'activation_function': 'relu',
    'tie_word_embeddings': True,
  },
  neutral={
    'do_layer_norm_before': (True,),
    '_remove_final_layer_norm': (False,),
    'enable_bias': (True,),
    'layer_norm_elementwise_affine': (True,),
  },
  optional=frozenset(['word_embed_proj_dim']),
  ignored=frozenset(['dropout', 'activation_dropout', 'layerdrop', 'init_std']),
  read_fields=_read_opt,
  write_fields=_write_opt,
  respell=_respell_opt,
  theta=None,
  old_names=(r'^decoder\.', 'model.decoder.'),
)
GPT2 = family.Family(
  name='gpt2',
  architecture='GPT2LMHeadModel',
  model_type='gpt2',
  top=(
    stored.Module('transformer.wte', ('embed',)),
    stored.Module('transformer.wpe', ('positions',)),
    stored.Module('transformer.ln_f', ('final_norm',)),
    stored.Module('lm_head', ('lm_head',)),
  ),
  layer=(
    stored.Module('attn.c_attn', _QKV, 'in_out'),
    stored.Module('attn.c_proj', ('attention/out',), 'in_out'),
    stored.Module('ln_1', ('attention_norm',)),
    stored.Module('mlp.c_fc', ('mlp/up',), 'in_out'),
    stored.Module('mlp.c_proj', ('mlp/down',), 'in_out'),
    stored.Module('ln_2', ('mlp_norm',)),
  ),
  prefix='transformer.h',
  kinds={
    **_SIZES,
    'max_position_embeddings': family.SIZE,
    'layer_norm_epsilon': fields.POSITIVE,
    'activation_function': family.ACTIVATION,
    'tie_word_embeddings': fields.BOOL,
  },
  defaults={
    'n_positions': 1024,
    'layer_norm_epsilon': 1e-5,
    'activation_function': 'gelu_new',
    'tie_word_embeddings': True,
  },
  neutral={
    'scale_attn_weights': (True,),
    'scale_attn_by_inverse_layer_idx': (False,),
  },
  ignored=frozenset(
    """attn_pdrop embd_pdrop resid_pdrop n_ctx reorder_and_upcast_attn
    summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj gradient_checkpointing n_special
    predict_special_tokens""".split()  # noqa: SIM905
  ),
  read_fields=_read_gpt2,
  write_fields=_write_gpt2,
  respell=_respell_gpt2,
  theta=None,
  derived=re.compile(r'transformer\.h\.\d+\.attn\.(masked_)?bias'),
  old_names=(r'^(?!transformer\.|lm_head\.)', 'transformer.'),
)
