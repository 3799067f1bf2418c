# SPDX-License-Identifier: Apache-2.0
"""Flat weights of layers 0, 1, 2, … as stacks [N, ...] and back.

`layers/7/mlp/up/kernel` becomes a row of `lower_layers/mlp/up/kernel`, or of
`msa_layers/mlp/up/kernel` from the first MSA layer on. Checkpoints and
adapters on disk hold layers; stacks exist in the memory of a training run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays

GROUPS = ('lower_layers', 'msa_layers')


def sources(paths: Sequence[str], first_msa: int) -> dict[str, list[str]]:
  """Path with stacks -> paths of what it stacks, lowest layer first."""
  found: dict[str, list[tuple[int, str]]] = {}
  for path in paths:
    name, index = path, 0
    if path.startswith('layers/'):
      _, number, rest = path.split('/', 2)
      index = int(number)
      name = f'{GROUPS[index >= first_msa]}/{rest}'
    found.setdefault(name, []).append((index, path))
  return {
    name: [path for _, path in sorted(found[name])] for name in sorted(found)
  }


def is_stack(path: str) -> bool:
  """Whether a path with stacks names one."""
  return path.startswith(tuple(f'{group}/' for group in GROUPS))


def stack(flat: arrays.FlatParams, first_msa: int) -> dict[str, Any]:
  """Layers of a flat dict of arrays as stacks; the rest as it is."""
  return {
    name: jnp.stack([flat[path] for path in paths])
    if is_stack(name)
    else flat[paths[0]]
    for name, paths in sources(list(flat), first_msa).items()
  }


def stack_shapes(
  shapes: Mapping[str, Any], first_msa: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """As `stack`, of shapes."""
  return {
    name: jax.ShapeDtypeStruct(
      (len(paths),) * is_stack(name) + tuple(shapes[paths[0]].shape),
      shapes[paths[0]].dtype,
    )
    for name, paths in sources(list(shapes), first_msa).items()
  }


class Stacked(Mapping[str, Any]):
  """A view of flat weights as stacks, each read slice by slice.

  Attributes:
    shapes: ShapeDtypeStruct by path, known without reading.
  """

  def __init__(self, flat: arrays.FlatParams, first_msa: int):
    self._flat = flat
    self.shapes = stack_shapes(getattr(flat, 'shapes', flat), first_msa)
    self._sources = sources(list(getattr(flat, 'shapes', flat)), first_msa)

  def __getitem__(self, path: str) -> Any:
    paths = self._sources[path]
    if not is_stack(path):
      return self._flat[paths[0]]
    return _Stack(self._flat, paths, self.shapes[path])

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


class _Stack:
  """An array [N, ...] of N weights that is never whole in memory."""

  def __init__(self, flat, paths, shape):
    self._flat, self._paths = flat, paths
    self.shape, self.dtype = shape.shape, shape.dtype

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    return np.stack(
      [
        np.asarray(self._flat[path])[index[1:]]
        for path in self._paths[index[0]]
      ]
    )
