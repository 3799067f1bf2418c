# SPDX-License-Identifier: Apache-2.0
"""Folding LoRA into the base weights: W + scale * A B."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from specstream_jax import arrays, config


def merge(
  base: arrays.FlatParams,
  adapter: arrays.FlatParams,
  cfg: config.LoraConfig,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Base weights with LoRA folded in, and the adapter without LoRA.

  The product is taken in float32 and rounded once to the base's dtype.

  Args:
    base: flat base weights.
    adapter: flat adapter weights; may hold no LoRA at all.
    cfg: gives the scale alpha / rank.

  Returns:
    (merged flat base, flat adapter with streams and pruning only).
  """
  merged = {
    path: merge_leaf(path, leaf, adapter, cfg) for path, leaf in base.items()
  }
  return merged, without(adapter)


def merge_leaf(
  path: str, leaf: Any, adapter: arrays.FlatParams, cfg: config.LoraConfig
) -> Any:
  """The base weight at `path` with its LoRA folded in, if it has any."""
  stem = path.removesuffix('/kernel')
  if not path.endswith('/kernel') or f'{stem}/lora_a' not in adapter:
    return leaf
  low, high = (
    np.asarray(adapter[f'{stem}/{name}'], np.float32)
    for name in ('lora_a', 'lora_b')
  )
  wide = np.asarray(leaf, np.float32) + cfg.scale * (low @ high)
  return wide.astype(leaf.dtype)


def without(adapter: arrays.FlatParams) -> dict[str, Any]:
  """The weights of a flat adapter that are not LoRA."""
  return {
    path: leaf
    for path, leaf in adapter.items()
    if not path.endswith(('/lora_a', '/lora_b'))
  }


class Folded(Mapping[str, Any]):
  """A view of flat base weights with LoRA folded in, each when it is asked for.

  Attributes:
    shapes: what has a shape and a dtype, by path, known without reading.
  """

  def __init__(
    self,
    base: arrays.FlatParams,
    adapter: arrays.FlatParams,
    cfg: config.LoraConfig,
  ):
    self._base, self._adapter, self._cfg = base, adapter, cfg
    self.shapes = getattr(base, 'shapes', base)

  def __getitem__(self, path: str) -> Any:
    return merge_leaf(path, self._base[path], self._adapter, self._cfg)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)
