# SPDX-License-Identifier: Apache-2.0
"""Shapes that an adapter's weights have on a base model.

Axis letters: D model width, R rank.
"""

from collections.abc import Iterator
import dataclasses

from specstream_jax import config
from specstream_jax.checkpoints import weights
from specstream_jax.config import model as config_model
from specstream_jax.modeling import build, params


def of_streams(
  model: config.ModelConfig, stream: config.StreamConfig
) -> dict[str, tuple[int, ...]]:
  """Shapes by path of what streams add beside LoRA, whatever the layers."""
  one = config_model.lowest_layers(model, 1)
  stream = dataclasses.replace(stream, num_msa_layers=1)
  flat = params.flatten(build.build(one, stream).adapter)
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def of_lora(
  model: config.ModelConfig, lora: config.LoraConfig, num_layers: int
) -> Iterator[tuple[str, tuple[int, int]]]:
  """(path, shape) of every A [in, R] and B [R, out] of the top layers."""
  first = model.num_layers - num_layers
  for path, shape in weights.shapes(model).items():
    stem, _, kind = path.rpartition('/')
    if kind != 'kernel' or not path.startswith('layers/') or not lora.rank:
      continue
    _, layer, _, module = stem.split('/')
    if int(layer) >= first and module in lora.modules:
      yield f'{stem}/lora_a', (shape[0], lora.rank)
      yield f'{stem}/lora_b', (lora.rank, shape[1])
