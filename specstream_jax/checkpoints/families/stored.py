# SPDX-License-Identifier: Apache-2.0
"""Our weights and the tensors of a checkpoint, in both directions.

Several of our weights may lie in one stored tensor (a fused projection), and
kernels lie there as [out, in] or [in, out].

Axis letters: N heads, H head dim, D model.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from specstream_jax import config
from specstream_jax.checkpoints import weights

# How kernels are stored: what they are concatenated from, along which axis.
LAYOUTS = ('out_in', 'in_out', 'interleaved')


@dataclasses.dataclass(frozen=True)
class Module:
  """A module of a checkpoint and ours that it holds.

  Attributes:
    name: its name; within a layer, without the layer's prefix.
    ours: stems of our paths, in the order in which they are stored.
    layout: of its kernel: `out_in` [out, in], one after the other along out;
      `in_out` [in, out], along out as well; `interleaved` as `out_in`, but the
      parts of each head stand together.
  """

  name: str
  ours: tuple[str, ...]
  layout: str = 'out_in'


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor of a checkpoint.

  Attributes:
    name: its full name.
    paths: our flat paths, in the order in which they are stored.
    shapes: our shapes, in the same order.
    layout: see `Module`; of a vector or an embedding the parts lie along the
      first axis.
    num_heads: N, for `interleaved`.
  """

  name: str
  paths: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  layout: str
  num_heads: int = 1

  @property
  def module(self) -> str:
    """The full name of the module that owns it."""
    return self.name.rpartition('.')[0]

  @property
  def is_kernel(self) -> bool:
    return self.paths[0].endswith('kernel')

  @property
  def shape(self) -> tuple[int, ...]:
    """As stored."""
    widths = sum(shape[-1 if self.is_kernel else 0] for shape in self.shapes)
    if not self.is_kernel:
      return (widths, *self.shapes[0][1:])
    in_features = self.shapes[0][0]
    is_in_out = self.layout == 'in_out'
    return (in_features, widths) if is_in_out else (widths, in_features)

  def split(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Our weights by path, kernels [in, out], from the stored tensor."""
    rows = tensor
    if self.is_kernel and self.layout == 'in_out':
      rows = tensor.T
    if self.layout == 'interleaved' and len(self.paths) > 1:
      rows = rows.reshape(self.num_heads, len(self.paths), -1, *rows.shape[1:])
      rows = rows.swapaxes(0, 1).reshape(tensor.shape)
    found, first = {}, 0
    for path, shape in zip(self.paths, self.shapes, strict=True):
      last = first + shape[-1 if self.is_kernel else 0]
      part = rows[first:last]
      found[path] = part.T if self.is_kernel else part
      first = last
    return found

  def join(self, flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """The stored tensor from our weights: undoes `split`."""
    parts = [np.asarray(flat[path]) for path in self.paths]
    if self.is_kernel:
      parts = [part.T for part in parts]
    if self.layout == 'interleaved' and len(parts) > 1:
      rest = parts[0].shape[1:]
      parts = [part.reshape(self.num_heads, 1, -1, *rest) for part in parts]
      rows = np.concatenate(parts, axis=1).reshape(-1, *rest)
    else:
      rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    is_in_out = self.is_kernel and self.layout == 'in_out'
    return rows.T if is_in_out else rows

  def split_lora(
    self, low: np.ndarray, high: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Our `lora_a` [in, R] and `lora_b` [R, out] by path.

    Args:
      low: [R, in] of the stored module, as PEFT keeps it.
      high: [out, R], rows in the order of the stored module.
    """
    found = {}
    for path, part in self._of_rank(len(low)).split(high).items():
      stem = path.removesuffix('kernel')
      found |= {f'{stem}lora_a': low.T, f'{stem}lora_b': part}
    return found

  def join_lora(
    self, flat: Mapping[str, np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """(low [R, in], high [out, R]) of the stored module from our weights.

    Parts of a fused module keep their own A, so that R is the sum of theirs; a
    part without LoRA adds none.

    Args:
      flat: `lora_a` and `lora_b` by path.
    """
    stems = [path.removesuffix('kernel') for path in self.paths]
    ranks = [len(flat.get(f'{stem}lora_b', ())) for stem in stems]
    lows = [flat[f'{stem}lora_a'] for stem, r in zip(stems, ranks) if r]
    highs, first = {}, 0
    for path, stem, shape, rank in zip(
      self.paths, stems, self.shapes, ranks, strict=True
    ):
      wide = np.zeros((sum(ranks), shape[1]), lows[0].dtype)
      if rank:
        wide[first : first + rank] = flat[f'{stem}lora_b']
      highs[path], first = wide, first + rank
    low = np.concatenate(lows, axis=1).T
    return low, self._of_rank(sum(ranks)).join(highs)

  def _of_rank(self, rank: int) -> 'Stored':
    """The tensor with `rank` for input, as [out, R] whatever its layout."""
    layout = 'out_in' if self.layout == 'in_out' else self.layout
    shapes = tuple((rank, shape[1]) for shape in self.shapes)
    return dataclasses.replace(self, shapes=shapes, layout=layout)


def tensors(
  cfg: config.ModelConfig,
  top: Sequence[Module],
  layer: Sequence[Module],
  prefix: str,
) -> dict[str, Stored]:
  """Every tensor of a checkpoint by name.

  Args:
    cfg: says which of our weights there are.
    top: modules outside the layers.
    layer: modules of a layer.
    prefix: of the layers' names, 'model.layers'.

  Raises:
    ValueError: the config has weights that the modules do not hold.
  """
  shapes = weights.shapes(cfg)
  found = list(_of_modules(cfg, shapes, top, '', ''))
  for i in range(cfg.num_layers):
    found += _of_modules(cfg, shapes, layer, f'layers/{i}/', f'{prefix}.{i}.')
  placed = {path for tensor in found for path in tensor.paths}
  absent = sorted(shapes.keys() - placed)
  if absent:
    raise ValueError(
      f'checkpoints of family {cfg.family!r} have no place for {absent[0]!r} '
      f'({len(absent)} such weights); use the family that the model is of'
    )
  return {tensor.name: tensor for tensor in found}


def _of_modules(cfg, shapes, modules, our_prefix, their_prefix):
  """The tensors of modules of which there are weights."""
  kinds = (
    ('kernel', 'weight'),
    ('scale', 'weight'),
    ('embedding', 'weight'),
    ('bias', 'bias'),
  )
  for module in modules:
    for ours, theirs in kinds:
      paths = tuple(f'{our_prefix}{stem}/{ours}' for stem in module.ours)
      if all(path in shapes for path in paths):
        yield Stored(
          f'{their_prefix}{module.name}.{theirs}',
          paths,
          tuple(shapes[path] for path in paths),
          module.layout,
          cfg.num_heads,
        )
