# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values multiplied as one kernel.

A CPU's compiler multiplies a small kernel with one row on one core, and larger
ones on all of them (docs/LOG.md). So for decoding the three lie one after the
other along the output, as do their biases and scales. Nothing else changes: each
output is the same sum of the same products. LoRA that is not folded in stays with
its part. Gate and up are large enough; as one kernel they gave
nothing more.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.modeling import layers

# Of kernels, as `layers.LAYOUTS`: these three as one, and all [out, in].
LAYOUT = 'fused'
_WHOLE = 'attention/query_key_value/'
_PARTS = ('attention/query/', 'attention/key/', 'attention/value/')
_LEAVES = ('kernel', 'bias', 'kernel_scale')


def of_kernels(layout: str) -> str:
  """How each kernel lies, of `layers.LAYOUTS`."""
  return 'out_in' if layout == LAYOUT else layout


def part(
  lora: config.LoraConfig | None, name: str, shape: tuple[int, int]
) -> layers.Lora:
  """What is left of a map [in, out] whose kernel is in another."""
  adapted = lora if lora and name in lora.modules else None
  return layers.Lora(*shape, adapted)


class Fused(Mapping[str, Any]):
  """A view of flat base weights, kernels [in, out], fused as they are asked for.

  Attributes:
    shapes: what has a shape and a dtype, by path, known without reading.
  """

  def __init__(self, base: Mapping[str, Any]):
    """Wraps weights by flat path."""
    self._base = base
    self._parts: dict[str, list[str]] = {}
    self.shapes = dict(getattr(base, 'shapes', base))
    for path in list(self.shapes):
      stem, found, leaf = path.rpartition(_PARTS[0])
      if found and leaf in _LEAVES:
        parts = [f'{stem}{part}{leaf}' for part in _PARTS]
        self._fuse(f'{stem}{_WHOLE}{leaf}', parts)
    self.shapes = dict(sorted(self.shapes.items()))

  def _fuse(self, path, parts):
    shapes = [self.shapes.pop(one) for one in parts]
    shape = (*shapes[0].shape[:-1], sum(one.shape[-1] for one in shapes))
    self._parts[path] = parts
    self.shapes[path] = jax.ShapeDtypeStruct(shape, shapes[0].dtype)

  def __getitem__(self, path: str) -> Any:
    if path not in self._parts:
      return self._base[path]
    parts = [np.asarray(self._base[one]) for one in self._parts[path]]
    return np.concatenate(parts, axis=-1)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def split(flat: arrays.FlatParams, cfg: config.ModelConfig) -> dict[str, Any]:
  """Flat weights, kernels [out, in], with the parts of what is fused apart."""
  key = cfg.num_kv_heads * cfg.head_dim
  sizes = cfg.num_heads * cfg.head_dim, key, key
  made = dict(flat)
  for path in flat:
    stem, found, leaf = path.rpartition(_WHOLE)
    if not found:
      continue
    whole, start = made.pop(path), 0
    for part, size in zip(_PARTS, sizes, strict=True):
      made[f'{stem}{part}{leaf}'] = whole[start : start + size]
      start += size
  return dict(sorted(made.items()))
