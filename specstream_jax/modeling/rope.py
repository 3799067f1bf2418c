# SPDX-License-Identifier: Apache-2.0
"""Rotary positions, each kind of layer with its own table.

Source: RoFormer (arXiv 2104.09864); the ways of stretching the frequencies as
Hugging Face transformers defines them, `yarn` from arXiv 2309.00071.

Axis letters: B rows, T positions, H head dim (the dims that are turned).
Angles are float32.
"""

import math

import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import layers


def frequencies(cfg: config.ModelConfig, kind: str = 'full') -> arrays.Array:
  """Angular frequencies [H/2] in float32 of a kind of layer."""
  is_local = kind == 'window' and cfg.local_rope_theta > 0
  theta = cfg.local_rope_theta if is_local else cfg.rope_theta
  width = cfg.num_rotated
  exponents = jnp.arange(0, width, 2, dtype=jnp.float32) / width
  plain = theta**-exponents
  scaling = cfg.rope_scaling
  if is_local:
    return plain
  if scaling.kind == 'linear':
    return plain / scaling.factor
  if scaling.kind == 'llama3':
    return _llama3(plain, scaling)
  if scaling.kind == 'yarn':
    return _yarn(plain, scaling, theta)
  if scaling.kind == 'longrope':
    return plain / jnp.asarray(scaling.divisors, jnp.float32)
  return plain


def _llama3(plain: arrays.Array, scaling: config.RopeScaling) -> arrays.Array:
  """Divides long wavelengths by `factor`, keeps short ones, blends between."""
  wavelengths = 2 * math.pi / plain
  context = scaling.original_max_position_embeddings
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  blend = jnp.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
  return (1 - blend) * plain / scaling.factor + blend * plain


def _yarn(
  plain: arrays.Array, scaling: config.RopeScaling, theta: float
) -> arrays.Array:
  """As `_llama3`, with a ramp over the number of the frequency."""
  width = 2 * len(plain)

  def number(turns):
    """The frequency that makes so many turns in the original context."""
    context = scaling.original_max_position_embeddings
    spread = context / (turns * 2 * math.pi)
    return width * math.log(spread) / (2 * math.log(theta))

  low, high = number(scaling.beta_fast), number(scaling.beta_slow)
  if scaling.is_truncated:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  if low == high:
    high += 0.001  # no division by zero
  ramp = (jnp.arange(len(plain), dtype=jnp.float32) - low) / (high - low)
  ramp = jnp.clip(ramp, 0.0, 1.0)
  return plain / scaling.factor * ramp + plain * (1 - ramp)


def tables(
  positions: arrays.Array, cfg: config.ModelConfig, kind: str = 'full'
) -> tuple[arrays.Array, arrays.Array]:
  """cos and sin [B, T, H/2] float32 for positions [B, T]."""
  scaling = cfg.rope_scaling
  positions = positions[..., None].astype(jnp.float32)
  if kind == 'nope':
    zeros = jnp.zeros((*positions.shape[:-1], cfg.num_rotated // 2))
    return zeros + 1, zeros
  if scaling.kind == 'dynamic':
    angles = positions * _dynamic(positions, cfg)
  else:
    turning = frequencies(cfg, kind)
    angles = positions * layers.along_last(turning, positions)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  is_local = kind == 'window' and cfg.local_rope_theta > 0
  if scaling.attention_factor != 1.0 and not is_local:
    cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
  return cos, sin


def _dynamic(positions, cfg):
  """Frequencies [B, T, H/2] that fall once a text outgrows the model.

  Each position has those of a text that ends there, as when a text is written
  token by token: a key once written stays as it is.
  """
  scaling, width = cfg.rope_scaling, cfg.num_rotated
  most = scaling.original_max_position_embeddings
  length = jnp.maximum(positions + 1, most)
  growth = scaling.factor * length / most - (scaling.factor - 1)
  theta = cfg.rope_theta * growth ** (width / (width - 2))
  exponents = jnp.arange(0, width, 2, dtype=jnp.float32) / width
  return theta ** -layers.along_last(exponents, positions)


def rotate(
  x: arrays.Array, cos: arrays.Array, sin: arrays.Array
) -> arrays.Array:
  """Rotates the pairs (x_i, x_{i+H/2}) of x [..., H]; float32 inside.

  Args:
    x: [B, T, heads, H].
    cos: float32, broadcastable to [B, T, heads, H/2].
    sin: like `cos`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def rotate_leading(
  x: arrays.Array, cos: arrays.Array, sin: arrays.Array, count: int
) -> arrays.Array:
  """`rotate` of the first `count` dims; the others stay."""
  if count == x.shape[-1]:
    return rotate(x, cos, sin)
  turned = rotate(x[..., :count], cos, sin)
  return jnp.concatenate([turned, x[..., count:]], axis=-1)
