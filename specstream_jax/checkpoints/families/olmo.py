# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms after attention and MLP alone, and of queries and keys."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama, stored


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  has_bias = raw['attention_bias']
  return llama.sizes(raw) | {
    'attention': config.AttentionConfig(
      has_bias, has_out_bias=has_bias, qk_norm='full'
    ),
    'block': 'post',
  }


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.write_sizes(cfg)
  bias = cfg.attention.has_bias
  return raw | {'hidden_act': 'silu', 'attention_bias': bias}


OLMO2 = family.Family(
  name='olmo2',
  architecture='Olmo2ForCausalLM',
  model_type='olmo2',
  top=llama.TOP,
  layer=(
    *(m for m in llama.ATTENTION if m.name != 'input_layernorm'),
    *llama.QK_NORMS,
    *llama.MLP,
    stored.Module('post_attention_layernorm', ('attention_post_norm',)),
    stored.Module('post_feedforward_layernorm', ('mlp_post_norm',)),
  ),
  prefix='model.layers',
  kinds={
    **llama.KINDS,
    'attention_bias': fields.BOOL,
  },
  defaults=llama.DEFAULTS | {'rms_norm_eps': 1e-5, 'attention_bias': False},
  neutral=llama.NEUTRAL,
  read_fields=_read,
  write_fields=_write,
)
