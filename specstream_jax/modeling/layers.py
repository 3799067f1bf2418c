# SPDX-License-Identifier: Apache-2.0
"""Linear maps with LoRA, RMSNorm, SwiGLU and RoPE.

Axis letters: B rows, T positions, D model width, F MLP width, H head dim.
RMSNorm, RoPE angles and softmax run in float32 whatever the weights' dtype.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import config, typing
from specstream_jax.modeling import params

LAYOUTS = ('in_out', 'out_in')


class Linear(nnx.Module):
  """y = x W, plus a low-rank delta on the tokens from `lora_start` on.

  Fine-tuned mode adapts every token (`lora_start` 0); lossless mode only the
  stream tokens, which come after the main tokens along T.

  The kernel lies as [in, out], or as [out, in] and then goes in as the left
  operand: on CPU the product of a few rows then costs up to a third less
  (docs/LOG.md), so that decoding uses it and training, with many rows, does
  not.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    dtype: str,
    lora: config.LoraConfig | None = None,
    layout: str = 'in_out',
  ):
    shape = (in_features, out_features)
    self.is_transposed = layout == 'out_in'
    if self.is_transposed:
      shape = shape[::-1]
    self.kernel = params.BaseParam(jnp.zeros(shape, dtype))
    self.lora_scale = lora.scale if lora else 0.0
    if self.lora_scale:
      self.lora_a = params.AdapterParam(jnp.zeros((in_features, lora.rank)))
      self.lora_b = params.AdapterParam(jnp.zeros((lora.rank, out_features)))

  def __call__(self, x: typing.Array, lora_start: int = 0) -> typing.Array:
    """Maps x [B, T, in] to [B, T, out]."""
    kernel = self.kernel[...]
    y = project(x, kernel) if self.is_transposed else x @ kernel
    if not self.lora_scale or lora_start >= x.shape[1]:
      return y
    low = x[:, lora_start:] @ self.lora_a[...].astype(x.dtype)
    delta = self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
    if lora_start:
      delta = jnp.pad(delta, ((0, 0), (lora_start, 0), (0, 0)))
    return y + delta


def project(
  x: typing.Array, kernel: typing.Array, dtype: jnp.dtype | None = None
) -> typing.Array:
  """x [..., in] times a kernel [out, in], which is the left operand.

  Args:
    x: rows.
    kernel: [out, in].
    dtype: of accumulation and result; None is that of x.
  """
  contract = (((1,), (x.ndim - 1,)), ((), ()))
  product = lambda kernel, x: jax.lax.dot_general(
    kernel, x, contract, preferred_element_type=dtype
  )
  if x.ndim > 1 and x.size == x.shape[-1] and x.dtype == jnp.bfloat16:
    y = jax.lax.platform_dependent(
      kernel, x, cpu=_two_rows(product), default=product
    )
  else:
    y = product(kernel, x)
  return jnp.moveaxis(y, 0, -1)


def _two_rows(product):
  """`product` of one row and a row of zeros.

  XLA's bfloat16 product with a single row is several times slower on a CPU
  than with two, which go to a library.
  """

  def of_two(kernel, x):
    pad = [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)]
    return product(kernel, jnp.pad(x, pad))[..., :1]

  return of_two


def along_last(vector: typing.Array, like: typing.Array) -> typing.Array:
  """vector [D] as [1, …, D], to go with `like` [..., D]."""
  return vector.reshape(*[1] * (like.ndim - 1), -1)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale, in float32, returned in x's dtype."""

  def __init__(self, features: int, *, epsilon: float, dtype: str):
    self.scale = params.BaseParam(jnp.ones((features,), dtype))
    self.epsilon = epsilon

  def __call__(self, x: typing.Array) -> typing.Array:
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    scale = along_last(self.scale[...].astype(jnp.float32), y)
    return (y * scale).astype(x.dtype)


class SwiGLU(nnx.Module):
  """down(silu(gate(x)) * up(x))."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    lora: config.LoraConfig | None,
    layout: str = 'in_out',
  ):
    def linear(name: str, shape: tuple[int, int]) -> Linear:
      adapted = lora if lora and name in lora.modules else None
      return Linear(*shape, dtype=cfg.dtype, lora=adapted, layout=layout)

    wide = (cfg.hidden_size, cfg.intermediate_size)
    self.gate = linear('gate', wide)
    self.up = linear('up', wide)
    self.down = linear('down', wide[::-1])

  def __call__(self, x: typing.Array, lora_start: int = 0) -> typing.Array:
    gate = jax.nn.silu(self.gate(x, lora_start))
    return self.down(gate * self.up(x, lora_start), lora_start)


def rope_frequencies(cfg: config.ModelConfig) -> typing.Array:
  """Angular frequencies [H/2] in float32, after the checkpoint's scaling.

  Source: RoFormer (arXiv 2104.09864); `linear` and `llama3` as Hugging Face
  transformers defines them.
  """
  exponents = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
  frequencies = cfg.rope_theta**-exponents
  scaling = cfg.rope_scaling
  if scaling.kind == 'linear':
    return frequencies / scaling.factor
  if scaling.kind == 'llama3':
    return _llama3_frequencies(frequencies, scaling)
  return frequencies


def _llama3_frequencies(
  frequencies: typing.Array, scaling: config.RopeScaling
) -> typing.Array:
  """Divides long wavelengths by `factor`, keeps short ones, blends between."""
  wavelengths = 2 * math.pi / frequencies
  context = scaling.original_max_position_embeddings
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  blend = jnp.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
  return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rope_tables(
  positions: typing.Array, cfg: config.ModelConfig
) -> tuple[typing.Array, typing.Array]:
  """cos and sin [B, T, H/2] float32 for positions [B, T]."""
  positions = positions[..., None].astype(jnp.float32)
  angles = positions * along_last(rope_frequencies(cfg), positions)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: typing.Array, cos: typing.Array, sin: typing.Array
) -> typing.Array:
  """Rotates the pairs (x_i, x_{i+H/2}) of x [..., H]; float32 inside.

  Args:
    x: [B, T, heads, H].
    cos: float32, broadcastable to [B, T, heads, H/2].
    sin: like `cos`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
