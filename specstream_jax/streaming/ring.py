# SPDX-License-Identifier: Apache-2.0
"""A ring of buffers that a thread fills ahead of whoever uses them."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import mmap
import threading
import time


def pages(num_bytes: int) -> mmap.mmap:
  """Memory of its own that begins at a page."""
  return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@dataclasses.dataclass
class Counts:
  """What was read, and who waited.

  Attributes:
    bytes_read: bytes.
    read_seconds: time the reader spent reading.
    wait_seconds: time the user of the buffers waited for it.
    taken: buffers that were used.
  """

  bytes_read: int = 0
  read_seconds: float = 0.0
  wait_seconds: float = 0.0
  taken: int = 0

  def overlap(self) -> float:
    """Share of the reading time in which nobody waited."""
    if not self.read_seconds:
      return 0.0
    return max(0.0, 1 - self.wait_seconds / self.read_seconds)


@dataclasses.dataclass
class _Coming:
  """A layer that has a buffer: being read, or ready."""

  layer: int
  slot: int
  is_ready: bool = False


class Ring:
  """Buffers in turn: read ahead in the order that is expected, used, given back.

  `expect` says what comes next, `take` waits for the first of it, `give_back`
  frees a buffer for the layer that is farthest ahead. One thread reads.
  """

  def __init__(
    self,
    read: Callable[[int, memoryview], None],
    num_bytes: int,
    num_buffers: int,
  ):
    """Takes the buffers, and starts the thread.

    Args:
      read: (layer, buffer) fills a buffer; an error of it is raised by `take`.
      num_bytes: of a buffer, whose address is that of a page.
      num_buffers: at least 1; with one, reading and using take turns.
    """
    self.counts = Counts()
    self._read, self._num_bytes = read, num_bytes
    self._buffers = [pages(num_bytes) for _ in range(num_buffers)]
    self._free = list(range(num_buffers))
    self._wanted: collections.deque[int] = collections.deque()
    self._coming: collections.deque[_Coming] = collections.deque()
    self._dropped: set[int] = set()
    self._error: BaseException | None = None
    self._is_closed = False
    self._changed = threading.Condition()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def expect(self, layers: Sequence[int]) -> None:
    """What will be taken from here on; what is ready of it stays."""
    with self._changed:
      kept: collections.deque[_Coming] = collections.deque()
      while self._coming and len(kept) < len(layers):
        if self._coming[0].layer != layers[len(kept)]:
          break
        kept.append(self._coming.popleft())
      for one in self._coming:
        if one.is_ready:
          self._free.append(one.slot)
        else:
          self._dropped.add(one.slot)
      self._coming, self._error = kept, None
      self._wanted = collections.deque(layers[len(kept) :])
      self._changed.notify_all()

  def take(self, layer: int) -> tuple[int, memoryview]:
    """(number, buffer) of the layer that is expected next, when it is read.

    Raises:
      Exception: it could not be read; what the reader raised.
    """
    begin = time.perf_counter()
    with self._changed:
      while not self._is_next_ready():
        if self._error is not None:
          error, self._error = self._error, None
          raise error
        self._changed.wait()
      one = self._coming.popleft()
      assert one.layer == layer, (one.layer, layer)
      self.counts.wait_seconds += time.perf_counter() - begin
      self.counts.taken += 1
    return one.slot, memoryview(self._buffers[one.slot])

  def give_back(self, slot: int) -> None:
    """Frees a buffer that nobody reads any more."""
    with self._changed:
      self._free.append(slot)
      self._changed.notify_all()

  def close(self) -> None:
    """Ends the thread."""
    with self._changed:
      self._is_closed = True
      self._changed.notify_all()
    self._thread.join()

  def _is_next_ready(self):
    return bool(self._coming) and self._coming[0].is_ready

  def _run(self):
    while True:
      with self._changed:
        while not self._is_closed and not (self._wanted and self._free):
          self._changed.wait()
        if self._is_closed:
          return
        one = _Coming(self._wanted.popleft(), self._free.pop())
        self._coming.append(one)
      begin, error = time.perf_counter(), None
      try:
        self._read(one.layer, memoryview(self._buffers[one.slot]))
      except Exception as caught:  # whoever waits hears of it, whatever it is
        error = caught
      with self._changed:
        self._finish(one, error, time.perf_counter() - begin)

  def _finish(self, one, error, seconds):
    """Counts a buffer that was filled, or that could not be."""
    self.counts.read_seconds += seconds
    is_dropped = one.slot in self._dropped
    self._dropped.discard(one.slot)
    if error is None:
      self.counts.bytes_read += self._num_bytes
      one.is_ready = True
    if error is not None and not is_dropped:
      # Nothing is read any more until somebody expects something.
      self._coming.remove(one)
      self._wanted.clear()
      self._error = error
    if is_dropped or error is not None:
      self._free.append(one.slot)
    self._changed.notify_all()
