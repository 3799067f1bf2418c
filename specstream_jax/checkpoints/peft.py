# SPDX-License-Identifier: Apache-2.0
"""LoRA that the PEFT library saved, as LoRA of ours.

PEFT may give every module a rank and a scale of its own, and leave modules of
some layers out. Here one rank and one scale hold for all: narrower matrices are
filled up with zeros, a scale that differs is multiplied into B, and modules
without LoRA get zeros, which add nothing to the weight.
Axis letters: D model width, R rank.
"""

from collections.abc import Iterator, Mapping
import os
from typing import Any, NamedTuple

import numpy as np

from specstream_jax import config
from specstream_jax.checkpoints import (
  adapter_shapes,
  families,
  peft_config,
  tensor_files,
  weights,
)

WEIGHTS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
PREFIX = 'base_model.model.'
_FACTORS = ('lora_A', 'lora_B')
_FIX = 'merge it into the model with peft, and use that folder as --model'


class Lora(NamedTuple):
  """A PEFT LoRA on a base.

  Attributes:
    flat: A [in, R] and B [R, out] by path, of every layer.
    config: rank, alpha and modules.
    peft: what its own file says.
  """

  flat: dict[str, np.ndarray]
  config: config.LoraConfig
  peft: peft_config.PeftConfig


def read(
  folder: str | os.PathLike,
  model: config.ModelConfig,
  base: Mapping[str, np.ndarray],
) -> Lora:
  """Reads a PEFT folder for a base.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    model: sizes of the base.
    base: flat weights of it; read only where the folder holds copies of some.

  Raises:
    ValueError: it is no plain LoRA, or none of this base; everything is listed.
  """
  folder = os.fspath(folder)
  cfg = peft_config.read(folder)
  tensors = {
    name.removeprefix(PREFIX): leaf
    for name, leaf in tensor_files.read(_weights_file(folder))[0].items()
  }
  modules = linear_modules(model)
  source = f'PEFT adapter {folder!r}'
  weights.refuse(source, _problems(cfg, tensors, modules, model, base), _FIX)
  on = [name for name in modules if cfg.is_on(name)]
  scales = {cfg.scale_of(name) for name in on}
  scale = scales.pop() if len(scales) == 1 else 1.0
  rank = max(cfg.rank_of(name) for name in on)
  kinds = {p.split('/')[3] for name in on for p in modules[name].paths}
  lora = config.LoraConfig(
    rank=rank,
    alpha=scale * rank,
    modules=tuple(m for m in config.LORA_MODULES if m in kinds),
  )
  flat = {
    path: np.zeros(shape, np.float32)
    for path, shape in adapter_shapes.of_lora(model, lora, model.num_layers)
  }
  for name in on:
    low, high = (
      np.asarray(tensors[f'{name}.{factor}.weight'], np.float32)
      for factor in _FACTORS
    )
    with np.errstate(over='ignore'):  # of a damaged file
      high = high * np.float32(cfg.scale_of(name) / scale)
    for path, leaf in modules[name].split_lora(low, high).items():
      flat[path][: leaf.shape[0], : leaf.shape[1]] = leaf
  return Lora(flat, lora, cfg)


def shapes(folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
  """Shape by name of every tensor in a PEFT folder."""
  opened = tensor_files.open_file(_weights_file(os.fspath(folder)))
  return {
    name: tuple(opened.get_slice(name).get_shape())
    for name in list(opened.keys())
  }


def linear_modules(model: config.ModelConfig) -> dict[str, families.Stored]:
  """The kernel by PEFT's name of every module that may have LoRA."""
  return {
    stored.module: stored
    for stored in families.by_name(model.family).tensors(model).values()
    if stored.is_kernel and stored.paths[0].startswith('layers/')
  }


def _weights_file(folder: str) -> str:
  """Path of the weights.

  Raises:
    ValueError: they are not there, or pickled.
  """
  path = os.path.join(folder, WEIGHTS)
  pickle = os.path.join(folder, _PICKLE)
  if os.path.isfile(path):
    return path
  if os.path.isfile(pickle):
    raise ValueError(
      f'{pickle!r} is a pickle, which may run any program when it is read; '
      'convert it where you trust it: python -c "import torch, '
      f"safetensors.torch as s; s.save_file(torch.load('{pickle}', "
      f"weights_only=True), '{path}')\""
    )
  raise ValueError(
    f'PEFT adapter {folder!r} has no {WEIGHTS}; save or download it again'
  )


def _problems(cfg, tensors, modules, model, base) -> Iterator[str]:
  """What of a folder does not fit its config or the base."""
  expected = {}
  for name, stored in modules.items():
    if cfg.is_on(name):
      rank, (fan_in, _) = cfg.rank_of(name), stored.shapes[0]
      fan_out = sum(shape[1] for shape in stored.shapes)
      expected[f'{name}.lora_A.weight'] = (rank, fan_in)
      expected[f'{name}.lora_B.weight'] = (fan_out, rank)
  ends = sorted(set(map(_end, modules)))
  if not expected:
    yield (
      f'target_modules {cfg.targets!r} names no module of the model; there are '
      f'{", ".join(ends)} (tensors of others: {len(tensors):,})'
    )
    return
  family = families.by_name(model.family)
  held = family.tensors(model)
  if model.tie_word_embeddings:
    head, embedding = family.tied_names
    held[head] = held[embedding]
  copies = [name for name in tensors if name in held]
  for name in copies:
    if not _is_copy(tensors[name], base, held[name]):
      yield (
        f'{name} was trained, too (modules_to_save is '
        f'{list(cfg.saved_modules)}), and is not that of the base'
      )
  found = {
    name: tuple(leaf.shape)
    for name, leaf in tensors.items()
    if name not in copies
  }
  others = {m for m in map(_module, found) if m and _end(m) not in ends}
  for name in sorted(set(map(_end, others))):
    yield f'LoRA on {name} is not read; on these it is: {", ".join(ends)}'
  rest = {
    name: shape
    for name, shape in found.items()
    if not any(name.startswith(f'{module}.') for module in others)
  }
  yield from weights.problems(expected, rest)


def _module(tensor: str) -> str:
  """The module that a LoRA tensor belongs to; '' of another tensor."""
  module, mark, _ = tensor.partition('.lora_')
  return module if mark else ''


def _end(module: str) -> str:
  return module.rpartition('.')[2]


def _is_copy(leaf: np.ndarray, base: Mapping[str, Any], stored) -> bool:
  """Whether a saved module is the base's own weight."""
  own = stored.join(base)
  return leaf.shape == own.shape and np.array_equal(leaf.astype(own.dtype), own)
