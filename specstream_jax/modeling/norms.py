# SPDX-License-Identifier: Apache-2.0
"""Normalisation of hidden states, and of queries and keys.

Axis letters: D features. In float32 whatever the weights' dtype.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import layers, params


class Norm(nnx.Module):
  """x / rms(x) * scale or, of kind `layer`, (x - mean) / std * scale + bias.

  Returned in x's dtype. With a unit offset the weight w is a scale of 1 + w.
  """

  def __init__(
    self, features: int, cfg: config.ModelConfig, kind: str | None = None
  ):
    self.kind = kind or cfg.norm.kind
    self.epsilon = cfg.rms_norm_eps
    self.offset = 1.0 if cfg.norm.is_unit_offset else 0.0
    self.scale = params.BaseParam(jnp.ones((features,), cfg.dtype))
    if self.kind == 'layer':
      self.bias = params.BaseParam(jnp.zeros((features,), cfg.dtype))

  def __call__(self, x: arrays.Array) -> arrays.Array:
    wide = lambda leaf: leaf[...].astype(jnp.float32)
    y = x.astype(jnp.float32)
    if self.kind == 'layer':
      y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    scale = wide(self.scale)
    if self.offset:
      scale += self.offset
    y *= layers.along_last(scale, y)
    if self.kind == 'layer':
      y += layers.along_last(wide(self.bias), y)
    return y.astype(x.dtype)
