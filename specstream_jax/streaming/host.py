# SPDX-License-Identifier: Apache-2.0
"""Layers that lie in the host's memory, copied to the device ahead of their use.

For a GPU or a TPU with less memory than its host. The host's memory is pinned,
so that a copy needs no help of a processor and goes on while the device computes.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from specstream_jax.streaming import ring

KIND = 'pinned_host'


def place(kind: str = KIND) -> jax.sharding.Sharding:
  """A memory of the first device.

  Args:
    kind: of it.

  Raises:
    ValueError: the device has no such memory.
  """
  device = jax.local_devices()[0]
  kinds = [memory.kind for memory in device.addressable_memories()]
  if kind not in kinds:
    raise ValueError(
      f'{device} has no memory {kind!r}, where --weights=host puts layers; it '
      f'has {", ".join(kinds)}; use --weights=stream, which reads from disk'
    )
  return jax.sharding.SingleDeviceSharding(device, memory_kind=kind)


class HostRing:
  """As `ring.Ring`, with copies for reads.

  A copy is begun as soon as there is a buffer, and waited for by whatever uses
  it: so of the counts, seconds stay 0.
  """

  def __init__(
    self,
    load: Callable[[int], Mapping[str, Any]],
    layers: Sequence[int],
    num_bytes: int,
    num_buffers: int,
  ):
    """Puts all layers into the host's memory.

    Args:
      load: layer -> flat arrays.
      layers: those that pass through.
      num_bytes: of a layer.
      num_buffers: layers that are on the device at a time.

    Raises:
      ValueError: the device has no such memory, or a layer cannot be loaded.
    """
    self.counts = ring.Counts()
    self._num_bytes, self._free = num_bytes, num_buffers
    host = place()
    self._device = place(jax.local_devices()[0].default_memory().kind)
    self._layers = {
      layer: jax.block_until_ready(jax.device_put(dict(load(layer)), host))
      for layer in layers
    }
    self._wanted: collections.deque[int] = collections.deque()
    self._coming: collections.deque[tuple[int, Any]] = collections.deque()

  def expect(self, layers: Sequence[int]) -> None:
    """What will be taken from here on; what was begun of it stays."""
    kept: collections.deque[tuple[int, Any]] = collections.deque()
    while self._coming and len(kept) < len(layers):
      if self._coming[0][0] != layers[len(kept)]:
        break
      kept.append(self._coming.popleft())
    self._free += len(self._coming)
    self._coming = kept
    self._wanted = collections.deque(layers[len(kept) :])
    self._begin()

  def take(self, layer: int) -> tuple[int, Any]:
    """(0, flat arrays on the device) of the layer that is expected next."""
    found, arrays = self._coming.popleft()
    assert found == layer, (found, layer)
    self.counts.taken += 1
    return 0, arrays

  def give_back(self, slot: int) -> None:
    """Frees the place of a layer that nobody reads any more."""
    del slot
    self._free += 1
    self._begin()

  def close(self) -> None:
    """Frees the host's memory."""
    self._layers, self._coming = {}, collections.deque()

  def _begin(self):
    """Begins copies for as long as there is room."""
    while self._wanted and self._free:
      layer = self._wanted.popleft()
      arrays = jax.device_put(self._layers[layer], self._device)
      self._coming.append((layer, arrays))
      self._free -= 1
      self.counts.bytes_read += self._num_bytes
