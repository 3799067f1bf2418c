# SPDX-License-Identifier: Apache-2.0
"""The engine: requests enter and leave one running batch.

    engine = Engine(model)
    engine.start()
    for piece in engine.submit(Request(prompt=(1, 2, 3))):
      print(piece.text)

One thread owns the device and works in turns (`step`): it frees slots of
requests that were given up, reads a bounded part of a waiting prompt, and lets
all rows decode for a quantum of steps or until one of them ends. Tokens of a
request are those that it would get alone.
"""

from collections import deque
from collections.abc import Mapping
import dataclasses
import math
import threading
import time
from typing import Any

import jax
import numpy as np

from specstream_jax import memory, runtime
from specstream_jax.checkpoints import fitted
from specstream_jax.config import drafting, serving
from specstream_jax.decoding import (
  loop,
  slots as slots_lib,
  stopping,
  topology,
)
from specstream_jax.drafters import streams
from specstream_jax.serving import admission, requests, rows, weights

_PAST = 0.9  # its weight in the mean time of a request


@dataclasses.dataclass(frozen=True)
class Stats:
  """What an engine is doing.

  Attributes:
    running: rows that decode.
    reading: prompts that are being read, at most one.
    waiting: requests in the queue.
    num_slots: rows that there is room for.
    finished: requests that are done, by finish reason.
    num_compilations: programs compiled so far.
  """

  running: int
  reading: int
  waiting: int
  num_slots: int
  finished: Mapping[str, int]
  num_compilations: int


class Engine:
  """A model, its adapters, a queue and a running batch."""

  def __init__(
    self,
    model: runtime.Model,
    cfg: serving.EngineConfig | None = None,
    *,
    drafter: str | drafting.DrafterConfig | None = None,
    adapters: Mapping[str, fitted.Fitted] | None = None,
  ):
    """Puts weights and slots on the device, and compiles.

    Args:
      model: loaded with the one adapter to serve, or without any.
      cfg: sizes and limits.
      drafter: a name, perhaps with settings, or all settings; None takes
        streams if there are some.
      adapters: to serve side by side, by name; the model has none then.

    Raises:
      ValueError: the drafter cannot serve, or an adapter does not fit.
      OutOfMemoryError: the slots do not fit.
    """
    self.model, self.cfg = model, cfg or serving.EngineConfig()
    adapters = dict(adapters or {})
    if drafter is None:
      found = model.stream or any(one.stream for one in adapters.values())
      drafter = 'streams' if found else 'none'
    if isinstance(drafter, str):
      drafter = drafting.parse(drafter, _tree(model, adapters))
    self._weights = weights.make(model, self.cfg, drafter, adapters)
    self._decoder = slots_lib.SlotDecoder(
      self._weights.setup,
      num_slots=self.cfg.num_slots,
      chunk=self.cfg.chunk,
      partitioner=model.partitioner,
    )
    self._queue: deque[rows.Row] = deque()
    self._rows: dict[int, rows.Row] = {}
    self._reading: tuple[rows.Row, slots_lib.Reading] | None = None
    self._wake = threading.Condition()
    self._thread: threading.Thread | None = None
    self._is_closing = self._is_aborted = False
    self._error: BaseException | None = None
    self._finished: dict[str, int] = {}
    self._mean_seconds = 1.0
    self._check_memory()
    self._warm_up()

  @property
  def adapters(self) -> list[str]:
    """Names of the adapters that requests may ask for."""
    return sorted(set(self._weights.served) - {weights.BASE})

  @property
  def path_length(self) -> int:
    """P, the most tokens that one call can give."""
    return self._weights.setup.path_length

  @property
  def tree(self) -> dict[str, Any]:
    """The draft tree: kind, num_nodes with the root, depth, parents.

    Parents of the nodes, the root first, which is its own; None where every
    step grows a tree of another shape. Without streams, kind is 'none'.
    """
    drafter = self._weights.setup.drafter
    kind, parents = 'none', None
    if isinstance(drafter, streams.Streams):
      kind = drafter.cfg.kind
      if kind != 'best_first':
        parents = topology.arrays(drafter.cfg)[0].tolist()
    return {
      'kind': kind,
      'num_nodes': drafter.size,
      'depth': self.path_length - 1,
      'parents': parents,
    }

  @property
  def is_open(self) -> bool:
    """Whether it takes requests."""
    return self._error is None and not self._is_closing

  def submit(self, request: requests.Request) -> requests.Handle:
    """Takes a request into the queue; from any thread.

    Raises:
      ValueError: it does not fit model or slots, or there is no such adapter.
      RefusedError: the queue is full, or the engine is closing.
    """
    row = self._row(request)
    with self._wake:
      self._check_open()
      if len(self._queue) >= self.cfg.max_waiting:
        seconds = self._seconds_to_wait()
        raise requests.RefusedError(
          f'{len(self._queue)} requests wait already, and no more may; try '
          f'again in {seconds} seconds',
          seconds,
        )
      self._queue.append(row)
      self._wake.notify_all()
    return row.handle

  def load_adapter(self, name: str, found: fitted.Fitted) -> None:
    """Serves one more adapter, or another one of that name, from now on.

    Raises:
      ValueError: it does not fit beside the others.
    """
    self._weights.load(name, found)

  def unload_adapter(self, name: str) -> None:
    """Serves an adapter no more; requests that were taken go on.

    Raises:
      ValueError: there is no such adapter.
    """
    self._weights.unload(name)

  def stats(self) -> Stats:
    """What it is doing now."""
    return Stats(
      running=len(self._rows),
      reading=int(self._reading is not None),
      waiting=len(self._queue),
      num_slots=self.cfg.num_slots,
      finished=dict(self._finished),
      num_compilations=self._decoder.num_compilations,
    )

  def start(self) -> None:
    """Lets a thread of its own take turns for as long as there is work."""
    if self._thread is None:
      self._thread = threading.Thread(
        target=self._serve, name='specstream-engine', daemon=True
      )
      self._thread.start()

  def close(self, timeout: float | None = None) -> bool:
    """Takes no more requests, and ends when those it has are done.

    Args:
      timeout: seconds after which the rest is given up; None is never.

    Returns:
      Whether all came to their end.
    """
    with self._wake:
      self._is_closing = True
      self._wake.notify_all()
    if self._thread is None:
      while self.step():
        pass
      return True
    self._thread.join(timeout)
    if not self._thread.is_alive():
      return self._error is None
    self._is_aborted = True
    self._thread.join()
    self._give_up(requests.RefusedError('the engine was closed'))
    return False

  def step(self) -> bool:
    """One turn, for who starts no thread; False if there was nothing to do."""
    had_work = self._has_work()
    self._drop()
    self._read_prompts()
    self._decode()
    return had_work

  def _serve(self) -> None:
    """The thread: turns while there is work, else sleep."""
    try:
      while not self._is_aborted:
        with self._wake:
          while not self._has_work() and not self._is_closing:
            self._wake.wait()
          if not self._has_work():
            return
        self.step()
    except BaseException as error:
      with self._wake:
        self._error = error
      self._give_up(error)
      raise

  def _row(self, request) -> rows.Row:
    """A request as it will stand in the queue; raises if it cannot."""
    served = self._weights.served.get(request.adapter)
    if served is None:
      known = ', '.join(map(repr, self.adapters)) or 'none'
      raise ValueError(
        f'there is no adapter {request.adapter!r}; loaded: {known}'
      )
    setup, model = self._weights.setup, self.model
    size = setup.drafter.size
    most = admission.limit(request, model, self.cfg, size)
    admission.check(request, model, most)
    room = self.cfg.max_end_ids
    own, asked = admission.end_ids(request, model, served, room)
    has_drafts = request.has_drafts and served.has_drafts
    arrays = admission.as_arrays(
      request,
      most=most,
      ids=[*own, *asked],
      num_ids=room,
      has_drafts=has_drafts,
    )
    return rows.Row(
      requests.Handle(request),
      model,
      served,
      arrays,
      eos_ids=own,
      stop_ids=asked,
      drafts_per_call=(size - 1) * has_drafts,
    )

  def _check_open(self) -> None:
    if self._error is not None:
      raise requests.RefusedError(f'the engine has failed: {self._error}')
    if self._is_closing:
      raise requests.RefusedError('the engine is closing')

  def _seconds_to_wait(self) -> int:
    """About how long it takes until somebody leaves the queue."""
    turns = len(self._queue) / self.cfg.num_slots
    return max(1, math.ceil(self._mean_seconds * turns))

  def _has_work(self) -> bool:
    return bool(self._queue or self._rows or self._reading)

  def _drop(self) -> None:
    """Ends requests that were given up, wherever they are."""
    now = time.monotonic()
    with self._wake:
      waiting = list(self._queue)
      given_up = [row for row in waiting if _why(row, now)]
      for row in given_up:
        self._queue.remove(row)
    for row in given_up:
      self._finish(row, [], _why(row, now))
    if self._reading is not None and (why := _why(self._reading[0], now)):
      row, reading = self._reading
      self._reading = None
      reading.abandon()
      self._finish(row, [], why)
    leaving = {
      s: why for s, row in self._rows.items() if (why := _why(row, now))
    }
    if leaving:
      self._leave(leaving, self._decoder.look())

  def _read_prompts(self) -> None:
    """A few chunks of waiting prompts; all of one if nobody decodes."""
    num_read = 0
    while not self._rows or num_read < self.cfg.chunks_per_quantum:
      if self._reading is None:
        self._reading = self._begin_next()
      if self._reading is None:
        return
      row, reading = self._reading
      made = reading.advance()
      num_read += 1
      if made is not None:
        self._reading = None
        self._seat(row, made)

  def _begin_next(self) -> tuple[rows.Row, slots_lib.Reading] | None:
    """The next prompt to read, if there is one and a slot for it."""
    with self._wake:
      if not self._queue or len(self._rows) == self.cfg.num_slots:
        return None
      row = self._queue.popleft()
    row.start()
    params = self._weights.of_row(row.served)
    prompt = row.handle.request.prompt
    return row, self._decoder.read(params, prompt, row.arrays)

  def _seat(self, row: rows.Row, made: loop.DecodeState) -> None:
    """Passes on the first token of a row, and gives it a slot to go on in."""
    count = int(made.num_tokens[0])
    reason = stopping.REASONS[int(made.finish_reason[0])]
    row.take(np.asarray(made.tokens)[0, :count].tolist(), reason)
    if row.finish_reason is not None:
      self._decoder.give_back(made.cache)
      self._finish(row, [])
      return
    slot = next(s for s in range(self.cfg.num_slots) if s not in self._rows)
    self._weights.seat(row.served, slot)
    is_greedy = row.handle.request.sampling.is_plain_greedy
    self._decoder.insert(made, slot, is_greedy=is_greedy)
    self._rows[slot] = row

  def _decode(self) -> None:
    """A quantum of steps for all rows."""
    if not self._rows:
      return
    self._decoder.advance(
      self._weights.of_slots(),
      self.cfg.quantum,
      min_running=len(self._rows),
    )
    seen, leaving = self._decoder.look(), {}
    for slot, row in self._rows.items():
      tokens = seen.tokens[slot, row.num_seen : seen.num_tokens[slot]]
      reason, lengths = stopping.REASONS[int(seen.finish_reason[slot])], None
      if row.handle.request.has_steps:
        lengths = self._decoder.accept_lengths(slot, int(seen.calls[slot]))
      row.take(tokens.tolist(), reason, lengths)
      if row.finish_reason is not None:
        leaving[slot] = row.finish_reason
    if leaving:
      self._leave(leaving, seen)

  def _leave(self, leaving: Mapping[int, str], seen: slots_lib.Seen) -> None:
    """Ends the rows of some slots, for a reason each, and frees those."""
    lengths = {
      slot: self._decoder.accept_lengths(slot, int(seen.calls[slot]))
      for slot in leaving
    }
    self._decoder.release(list(leaving))
    for slot, reason in leaving.items():
      self._finish(self._rows.pop(slot), lengths[slot], reason)

  def _finish(self, row, accept_lengths, reason=None) -> None:
    made = row.finish(accept_lengths, reason)
    count = self._finished.get(made.finish_reason, 0)
    self._finished[made.finish_reason] = count + 1
    self._mean_seconds *= _PAST
    self._mean_seconds += (1 - _PAST) * made.metrics.total

  def _give_up(self, error: BaseException) -> None:
    """Tells everybody that there is nothing more to come."""
    with self._wake:
      left = [*self._queue, *self._rows.values()]
      self._queue.clear()
    if self._reading is not None:
      left.append(self._reading[0])
    self._rows, self._reading = {}, None
    for row in left:
      row.handle.fail(error)

  def _check_memory(self) -> None:
    cfg, init = self.cfg, self._weights.setup.model.init_cache
    num_rows = cfg.num_slots + 1  # with the one that is read
    cache = jax.eval_shape(lambda: init(num_rows, cfg.cache_length))
    memory.check(
      f'the keys and values of {num_rows:,} slots of {cfg.cache_length:,} '
      'positions',
      sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)),
      'fewer slots, a smaller cache_length or bfloat16 need less',
    )

  def _warm_up(self) -> None:
    """Compiles everything."""
    base = self._weights.served[weights.BASE]
    arrays = admission.as_arrays(
      requests.Request((0,)),
      most=2,
      ids=[],
      num_ids=self.cfg.max_end_ids,
      has_drafts=True,
    )
    self._decoder.warm_up(
      self._weights.of_slots(), self._weights.of_row(base), arrays
    )


def _why(row: rows.Row, now: float) -> str:
  """Why a row has to end though it could go on; '' if it need not."""
  if row.handle.is_cancelled:
    return 'cancelled'
  return 'timeout' if row.handle.is_late(now) else ''


def _tree(model, adapters):
  """The draft tree of the first adapter that names one."""
  trees = (found.tree for found in adapters.values() if found.tree)
  return model.tree if model.stream else next(trees, model.tree)
