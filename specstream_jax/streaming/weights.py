# SPDX-License-Identifier: Apache-2.0
"""The weights of layers, some of which stay while the others pass through."""

from collections.abc import Sequence
import threading
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config
from specstream_jax.modeling import params
from specstream_jax.streaming import host, layer_files, ring as ring_lib


class Taken(NamedTuple):
  """The weights of one layer, for as long as they are used.

  Attributes:
    params: nested dict of arrays.
    slot: the buffer they lie in; None if they stay.
  """

  params: dict[Any, Any]
  slot: int | None


class Source(Protocol):
  """Whoever has layers for passes.

  Attributes:
    in_use: held by whoever makes a pass, as passes share the layers.
  """

  in_use: Any

  def expect(self, layers: Sequence[int]) -> None:
    """The layers that will be taken, in order."""

  def take(self, layer: int) -> Taken:
    """The weights of the layer that comes next."""
    ...

  def give_back(self, taken: Taken, result: Any) -> None:
    """Ends the use of weights when the result that needs them is there."""


class LayerWeights:
  """Layers of a folder of `layer_files`, taken one after the other.

  Attributes:
    layout: of the files.
    resident: layers that stay in memory.
    num_buffers: R, of the ring.
    in_use: held by whoever makes a pass, as passes share the ring.
  """

  def __init__(
    self,
    folder: str,
    cfg: config.StreamedWeightsConfig,
    *,
    stays: int = 0,
    twice: int = 0,
  ):
    """Reads the layers that stay.

    Args:
      folder: of the files.
      cfg: what may stay, and how files are read.
      stays: bytes of all other weights, for the budget.
      twice: so many top layers are used twice a step, and stay first.

    Raises:
      ValueError: the folder is damaged, or the budget is too small.
    """
    self.folder, self.cfg = folder, cfg
    self.in_use = threading.RLock()
    self.layout, _, self.notes = layer_files.read_manifest(folder)
    self._reader = layer_files.Reader(folder, self.layout, cfg.reads)
    count, self.num_buffers = split(cfg, self.layout, stays)
    self.resident = resident(self.layout.num_layers, count, twice)
    self._kept = {layer: self._load(layer) for layer in self.resident}
    self._ring = self._make_ring() if self.num_buffers else None

  def _make_ring(self) -> ring_lib.Ring | host.HostRing:
    size = self.layout.num_bytes, self.num_buffers
    if self.cfg.source == 'disk':
      return ring_lib.Ring(self._reader.read, *size)
    others = [i for i in range(self.layout.num_layers) if i not in self._kept]
    return host.HostRing(self._read, others, *size)

  @property
  def name(self) -> str:
    """Of the weights in the folder, see `store.key`."""
    return str(self.notes.get('weights', ''))

  @property
  def counts(self) -> ring_lib.Counts:
    """What was read since the weights were opened, resident layers left out."""
    return self._ring.counts if self._ring else ring_lib.Counts()

  @property
  def how(self) -> str:
    """How files are read in fact, a name of `config.streaming.READS`."""
    return self._reader.how

  def copy(self, layer: int) -> dict[Any, Any]:
    """A layer in memory of its own, whatever passes through the ring."""
    return self._kept[layer] if layer in self._kept else self._load(layer)

  def expect(self, layers: Sequence[int]) -> None:
    """The layers that will be taken, in order."""
    if self._ring:
      self._ring.expect([i for i in layers if i not in self._kept])

  def take(self, layer: int) -> Taken:
    """The weights of the layer that comes next; raises ValueError, see `Ring`."""
    if layer in self._kept:
      return Taken(self._kept[layer], None)
    assert self._ring is not None
    found: Any
    slot, found = self._ring.take(layer)
    if self.cfg.source == 'disk':
      found = jax.device_put(self._views(found))
    return Taken(params.unflatten(found), slot)

  def give_back(self, taken: Taken, result: Any) -> None:
    """Ends the use of weights when the result that needs them is there."""
    if taken.slot is not None:
      jax.block_until_ready(result)
      assert self._ring is not None
      self._ring.give_back(taken.slot)

  def close(self) -> None:
    """Ends the reading."""
    if self._ring:
      self._ring.close()
    self._reader.close()

  def _load(self, layer):
    """A layer that stays on the device."""
    return params.unflatten(jax.device_put(self._read(layer)))

  def _read(self, layer):
    """A layer in memory of its own, in a page-aligned buffer."""
    buffer = memoryview(ring_lib.pages(self.layout.num_bytes))
    self._reader.read(layer, buffer)
    return self._views(buffer)

  def _views(self, buffer):
    """Flat arrays over a buffer; put on a CPU they are the buffer."""
    raw = np.frombuffer(buffer, np.uint8)
    flat = {}
    for path, place in self.layout.places.items():
      part = raw[place.offset : place.offset + place.num_bytes]
      flat[path] = part.view(jnp.dtype(place.dtype)).reshape(place.shape)
    return flat


def split(
  cfg: config.StreamedWeightsConfig, layout: layer_files.Layout, stays: int
) -> tuple[int, int]:
  """(layers that stay, buffers of the ring).

  Args:
    cfg: asks for a number of layers, or names a budget.
    layout: of the layers.
    stays: bytes of all other weights.

  Raises:
    ValueError: the budget holds not even one buffer.
  """
  total, size = layout.num_layers, layout.num_bytes
  if not cfg.memory_budget:
    count = min(cfg.resident_layers, total)
    return count, min(cfg.buffers, total - count)
  room = (cfg.memory_budget - stays) // size
  if room >= total:
    return total, 0
  if room < 1:
    raise ValueError(
      f'memory_budget is {cfg.memory_budget:,} bytes, but embeddings, LM head '
      f'and adapter take {stays:,} and one layer {size:,}; accepted: '
      f'{stays + size:,} or more, {stays + 2 * size:,} to read while computing'
    )
  buffers = min(cfg.buffers, room)
  return room - buffers, buffers


def resident(total: int, count: int, twice: int) -> tuple[int, ...]:
  """Which `count` of `total` layers stay.

  The `twice` top ones first, as they are used twice a step; then layers evenly
  spread, so that reading goes on between them.
  """
  top = list(range(total))[max(total - min(twice, count), 0) :]
  rest, more = total - len(top), count - len(top)
  even = [(2 * i + 1) * rest // (2 * more) for i in range(more)]
  return tuple(even + top)
