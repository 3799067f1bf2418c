# SPDX-License-Identifier: Apache-2.0
"""Mistral: a Llama whose layers may attend to a window alone."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import family, llama


def windows(raw: Mapping[str, Any], window: int | None) -> dict[str, Any]:
  """Fields of `ModelConfig` for layers of which all have a window, or none."""
  if not window:
    return {}
  num_layers = raw['num_hidden_layers']
  return {'window': window, 'layer_kinds': ('window',) * num_layers}


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
  window = raw.get('sliding_window')
  # Without a window it is a Llama in every respect, adapters included.
  name = 'mistral' if window else 'llama'
  return llama.sizes(raw) | windows(raw, window) | {'family': name}


def _write(cfg: config.ModelConfig) -> dict[str, Any]:
  return llama.write_sizes(cfg) | {
    'hidden_act': 'silu',
    'sliding_window': cfg.window or None,
  }


MISTRAL = family.Family(
  name='mistral',
  architecture='MistralForCausalLM',
  model_type='mistral',
  top=llama.TOP,
  layer=llama.LAYER,
  prefix='model.layers',
  kinds={**llama.KINDS, 'sliding_window': fields.SIZE},
  defaults=llama.DEFAULTS
  | {
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
  neutral=llama.NEUTRAL
  | {'attention_bias': (False,), 'use_sliding_window': (False,)},
  read_fields=_read,
  write_fields=_write,
)
