# SPDX-License-Identifier: Apache-2.0
"""Sharding as data: parameter paths -> logical axes -> mesh axes.

Modules carry no sharding metadata. `LOGICAL_AXES` names the axes of every
parameter (t5x names), `AxisRules` maps those names to the axes of a mesh, and
a `Partitioner` puts weights and batches where the two say. XLA's partitioner
(GSPMD, arXiv 2105.04663) does the rest; activations are constrained at block
boundaries only (`constrain`).
"""

from collections.abc import Callable, Mapping, Sequence
import contextvars
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

from absl import logging
import gin
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from specstream_jax import arrays, mesh as mesh_lib
from specstream_jax.config import checks

# First match wins; the axes of the last entry of a path.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'embed/embedding', ('vocab', 'embed')),
  (r'positions/embedding', (None, 'embed')),
  (r'lm_head/kernel', ('embed', 'vocab')),
  (r'embed/embedding_scale', ('vocab',)),
  (r'lm_head/(bias|kernel_scale)', ('vocab',)),
  (r'attention/query/(bias|kernel_scale)', ('heads',)),
  (r'attention/(key|value)/(bias|kernel_scale)', ('kv_heads',)),
  (r'mlp/(gate|up)/(bias|kernel_scale)', ('mlp',)),
  # Fused on one device alone, see `modeling.fused`.
  (r'query_key_value/(bias|kernel_scale)', (None,)),
  (r'query_key_value/kernel', ('embed', None)),
  (r'(attention/out|mlp/down)/(bias|kernel_scale)', ('norm',)),
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
  (r'norm/(scale|bias)', ('norm',)),
  (r'streams/embedding|masks', ('stream', 'embed')),
  (r'fuse/kernel', ('embed', None)),
  (r'(insertion|pruning|coupling)/down|coupling/state', ('embed', 'lora')),
  (r'(insertion|pruning|coupling)/up', ('lora', 'embed')),
  (r'heads/\d+/kernel', ('embed', None)),
  (r'heads/\d+/bias', ('norm',)),
  (r'heads/\d+/projection', ('vocab', 'embed')),
)


def _names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
  """The mesh axes of a rule as a tuple."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Mesh axes of each logical axis; an unnamed logical axis is replicated.

  Attributes:
    rules: (logical axis, mesh axis, or several, or None) pairs.
  """

  rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('embed', 'fsdp'),
    ('heads', 'tensor'),
    ('kv_heads', 'tensor'),
    ('mlp', 'tensor'),
    ('lora', None),
    ('norm', None),
    ('layers', None),
    ('stream', None),
    ('length', None),
    ('activation', None),
  )

  def __post_init__(self):
    checks.config_types(self)
    for name, axes in self.rules:
      wrong = [a for a in _names(axes) if a not in mesh_lib.MESH_AXES]
      if wrong:
        raise ValueError(
          f'AxisRules.rules maps {name!r} to {wrong}; a mesh has the axes '
          f'{mesh_lib.MESH_AXES}'
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
  stack = ('layers',) if re.match(r'(lower|msa)_layers/', path) else ()
  for pattern, axes in LOGICAL_AXES:
    if re.search(pattern + '$', path):
      return stack + axes
  raise ValueError(
    f'no logical axes for parameter {path!r}; add a rule to '
    'partitioning.LOGICAL_AXES'
  )


class Feed(NamedTuple):
  """Which rows of a global batch a process feeds.

  Attributes:
    blocks: ascending numbers of the blocks of rows that its devices hold.
    num_blocks: equal blocks that the batch is split into.
    num_feeds: processes with rows of their own, 1 where rows overlap.
  """

  blocks: tuple[int, ...] = (0,)
  num_blocks: int = 1
  num_feeds: int = 1


_ACTIVE: contextvars.ContextVar[Any] = contextvars.ContextVar(
  'partitioner', default=None
)


class Partitioner:
  """Places weights and batches on a mesh, and compiles for it."""

  def __init__(self, mesh: Mesh, rules: AxisRules | None = None):
    self.mesh, self.rules = mesh, rules or AxisRules()
    self.replicated = NamedSharding(mesh, PartitionSpec())

  @property
  def is_single(self) -> bool:
    """Whether there is one device, so that nothing is split."""
    return self.mesh.size == 1

  @property
  def is_one_cpu(self) -> bool:
    """Whether that device is a CPU."""
    return self.is_single and self.mesh.devices.flat[0].platform == 'cpu'

  def size(self, axis: str) -> int:
    """Ways in which a logical axis is split."""
    names = _names(dict(self.rules.rules)[axis])
    return math.prod(self.mesh.shape[name] for name in names)

  def sharding(self, *axes: str | None) -> NamedSharding:
    """Where an array with these logical axes lies."""
    return NamedSharding(self.mesh, self.rules.spec(axes))

  def rows_sharding(self, num_rows: int, *axes: str | None) -> NamedSharding:
    """Where an array [num_rows, *axes] lies: split by rows if they divide."""
    is_split = num_rows % self.size('batch') == 0
    return self.sharding('batch' if is_split else None, *axes)

  def shardings(
    self, flat: arrays.FlatParams, *, transposed: bool = False
  ) -> dict[str, NamedSharding]:
    """Where each parameter of a flat dict (path -> array) lies.

    Args:
      flat: arrays, or anything with a shape.
      transposed: kernels lie as [out, in].

    Raises:
      ValueError: a path has no logical axes, or a size is not divisible.
    """
    placed = {}
    for path, leaf in flat.items():
      axes = logical_axes(path)
      if transposed and path.endswith('kernel'):
        axes = axes[::-1]
      for size, axis in zip(leaf.shape, axes, strict=True):
        if axis is not None:
          self._check_divides(f'{path} {tuple(leaf.shape)}', size, axis)
      placed[path] = self.sharding(*axes)
    return placed

  def _check_divides(self, what, size, axis):
    ways = self.size(axis)
    if size % ways:
      raise ValueError(
        f'{what}: {axis} of size {size} is not divisible by the {ways} ways '
        f'of mesh axes {_names(dict(self.rules.rules)[axis])}; take another '
        f"mesh, or the rule ('{axis}', None), which splits it no more"
      )

  def check_fits(self, num_heads: int, num_kv_heads: int) -> None:
    """Raises ValueError if whole heads cannot be dealt to the devices."""
    for axis, count in (('heads', num_heads), ('kv_heads', num_kv_heads)):
      self._check_divides(f'a model with {count} {axis}', count, axis)

  def check_rows(self, num_rows: int) -> None:
    """Raises ValueError if a batch cannot be dealt to the devices."""
    self._check_divides(f'a batch of {num_rows} rows', num_rows, 'batch')

  def put(
    self,
    flat: Mapping[str, Any],
    *,
    transposed: bool = False,
  ) -> dict[str, jax.Array]:
    """A flat dict on the devices, one tensor in the host's memory at a time.

    Args:
      flat: arrays by path, the same in every process; a lazy mapping that
        has `shapes` is read leaf by leaf.
      transposed: lay kernels [in, out] as [out, in].
    """
    shapes, placed = getattr(flat, 'shapes', flat), {}
    for path, shape in shapes.items():
      turn = transposed and path.endswith('kernel')
      size = jax.ShapeDtypeStruct(
        shape.shape[::-1] if turn else shape.shape, shape.dtype
      )
      sharding = self.shardings({path: size}, transposed=transposed)[path]
      leaf = flat[path]
      placed[path] = put_leaf(leaf.T if turn else leaf, sharding)
    return placed

  def put_rows(self, rows: Any) -> Any:
    """An array [B, ...] split by rows if they can be, else whole everywhere."""
    if self.is_single:
      return rows
    return jax.device_put(rows, self.rows_sharding(rows.shape[0]))

  def put_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """This process's rows [B / processes, T] as global arrays [B, T]."""
    if self.is_single:
      return dict(batch)
    sharding = self.sharding('batch')
    return {
      name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
      for name, rows in batch.items()
    }

  def gather(self, tree: Any) -> Any:
    """The whole of every array, as numpy, in every process."""
    if not self.is_single:
      tree = jax.jit(lambda y: y, out_shardings=self.replicated)(tree)
    return jax.tree.map(np.asarray, tree)

  def jit(self, fun: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    """`jax.jit` whose trace sees this partitioner in `constrain`."""

    @functools.wraps(fun)
    def traced(*args, **named):
      token = _ACTIVE.set(self)
      try:
        return fun(*args, **named)
      finally:
        _ACTIVE.reset(token)

    return jax.jit(traced, **kwargs)

  def feed(self) -> Feed:
    """The rows of a batch that this process's devices hold.

    Processes whose devices hold the same rows, because a `tensor` axis runs
    across them, feed the same.
    """
    num_blocks = self.size('batch')
    where = self.sharding('batch').devices_indices_map((num_blocks,))
    held: dict[int, set[int]] = {}
    for device, index in where.items():
      held.setdefault(device.process_index, set()).add(index[0].start or 0)
    feeds = {tuple(sorted(blocks)) for blocks in held.values()}
    is_split = sum(map(len, feeds)) == num_blocks
    own = tuple(sorted(held[jax.process_index()]))
    return Feed(own, num_blocks, len(feeds) if is_split else 1)


def put_leaf(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """An array that every process has whole, as a global array; done on return."""
  if isinstance(leaf, jax.Array) or not hasattr(leaf, 'shape'):
    leaf = np.asarray(leaf)  # others may read no more than they are asked for
  made = jax.make_array_from_callback(
    leaf.shape, sharding, lambda index: leaf[index]
  )
  return jax.block_until_ready(made)


def constrain(x: arrays.Array, *axes: str | None) -> arrays.Array:
  """x with its logical axes laid out by the rules; as it is on one device."""
  active = _ACTIVE.get()
  if active is None or active.is_single:
    return x
  return jax.lax.with_sharding_constraint(x, active.sharding(*axes))


def num_shards(axis: str, size: int) -> int:
  """Ways in which a logical axis of this size is split here; 1 if it is not."""
  active = _ACTIVE.get()
  ways = 1 if active is None else active.size(axis)
  return ways if size % ways == 0 else 1


def local() -> Partitioner:
  """As `default`, over this process's devices alone: what decodes."""
  return Partitioner(
    mesh_lib.make_mesh(mesh_lib.MeshConfig(), jax.local_devices()), AxisRules()
  )


def default() -> Partitioner:
  """The partitioner of `MeshConfig` and `AxisRules` as gin has them.

  Raises:
    ValueError: several processes, and a mesh that does not cover them.
  """
  made = Partitioner(mesh_lib.make_mesh(mesh_lib.MeshConfig()), AxisRules())
  idle = jax.device_count() - made.mesh.size
  if idle:
    logging.warning(
      'one device is used, %d are idle; --gin.MeshConfig.fsdp=-1 takes all',
      idle,
    )
  return made
