# SPDX-License-Identifier: Apache-2.0
"""Initial weights: a random base for tests, a fresh adapter for training."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import build, params


def init_base(
  key: arrays.Array, cfg: config.ModelConfig, scale: float = 1.0
) -> dict[Any, Any]:
  """Random base weights: normal with std scale / sqrt(fan in), norms one.

  Biases are zero.
  """
  shapes = params.flatten(build.build(cfg).base)
  flat = {}
  for path, leaf in shapes.items():
    key, subkey = jax.random.split(key)
    if path.endswith('scale'):
      one = 0.0 if cfg.norm.is_unit_offset else 1.0
      flat[path] = jnp.full(leaf.shape, one, leaf.dtype)
    elif path.endswith('bias'):
      flat[path] = jnp.zeros(leaf.shape, leaf.dtype)
    else:
      fan_in = leaf.shape[-1 if path.endswith('embedding') else 0]
      std = scale / math.sqrt(fan_in)
      flat[path] = (std * jax.random.normal(subkey, leaf.shape)).astype(
        leaf.dtype
      )
  return params.unflatten(flat)


def init_adapter(
  key: arrays.Array,
  cfg: config.ModelConfig,
  streams: config.StreamConfig,
  lora: config.LoraConfig,
  *,
  hidden_rms: float = 1.0,
) -> dict[Any, Any]:
  """Fresh adapter weights in float32.

  LoRA starts at zero effect (A random, B zero), o_theta and low-rank f_eta at
  the identity; an o_theta without residual is random on both sides. P_j is normal with std `embedding_init_scale * hidden_rms`: at
  the usual 0.02 the streams would start as copies of the main stream.

  Args:
    key: PRNG key.
    cfg: sizes of the base model.
    streams: stream settings.
    lora: LoRA settings.
    hidden_rms: RMS of the main stream at the insertion layer.
  """
  shapes = params.flatten(build.build(cfg, streams, lora).adapter)
  flat = {}
  for path, leaf in shapes.items():
    key, subkey = jax.random.split(key)
    std = 0.0
    is_alone = path == 'pruning/up' and not streams.pruning_residual
    if path.endswith(('lora_a', 'down', 'coupling/state')) or is_alone:
      std = 1.0 / math.sqrt(leaf.shape[0])
    elif path.endswith('embedding'):
      std = streams.embedding_init_scale * hidden_rms
    flat[path] = std * jax.random.normal(subkey, leaf.shape)
  return params.unflatten(flat)
