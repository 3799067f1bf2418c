# SPDX-License-Identifier: Apache-2.0
"""Granite: a Llama with multipliers."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import llama

# Field of config.json -> what it is where a file leaves it out.
_MULTIPLIERS = dict.fromkeys(
  (
    'embedding_multiplier',
    'residual_multiplier',
    'attention_multiplier',
    'logits_scaling',
  ),
  1.0,
)


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  values = llama.LLAMA.read_fields(raw)
  attention = dataclasses.replace(
    values['attention'], query_scale=float(raw['attention_multiplier'])
  )
  return values | {
    'attention': attention,
    'embedding_scale': float(raw['embedding_multiplier']),
    'residual_scale': float(raw['residual_multiplier']),
    'logit_divisor': float(raw['logits_scaling']),
  }


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  raw = llama.LLAMA.write_fields(cfg)
  return raw | {
    'embedding_multiplier': cfg.embedding_scale,
    'residual_multiplier': cfg.residual_scale,
    'attention_multiplier': cfg.attention.query_scale,
    'logits_scaling': cfg.logit_divisor,
  }


GRANITE = dataclasses.replace(
  llama.LLAMA,
  name='granite',
  architecture='GraniteForCausalLM',
  model_type='granite',
  kinds={
    **llama.LLAMA.kinds,
    **dict.fromkeys(_MULTIPLIERS, fields.POSITIVE),
  },
  defaults={**llama.LLAMA.defaults, **_MULTIPLIERS},
  read_fields=_read,
  write_fields=_write,
)
