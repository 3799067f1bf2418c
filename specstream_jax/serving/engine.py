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

from collections.abc import Callable, Mapping, Sequence
import functools
import threading
import time

import numpy as np

from specstream_jax import runtime
from specstream_jax.checkpoints import fitted
from specstream_jax.config import drafting, serving
from specstream_jax.decoding import (
  batch_sizes,
  loop,
  seen as seen_lib,
  slots as slots_lib,
  stopping,
)
from specstream_jax.serving import (
  admission,
  policy,
  requests,
  rows,
  scoring,
  starting,
  stats as stats_lib,
  waiting,
  weights,
)
from specstream_jax.serving.stats import Stats as Stats


class Engine:
  """A model, its adapters, a queue and a running batch.

  Attributes:
    error: what ended its thread, if something did.
  """

  def __init__(
    self,
    model: runtime.Model,
    cfg: serving.EngineConfig | None = None,
    *,
    drafter: str | drafting.DrafterConfig | None = None,
    adapters: Mapping[str, fitted.Fitted] | None = None,
    tell: Callable[[int, int], None] = lambda number, total: None,
  ):
    """Puts weights and slots on the device, and compiles.

    Args:
      model: loaded with the one adapter to serve, or without any.
      cfg: sizes and limits.
      drafter: a name, perhaps with settings, or all settings; None takes
        streams if there are some.
      adapters: to serve side by side, by name; the model has none then.
      tell: is told which of how many large programs compiles next.

    Raises:
      ValueError: the drafter cannot serve, or an adapter does not fit.
      OutOfMemoryError: the slots do not fit.
    """
    self.model, self.cfg = model, cfg or serving.EngineConfig()
    adapters = starting.with_tuned_trees(adapters or {}, model)
    asked = starting.drafter(drafter, model, adapters)
    self._weights = weights.make(model, self.cfg, asked, adapters)
    self._decoder = starting.make_decoder(self._weights, self.cfg, model)
    self._scorer = starting.make_scorer(self._decoder, model)
    self._waiting = waiting.Waiting(self.cfg)
    self._rows: dict[int, rows.Row] = {}
    self._reading: tuple[rows.Row, slots_lib.Reading] | None = None
    self._thread: threading.Thread | None = None
    self._is_aborted = False
    self.error: BaseException | None = None
    self._finished: dict[str, int] = {}
    self._is_drafting = False
    starting.warm_up(self._decoder, self._weights, self.cfg, tell)
    self.scorer()([0, 0])
    self._policy = policy.Policy(
      self._decoder.costs, self.cfg.max_drafting_rows
    )

  @property
  def adapters(self) -> list[str]:
    """Names of the adapters that requests may ask for."""
    return sorted(set(self._weights.served) - {weights.BASE})

  @property
  def path_length(self) -> int:
    """P, the most tokens that one call can give."""
    return self._weights.setup.path_length

  @property
  def costs(self) -> Mapping[batch_sizes.Shape, batch_sizes.Cost]:
    """What a step costs by its shape, where that was measured."""
    return self._decoder.costs

  @property
  def is_open(self) -> bool:
    """Whether it takes requests."""
    return not self._waiting.is_closed

  def check_number(self, count: int) -> None:
    """Raises ValueError if it can never take so many requests at once."""
    self._waiting.check_number(count)

  def submit(self, request: requests.Request) -> requests.Handle:
    """Takes a request into the queue; see `submit_all`."""
    return self.submit_all([request])[0]

  def submit_all(
    self,
    asked: Sequence[requests.Request],
    on_end: Callable[[requests.Completion | None], None] = lambda made: None,
  ) -> list[requests.Handle]:
    """Takes requests into the queue, all or none; from any thread.

    Args:
      asked: what for.
      on_end: of each; see `requests.Handle`.

    Raises:
      ValueError: one does not fit model or slots, there is no such adapter, or
        they are more than it can ever take at once.
      RefusedError: the queue is full, or the engine is closing.
    """
    self.check_number(len(asked))
    new = [self._row(request) for request in asked]
    for row in new:
      row.handle.on_end = on_end
    self._waiting.add(new)
    return [row.handle for row in new]

  def scorer(
    self, adapter: str = ''
  ) -> Callable[[Sequence[int]], scoring.Scores]:
    """What scores texts with an adapter as it is now; see `Scorer.score`.

    Raises:
      ValueError: there is no such adapter.
    """
    params = self._weights.of_row(self._served(adapter))
    return functools.partial(self._scorer.score, params)

  def load_adapter(self, name: str, found: fitted.Fitted) -> None:
    """Serves one more adapter, or another one of that name, from now on.

    Raises:
      ValueError: it does not fit beside the others.
    """
    self._weights.load(name, starting.with_tuned_tree(found, self.model))

  def unload_adapter(self, name: str) -> None:
    """Serves an adapter no more; requests that were taken go on.

    Raises:
      ValueError: there is no such adapter.
    """
    self._weights.unload(name)

  def stats(self) -> Stats:
    """What it is doing now."""
    reading = self._reading
    return Stats(
      running=len(self._rows),
      reading=int(reading is not None),
      waiting=len(self._waiting),
      num_slots=self.cfg.num_slots,
      finished=dict(self._finished),
      num_compilations=self._decoder.num_compilations,
      prefixes=self._decoder.prefixes.counts,
      batch_size=self._decoder.size,
      is_drafting=self._is_drafting,
      running_by=stats_lib.by_adapter(self._rows.values()),
      waiting_by=stats_lib.by_adapter(
        self._waiting, [] if reading is None else reading[:1]
      ),
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
    self._waiting.close('the engine is closing')
    if self._thread is None:
      while self.step():
        pass
      return True
    self._thread.join(timeout)
    is_done = not self._thread.is_alive() and not self._is_aborted
    self.abort()
    self._thread.join()
    self._give_up(requests.RefusedError('the engine was closed'))
    return is_done and self.error is None

  def abort(self) -> None:
    """Has its thread end with the turn that it is in; `close` then returns."""
    self._is_aborted = True
    self._waiting.close('the engine is closing')

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
        with self._waiting.changed:
          while not self._has_work() and not self._waiting.is_closed:
            self._waiting.changed.wait()
          if not self._has_work():
            return
        self.step()
    except BaseException as error:
      self.error = error
      self._waiting.close(f'the engine has failed: {error}')
      self._give_up(error)
      raise

  def _served(self, adapter) -> weights.Served:
    """An adapter by its name; raises NoAdapterError if there is none."""
    served = self._weights.served.get(adapter)
    if served is None:
      known = ', '.join(map(repr, self.adapters)) or 'none'
      raise requests.NoAdapterError(
        f'there is no adapter {adapter!r}; loaded: {known}'
      )
    return served

  def _row(self, request) -> rows.Row:
    """A request as it will stand in the queue; raises if it cannot."""
    return admission.row(
      request,
      self._served(request.adapter),
      self.model,
      self._weights.setup,
      self.cfg,
    )

  def _has_work(self) -> bool:
    return bool(self._waiting or self._rows or self._reading)

  def _drop(self) -> None:
    """Ends requests that were given up, wherever they are."""
    now = time.monotonic()
    for row in self._waiting.drop(now):
      self._finish(row, [], row.why_ends(now))
    if self._reading is not None and (why := self._reading[0].why_ends(now)):
      row, reading = self._reading
      self._reading = None
      reading.abandon()
      self._finish(row, [], why)
    leaving = {
      s: why for s, row in self._rows.items() if (why := row.why_ends(now))
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
    if len(self._rows) == self.cfg.num_slots:
      return None
    row = self._waiting.take()
    if row is None:
      return None
    row.start()
    params = self._weights.of_row(row.served)
    prompt = row.handle.request.prompt
    reading = self._decoder.read(
      params, prompt, row.arrays, owner=row.served.owner
    )
    row.num_found = reading.num_found
    return row, reading

  def _seat(self, row: rows.Row, made: loop.DecodeState) -> None:
    """Passes on the first token of a row, and gives it a slot to go on in."""
    # On the host, as an index on the device is one more program.
    count = int(np.asarray(made.num_tokens)[0])
    reason = stopping.REASONS[int(np.asarray(made.finish_reason)[0])]
    row.take(np.asarray(made.tokens)[0, :count].tolist(), reason)
    if row.finish_reason is not None:
      is_finite = row.finish_reason != 'not_finite'
      self._decoder.give_back(made.cache, is_finite=is_finite)
      self._finish(row, [])
      return
    self._fit(len(self._rows) + 1)
    slot = next(s for s in range(self.cfg.num_slots) if s not in self._rows)
    self._weights.seat(row.served, slot)
    is_greedy = row.handle.request.sampling.is_plain_greedy
    self._decoder.insert(made, slot, is_greedy=is_greedy)
    self._rows[slot] = row

  def _fit(self, num_rows: int) -> None:
    """Makes the batch as large as so many rows need.

    It gets no smaller while somebody waits, who would make it grow again.
    """
    decoder = self._decoder
    size = next(size for size in decoder.sizes if size >= num_rows)
    is_busy = self._waiting or self._reading is not None
    if size == decoder.size or (size < decoder.size and is_busy):
      return
    free = (slot for slot in range(size) if slot not in self._rows)
    moves = {slot: next(free) for slot in self._rows if slot >= size}
    decoder.resize(size, moves)
    for old, new in moves.items():
      row = self._rows[new] = self._rows.pop(old)
      self._weights.seat(row.served, new)

  def _decode(self) -> None:
    """A quantum of steps for all rows."""
    if not self._rows:
      return
    self._fit(len(self._rows))
    decoder, running = self._decoder, list(self._rows.values())
    kind = weights.kind([row.served for row in running])
    shape = batch_sizes.Shape(decoder.size, kind)
    self._is_drafting = self._policy.has_drafts(
      shape, [row.running for row in running]
    )
    has_drafts = self._is_drafting or not decoder.has_plain
    params = self._weights.of_slots(
      shape, running[0].served, has_drafts=has_drafts
    )
    is_busy = self._waiting or self._reading is not None
    steps = self.cfg.quantum
    if self._is_drafting and is_busy:
      steps = self._policy.steps(shape, steps)
    start, fewest = time.perf_counter(), len(running)
    trees = decoder.advance(
      params,
      steps,
      min_running=fewest,
      kind=kind,
      has_drafts=has_drafts,
      is_watched=has_drafts and any(row.has_trees for row in running),
    )
    seen, leaving, calls, num_tokens = decoder.look(), {}, [], 0
    seconds = time.perf_counter() - start
    for slot, row in self._rows.items():
      tokens = seen.tokens[slot, row.num_seen : seen.num_tokens[slot]]
      calls.append(self._count(row, int(seen.calls[slot]), len(tokens)))
      num_tokens += len(tokens)
      reason, lengths = stopping.REASONS[int(seen.finish_reason[slot])], None
      if row.handle.request.has_steps:
        lengths = decoder.accept_lengths(slot, int(seen.calls[slot]))
      own = [tree.of_slot(slot) for tree in trees if row.has_trees]
      row.take(tokens.tolist(), reason, lengths, own)
      if row.finish_reason is not None:
        leaving[slot] = row.finish_reason
    self._policy.note(shape, calls, num_tokens, seconds)
    if leaving:
      self._leave(leaving, seen)

  def _count(self, row: rows.Row, calls: int, num_tokens: int) -> int:
    """Notes what a row's calls, so many by now, gave; how many are new."""
    new = calls - row.num_calls
    drafting = row.count_calls(calls, has_drafts=self._is_drafting)
    if drafting:
      self._policy.learn(row.kind, drafting, num_tokens - new)
    return new

  def _leave(self, leaving: Mapping[int, str], seen: seen_lib.Seen) -> None:
    """Ends the rows of some slots, for a reason each, and frees those."""
    lengths = {
      slot: self._decoder.accept_lengths(slot, int(seen.calls[slot]))
      for slot in leaving
    }
    self._decoder.release(list(leaving))
    for slot, reason in leaving.items():
      row = self._rows.pop(slot)
      if seen.num_foreseen is not None:
        row.num_foreseen = int(seen.num_foreseen[slot])
      self._finish(row, lengths[slot], reason)

  def _finish(self, row, accept_lengths, reason=None) -> None:
    made = row.finish(accept_lengths, reason)
    count = self._finished.get(made.finish_reason, 0)
    self._finished[made.finish_reason] = count + 1
    self._waiting.end(made.metrics.total)

  def _give_up(self, error: BaseException) -> None:
    """Tells everybody that there is nothing more to come."""
    left = [*self._waiting.clear(), *self._rows.values()]
    if self._reading is not None:
      left.append(self._reading[0])
    self._rows, self._reading = {}, None
    for row in left:
      row.handle.fail(error)
