# SPDX-License-Identifier: Apache-2.0
"""The KV cache: append a tree's keys and values, commit its accepted path.

Each row has its own length. Slots from `length` on are scratch: `append`
writes node m of a tree to slot length + m, `commit` moves the accepted path
to the front of them. The layout [B, K, S, H] is the one attention reads, so
no step transposes it; inside `lax.while_loop` both updates are in place.

Axis letters: B rows, T tokens, P path length, S cache slots, K KV heads,
H head dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config, partitioning
from specstream_jax.modeling import phases

_MAX_TURNS = 64  # rows that are written one after the other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of every layer.

  Attributes:
    keys: per layer [B, K, S, H].
    values: per layer [B, K, S, H].
    length: [B] int32, committed slots of each row.
  """

  keys: tuple[arrays.Array, ...]
  values: tuple[arrays.Array, ...]
  length: arrays.Array

  @property
  def num_slots(self) -> int:
    """S."""
    return self.keys[0].shape[2]


def init(
  cfg: config.ModelConfig, batch: int, cache_length: int, dtype: str
) -> Cache:
  """An empty cache of `cache_length` slots for `batch` rows."""
  shape = (batch, cfg.num_kv_heads, cache_length, cfg.head_dim)

  def empty():
    # An array for each layer: one for all could not be donated.
    return tuple(
      partitioning.constrain(
        jnp.zeros(shape, dtype), 'batch', 'kv_heads', None, None
      )
      for _ in range(cfg.num_layers)
    )

  return Cache(empty(), empty(), jnp.zeros((batch,), jnp.int32))


def order(
  x: arrays.Array, new: Any, start: arrays.Array
) -> tuple[arrays.Array, Any, arrays.Array]:
  """(x, new, start) such that writes of `new` wait for x, which read the cache.

  Without an order XLA may write first, into a copy of the cache. The TPU
  compiler keeps a barrier's order; elsewhere barriers may be gone before copies
  are placed, so there `start` also depends on x in fact, by a term that is 0.

  Args:
    x: [B, T, D] states that the attention over the cache led to.
    new: keys and values to be written.
    start: [B] int32 slots they go to.
  """
  x, new = jax.lax.optimization_barrier((x, new))
  never = lambda one: jnp.isnan(one) & (one > 0)
  start = jax.lax.platform_dependent(
    start,
    x[:, 0, 0],
    tpu=lambda start, _: start,
    default=lambda start, one: start + never(one),
  )
  return x, new, start


def append(
  layer: arrays.Array, new: arrays.Array, start: arrays.Array
) -> arrays.Array:
  """Writes `new` to slots start .. start+T-1 of each row.

  A start above S - T is moved down to S - T; the decode loop stops a row
  before that can touch a slot it still needs.

  Args:
    layer: [B, K, S, H].
    new: [B, T, K, H].
    start: [B] int32.
  """
  new = new.swapaxes(1, 2).astype(layer.dtype)
  written = jax.lax.platform_dependent(
    layer, new, start, tpu=_write_in_turn, default=_write_at_once
  )
  # Unfused: a reader that recomputed the update would keep the old cache alive.
  return jax.lax.optimization_barrier(written)


def _write_at_once(layer, new, start):
  """`append` as one scatter."""
  write = lambda row, update, slot: jax.lax.dynamic_update_slice(
    row, update, (0, slot, 0)
  )
  return jax.vmap(write)(layer, new, start)


def _write_in_turn(layer, new, start):
  """`append` row by row.

  The TPU compiler wants another layout for a scatter than attention reads, and
  copies the cache there and back in every step (docs/SCALE.md). Rows that are
  split over devices are left to the scatter.
  """
  is_split = partitioning.num_shards('batch', len(layer)) > 1
  if is_split or len(layer) > _MAX_TURNS:
    return _write_at_once(layer, new, start)
  for row in range(len(layer)):
    update = new[row : row + 1]
    layer = jax.lax.dynamic_update_slice(layer, update, (row, 0, start[row], 0))
  return layer


def commit(
  cache: Cache,
  path: arrays.Array,
  accept_length: arrays.Array,
  early: tuple[int, arrays.Array] | None = None,
) -> Cache:
  """Keeps the accepted path of the tree that was appended last.

  Slot length + path[i] moves to slot length + i for i <= accept_length and
  the row's length grows by accept_length + 1. What lies beyond is scratch.

  Args:
    cache: the tree's keys and values lie from slot `length` on.
    path: [B, P] int32 node indices, path[:, 0] = 0, increasing up to
      accept_length.
    accept_length: [B] int32; -1 leaves the row's length as it is.
    early: (n, path [B, P]) if the first n layers number the nodes otherwise,
      because nodes were pruned after them.
  """
  new_length = cache.length + accept_length + 1
  if path.shape[1] == 1:  # the root lies where it belongs
    return Cache(cache.keys, cache.values, new_length)
  num_early, early_path = early or (0, path)
  move = functools.partial(_move, length=cache.length)

  def into_line(path, early_path, cache):
    count = len(cache.keys)
    paths = [early_path if i < num_early else path for i in range(count)]
    keys = tuple(map(move, cache.keys, paths))
    values = tuple(map(move, cache.values, paths))
    return None, Cache(keys, values, new_length)

  # A second time everything lies in line.
  in_line = lambda *paths: tuple(jnp.indices(p.shape)[1] for p in paths)
  reads = path, early_path
  return phases.run('commit', into_line, *reads, keeps=cache, again=in_line)[1]


def take(cache: Cache, start: arrays.Array, size: int) -> arrays.Array:
  """A copy of `size` slots of all rows and layers, [2, layers, B, K, size, H].

  Args:
    cache: keys and values.
    start: the first of them, a number.
    size: how many.
  """
  part = lambda layer: jax.lax.dynamic_slice_in_dim(layer, start, size, axis=2)
  return jnp.stack(
    [jnp.stack(list(map(part, kind))) for kind in (cache.keys, cache.values)]
  )


def place(cache: Cache, part: arrays.Array, start: arrays.Array) -> Cache:
  """Puts what was taken to slots from `start` on; rows then end behind it.

  Args:
    cache: keys and values of the same rows and layers.
    part: [2, layers, B, K, size, H].
    start: the first of the slots, a number.
  """
  put = lambda layer, own: jax.lax.dynamic_update_slice_in_dim(
    layer, own, start, axis=2
  )
  length = jnp.full_like(cache.length, start + part.shape[4])
  keys, values = part[0], part[1]
  return Cache(
    tuple(map(put, cache.keys, keys)),
    tuple(map(put, cache.values, values)),
    length,
  )


def settle(tree: Any) -> Any:
  """Lays out arrays as they lie at all times, wherever XLA would put them.

  So that what one program leaves is what the next was compiled for: caches split
  by heads, all other arrays whole on every device. On one device nothing is done.
  """

  def lay(x):
    if not isinstance(x, Cache):
      return partitioning.constrain(x, *(None,) * x.ndim)
    heads = lambda y: partitioning.constrain(y, None, 'kv_heads', None, None)
    return Cache(
      tuple(map(heads, x.keys)),
      tuple(map(heads, x.values)),
      partitioning.constrain(x.length, None),
    )

  return jax.tree.map(lay, tree, is_leaf=lambda x: isinstance(x, Cache))


def _move(layer, path, length):
  """Copies slot length + path[i] to length + i, for i = 1 … P - 1."""
  slots = (length[:, None] + path[:, 1:])[:, None, :, None]
  kept = jnp.take_along_axis(layer, slots, axis=2, mode='clip')
  return append(layer, kept.swapaxes(1, 2), length + 1)
