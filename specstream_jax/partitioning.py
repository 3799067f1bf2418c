# SPDX-License-Identifier: Apache-2.0
"""Sharding as data: parameter paths -> logical axes -> mesh axes.

Modules carry no sharding metadata. `LOGICAL_AXES` names the axes of every
parameter (t5x names), `AxisRules` maps those names to the axes of a mesh.
"""

from collections.abc import Sequence
import dataclasses
import math
import re

import gin
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from specstream_jax import typing

MESH_AXES = ('data', 'fsdp', 'tensor')

# First match wins; the axes of the last entry of a path.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'embed/embedding', ('vocab', 'embed')),
  (r'lm_head/kernel', ('embed', 'vocab')),
  (r'attention/query/kernel', ('embed', 'heads')),
  (r'attention/(key|value)/kernel', ('embed', 'kv_heads')),
  (r'attention/out/kernel', ('heads', 'embed')),
  (r'mlp/(gate|up)/kernel', ('embed', 'mlp')),
  (r'mlp/down/kernel', ('mlp', 'embed')),
  (r'attention/query/lora_a', ('embed', 'lora')),
  (r'attention/query/lora_b', ('lora', 'heads')),
  (r'attention/(key|value)/lora_a', ('embed', 'lora')),
  (r'attention/(key|value)/lora_b', ('lora', 'kv_heads')),
  (r'attention/out/lora_a', ('heads', 'lora')),
  (r'attention/out/lora_b', ('lora', 'embed')),
  (r'mlp/(gate|up)/lora_a', ('embed', 'lora')),
  (r'mlp/(gate|up)/lora_b', ('lora', 'mlp')),
  (r'mlp/down/lora_a', ('mlp', 'lora')),
  (r'mlp/down/lora_b', ('lora', 'embed')),
  (r'norm/scale', ('norm',)),
  (r'streams/embedding', ('stream', 'embed')),
  (r'(insertion|pruning|coupling)/down', ('embed', 'lora')),
  (r'(insertion|pruning|coupling)/up', ('lora', 'embed')),
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Mesh axes of each logical axis; an unnamed logical axis is replicated."""

  rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('embed', 'fsdp'),
    ('heads', 'tensor'),
    ('kv_heads', 'tensor'),
    ('mlp', 'tensor'),
    ('lora', None),
    ('norm', None),
    ('stream', None),
    ('length', None),
  )

  def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
    """PartitionSpec for logical axes.

    Raises:
      ValueError: an axis has no rule.
    """
    table = dict(self.rules)
    unknown = sorted({a for a in axes if a is not None} - set(table))
    if unknown:
      raise ValueError(
        f'no axis rule for {unknown}; rules exist for {sorted(table)}'
      )
    return PartitionSpec(*(None if a is None else table[a] for a in axes))


def logical_axes(path: str) -> tuple[str | None, ...]:
  """Logical axis names of the parameter at `path` ('layers/0/mlp/up/kernel').

  Raises:
    ValueError: no rule matches the path.
  """
  for pattern, axes in LOGICAL_AXES:
    if re.search(pattern + '$', path):
      return axes
  raise ValueError(
    f'no logical axes for parameter {path!r}; add a rule to '
    'partitioning.LOGICAL_AXES'
  )


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices; one size may be -1.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes, num_devices = [data, fsdp, tensor], jax.device_count()
  if sizes.count(-1) == 1:
    known = -math.prod(sizes)
    sizes[sizes.index(-1)] = num_devices // known if known > 0 else 0
  if math.prod(sizes) != num_devices or min(sizes) < 1:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} does not divide the '
      f'{num_devices} devices; the sizes must multiply to {num_devices} '
      '(one may be -1)'
    )
  return jax.make_mesh(
    tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )


def shardings(
  flat: typing.FlatParams, mesh: Mesh, rules: AxisRules = AxisRules()
) -> dict[str, NamedSharding]:
  """NamedSharding of each parameter in a flat dict (path -> array)."""
  return {
    path: NamedSharding(mesh, rules.spec(logical_axes(path))) for path in flat
  }
