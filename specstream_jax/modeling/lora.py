# SPDX-License-Identifier: Apache-2.0
"""Folding LoRA into the base weights: W + scale * A B."""

from typing import Any

import numpy as np

from specstream_jax import config, typing


def merge(
  base: typing.FlatParams,
  adapter: typing.FlatParams,
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
  merged, rest = dict(base), {}
  for path, leaf in adapter.items():
    if path.endswith('/lora_a'):
      stem = path.removesuffix('/lora_a')
      kernel = base[f'{stem}/kernel']
      delta = np.asarray(leaf, np.float32) @ np.asarray(
        adapter[f'{stem}/lora_b'], np.float32
      )
      wide = np.asarray(kernel, np.float32) + cfg.scale * delta
      merged[f'{stem}/kernel'] = wide.astype(kernel.dtype)
    elif not path.endswith('/lora_b'):
      rest[path] = leaf
  return merged, rest
