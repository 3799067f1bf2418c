# SPDX-License-Identifier: Apache-2.0
"""Linear maps with LoRA.

Axis letters: B rows, T positions, D features.
"""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import params

LAYOUTS = ('in_out', 'out_in')
# Rows up to which a CPU multiplies digits, see `_as_digits`.
_FEW_ROWS = 64
_LARGEST, _BASE = 127.0, 254.0


@dataclasses.dataclass(frozen=True)
class RowLora(config.LoraConfig):
  """LoRA that differs from row to row of a batch, see `adapters`.

  Its weights have an axis of rows in front, and their scale is in B. Of each
  row's ranks some act on all tokens, and the others on stream tokens alone.
  """

  @property
  def scale(self) -> float:
    return 1.0 if self.rank else 0.0


class Lora(nnx.Module):
  """A low-rank delta on the tokens from `lora_start` on; none without LoRA."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    lora: config.LoraConfig | None = None,
  ):
    self.lora_scale = lora.scale if lora else 0.0
    self.is_by_row = isinstance(lora, RowLora)
    if lora and self.lora_scale:
      self.lora_a = params.AdapterParam(jnp.zeros((in_features, lora.rank)))
      self.lora_b = params.AdapterParam(jnp.zeros((lora.rank, out_features)))
      if self.is_by_row:
        self.lora_gate = params.AdapterParam(jnp.zeros((lora.rank,)))

  def add(
    self, y: arrays.Array, x: arrays.Array, lora_start: int
  ) -> arrays.Array:
    """y [B, T, out] with the delta of x [B, T, in]."""
    if self.lora_scale and self.is_by_row:
      return y + self._of_rows(x, lora_start)
    if not self.lora_scale or lora_start >= x.shape[1]:
      return y
    low = x[:, lora_start:] @ self.lora_a[...].astype(x.dtype)
    delta = self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
    if lora_start:
      delta = jnp.pad(delta, ((0, 0), (lora_start, 0), (0, 0)))
    return y + delta

  def _of_rows(self, x, num_main):
    """Each row's own delta [B, T, out]; ranks that are shut spare main tokens."""
    low = x @ self.lora_a[...].astype(x.dtype)  # [B, T, R]
    if num_main:
      is_main = (jnp.arange(x.shape[1]) < num_main)[None, :, None]
      is_shut = self.lora_gate[...][:, None] == 0.0
      low = jnp.where(is_main & is_shut, 0.0, low)
    return low @ self.lora_b[...].astype(x.dtype)


class Linear(Lora):
  """y = x W (+ b), plus a low-rank delta on the tokens from `lora_start` on.

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
    has_bias: bool = False,
    weights_dtype: str = '',
  ):
    super().__init__(in_features, out_features, lora)
    shape = (in_features, out_features)
    self.layout, self.is_transposed = layout, layout == 'out_in'
    if self.is_transposed:
      shape = shape[::-1]
    self.kernel = params.BaseParam(jnp.zeros(shape, weights_dtype or dtype))
    self.is_scaled = bool(weights_dtype)  # see `int8`
    if self.is_scaled:
      self.kernel_scale = params.BaseParam(jnp.zeros((out_features,)))
    self.has_bias = has_bias
    if has_bias:
      self.bias = params.BaseParam(jnp.zeros((out_features,), dtype))

  def __call__(self, x: arrays.Array, lora_start: int = 0) -> arrays.Array:
    """Maps x [B, T, in] to [B, T, out]."""
    y = self._product(x)
    if self.has_bias:
      y += along_last(self.bias[...], y)
    return self.add(y, x, lora_start)

  def _product(self, x):
    kernel = self.kernel[...]
    if self.is_scaled:
      scale = self.kernel_scale[...]
      return scaled(x, kernel, scale, self.layout, x.dtype).astype(x.dtype)
    return project(x, kernel) if self.is_transposed else x @ kernel


def project(
  x: arrays.Array, kernel: arrays.Array, dtype: Any = None
) -> arrays.Array:
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


def scaled(
  x: arrays.Array,
  kernel: arrays.Array,
  scale: arrays.Array,
  layout: str,
  dtype: Any = jnp.float32,
) -> arrays.Array:
  """x [..., in] times an int8 kernel, then its scales, float32 [..., out].

  Args:
    x: rows.
    kernel: [in, out], or [out, in] if `layout` says so.
    scale: float32 [out], see `int8`.
    layout: of `LAYOUTS`.
    dtype: of the product before its scales; where it is summed over devices,
      this is what they send.
  """
  product = functools.partial(_as_numbers, layout=layout, dtype=dtype)
  if x.size <= _FEW_ROWS * x.shape[-1]:
    y = jax.lax.platform_dependent(
      x,
      kernel,
      cpu=functools.partial(_as_digits, layout=layout),
      default=lambda x, kernel: product(x, kernel).astype(jnp.float32),
    )
  else:
    y = product(x, kernel).astype(jnp.float32)
  return y * along_last(scale, y)


def _as_numbers(x, kernel, layout, dtype):
  """x times an int8 kernel, taken as numbers of x's type."""
  return _product(x, kernel.astype(x.dtype), layout, dtype)


def _product(x, kernel, layout, dtype):
  if layout == 'out_in':
    return project(x, kernel, dtype)
  return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _as_digits(x, kernel, layout):
  """x times an int8 kernel by products of int8 with int8, float32.

  A CPU's compiler would write the kernel out as float32, but multiplies int8
  with int8 as they are. So each row of x becomes digits to the base 254, as
  many as its type is exact to: x = m (d0 + d1 / 254 + d2 / 254²) / 127 with m
  the largest of the row. Products and sums of digits are exact.
  """
  count = 3 if x.dtype == jnp.float32 else 2
  wide = x.astype(jnp.float32)
  largest = jnp.abs(wide).max(-1, keepdims=True)
  rest = wide * (_LARGEST / jnp.where(largest == 0.0, 1.0, largest))
  digits = []
  for _ in range(count):
    digits.append(jnp.round(rest))
    rest = (rest - digits[-1]) * _BASE
  stacked = jnp.stack(digits).clip(-_LARGEST, _LARGEST).astype(jnp.int8)
  sums = _product(stacked, kernel, layout, jnp.int32).astype(jnp.float32)
  y = sums[-1]
  for i in reversed(range(count - 1)):
    y = sums[i] + y / _BASE
  return y * (largest / _LARGEST)


def _two_rows(product):
  """`product` of one row and a row of zeros.

  XLA's bfloat16 product with a single row is several times slower on a CPU
  than with two, which go to a library.
  """

  def of_two(kernel, x):
    pad = [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)]
    return product(kernel, jnp.pad(x, pad))[..., :1]

  return of_two


def along_last(vector: arrays.Array, like: arrays.Array) -> arrays.Array:
  """vector [D] as [1, …, D], to go with `like` [..., D]."""
  return vector.reshape(*[1] * (like.ndim - 1), -1)


def softcap(logits: arrays.Array, cap: float) -> arrays.Array:
  """Logits kept between -cap and cap; as they are if it is 0."""
  return cap * jnp.tanh(logits / cap) if cap else logits
