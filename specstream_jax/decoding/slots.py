# SPDX-License-Identifier: Apache-2.0
"""A batch that rows enter and leave while it runs.

A batch has a fixed number of slots. A prompt is read in chunks by itself, and
its row then put into a slot that is free; rows that are done, or given up,
leave theirs. All of that happens between calls of the one decode loop, and has
one shape each, so that nothing compiles after `SlotDecoder.warm_up`.

Axis letters: B slots, C tokens of a chunk, T room for a prompt, S cache slots.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import partitioning
from specstream_jax.decoding import (
  batch_sizes,
  chunks,
  interface,
  loop,
  prefixes,
  seen as seen_lib,
)
from specstream_jax.modeling import cache as cache_lib

_TIMES, _STEPS = 3, 3  # best of, steps of each


class SlotDecoder:
  """The compiled programs of one running batch, and its state on the device.

  Attributes:
    num_compilations: programs that were traced so far.
    on_compile: is told the name of each before it is.
    prefixes: how prompts begin.
    sizes: of the batch, the last of them B.
    size: of them, the one that the batch has now.
    costs: of a step by size, if they were measured.
  """

  def __init__(
    self,
    setup: interface.DecodeSetup,
    *,
    num_slots: int,
    chunk: int,
    prefix_bytes: int = 0,
    sizes: Sequence[int] = (),
    plain: interface.DecodeSetup | None = None,
    solo: batch_sizes.Solo = batch_sizes.Solo(),
    partitioner: partitioning.Partitioner | None = None,
  ):
    """Compiles nothing yet.

    Args:
      setup: model, drafter and sizes; `cfg.cache_length` S is a multiple of
        `chunk`, and the room for a prompt.
      num_slots: B.
      chunk: C, tokens of a prompt that one pass reads.
      prefix_bytes: most that `prefixes` may take.
      sizes: ascending numbers of slots below B that there are programs for.
      plain: `setup` with a drafter that drafts nothing, for steps without
        drafts; None if there are none.
      solo: the same two for rows that have their weights in common.
      partitioner: where arrays lie.
    """
    self.setup, self.num_slots, self.chunk = setup, num_slots, chunk
    self.num_compilations = 0
    self.on_compile: Callable[[str], None] = lambda name: None
    self.prefixes = prefixes.Prefixes(
      prefix_bytes, chunk, prefixes.chunk_bytes(setup.model, chunk)
    )
    self._solo = solo
    part = partitioner or partitioning.local()
    self._make_programs(part)
    self._steps = self._make_steps(plain, part)
    self.sizes = (*sizes, num_slots)
    self.size = num_slots
    self.costs: dict[batch_sizes.Shape, batch_sizes.Cost] = {}
    self._state: Any = None
    self._spare: Any = None
    self._is_greedy = np.ones(num_slots, bool)

  def _make_steps(
    self,
    plain: interface.DecodeSetup | None,
    part: partitioning.Partitioner,
  ) -> dict[tuple[bool, bool], Callable[..., Any]]:
    """Programs of the loop, by whether rows are solo and whether they draft."""
    setups = {
      (False, True): self.setup,
      (False, False): plain,
      (True, True): self._solo.setup,
      (True, False): self._solo.plain,
    }
    runs = {True: loop.run, False: batch_sizes.run_plain}
    return {
      key: part.jit(self._counted(runs[key[1]], setup), donate_argnums=1)
      for key, setup in setups.items()
      if setup is not None
    }

  def _make_programs(self, part: partitioning.Partitioner) -> None:
    """All that will compile, but steps."""
    setup = self.setup
    own = lambda fun, **named: part.jit(self._counted(fun, setup), **named)
    free = lambda fun, **named: part.jit(self._counted(fun), **named)
    self._read = own(chunks.read_on, donate_argnums=1)
    self._begin = own(chunks.begin_row, donate_argnums=1)
    self._insert = free(batch_sizes.insert, donate_argnums=0)
    self._release = free(batch_sizes.release, donate_argnums=0)
    self._empty = free(batch_sizes.empty, static_argnums=1)
    self._start = free(_restart, donate_argnums=0)
    # What depends on no argument lies nowhere in particular unless it is told,
    # and who reads it would compile again for what others give.
    home = part.replicated if part.is_single else None
    self._renew = free(_zeros, donate_argnums=0, out_shardings=home)
    self._make_spare = part.jit(
      lambda: cache_lib.settle(
        setup.model.init_cache(1, setup.cfg.cache_length)
      ),
      out_shardings=home,
    )
    self._take = free(cache_lib.take, static_argnums=2)
    self._place = free(cache_lib.place, donate_argnums=0)
    self._resize = free(batch_sizes.resize)

  def _counted(self, fun: Callable[..., Any], *first: Any):
    """`fun` after its first arguments; every trace counts as a compilation."""

    @functools.wraps(fun)
    def traced(*args, **kwargs):
      self.num_compilations += 1
      self.on_compile(fun.__name__)
      return cache_lib.settle(fun(*first, *args, **kwargs))

    return traced

  @property
  def has_plain(self) -> bool:
    """Whether there are steps without drafts."""
    return (False, False) in self._steps

  @property
  def num_steps(self) -> int:
    """Programs of the loop: by size, weights, drafts, and if all is greedy."""
    count = sum(
      len(self._solo.kinds) if is_solo and has_drafts else 1
      for is_solo, has_drafts in self._steps
    )
    return 2 * len(self.sizes) * count

  def warm_up(
    self,
    params: Callable[[batch_sizes.Shape, bool], Any],
    row_params: Any,
    rows: loop.Rows,
    *,
    is_timed: bool = False,
  ) -> None:
    """Compiles all there is, and makes the slots.

    Args:
      params: weights for so many slots, of a kind, with drafts or without.
      row_params: weights for one row.
      rows: any request, as a batch of one.
      is_timed: whether `costs` are measured.
    """
    cfg = self.setup.cfg
    self._spare = self._make_spare()
    if self.prefixes.most_bytes:
      part = self._take(self._spare, np.int32(0), self.chunk)
      self._spare = self._place(self._spare, part, np.int32(0))
    self._spare = self._renew(self._spare)
    # Two chunks, where there is room for more than one.
    prompt = [0] * min(self.chunk + 1, cfg.cache_length)
    reading = Reading(self, row_params, prompt, rows)
    while (row := reading.advance()) is None:
      pass
    for size in self.sizes:
      self._warm_up_size(size, row)
      for kind in (batch_sizes.SIDE_BY_SIDE, *self._solo.kinds):
        shape = batch_sizes.Shape(size, kind)
        self._compile_steps(shape, params)
        if is_timed and len(self._ways(shape)) == 2:
          self.costs[shape] = batch_sizes.Cost(
            *(self._seconds(shape, params, row, way) for way in (False, True))
          )
      self.release(range(size))
    self.give_back(row.cache)
    jax.block_until_ready(self._state)

  def _warm_up_size(self, size: int, row: loop.DecodeState) -> None:
    """Compiles what comes and goes with a size, and makes it the batch's."""
    self._state, self.size = self._empty(row, size), size
    for other in self.sizes:
      if other != size:
        index = np.zeros(other, np.int32)
        self._resize(self._state, index, np.zeros(other, bool))
    self._state = self._insert(self._state, row, np.int32(0))

  def _ways(self, shape: batch_sizes.Shape) -> list[bool]:
    """Whether steps of a shape may draft, and may not."""
    is_solo = shape.kind != batch_sizes.SIDE_BY_SIDE
    return [way for way in (False, True) if (is_solo, way) in self._steps]

  def _compile_steps(
    self,
    shape: batch_sizes.Shape,
    params: Callable[[batch_sizes.Shape, bool], Any],
  ) -> None:
    """Compiles the steps of the batch's size."""
    for is_greedy in (False, True):
      self._is_greedy[0] = is_greedy
      for way in self._ways(shape):
        self.advance(params(shape, way), 0, kind=shape.kind, has_drafts=way)

  def _seconds(
    self,
    shape: batch_sizes.Shape,
    params: Callable[[batch_sizes.Shape, bool], Any],
    row: loop.DecodeState,
    has_drafts: bool,
  ) -> float:
    """Of a step when all slots are taken."""
    found, given = [], params(shape, has_drafts)
    for _ in range(_TIMES):
      for slot in range(self.size):
        self._state = self._insert(self._state, row, np.int32(slot))
      jax.block_until_ready(self._state)
      start = time.perf_counter()
      self.advance(given, _STEPS, kind=shape.kind, has_drafts=has_drafts)
      calls = int(self.look().calls.max())
      found.append((time.perf_counter() - start) / max(calls, 1))
    return min(found)

  def read(
    self,
    row_params: Any,
    prompt: Sequence[int],
    rows: loop.Rows,
    *,
    owner: int | None = None,
  ) -> 'Reading':
    """Begins to read a prompt; one at a time.

    Args:
      row_params: weights for this row.
      prompt: token ids.
      rows: what it asks for, as a batch of one, with settings and edits.
      owner: whose keys and values they are, for `prefixes`; None reads all of
        the prompt, and keeps nothing.
    """
    return Reading(self, row_params, prompt, rows, owner)

  def insert(
    self, row: loop.DecodeState, slot: int, *, is_greedy: bool
  ) -> None:
    """Puts a row that has been read into a slot.

    Args:
      row: from `Reading.advance`; consumed.
      slot: which.
      is_greedy: the row's tokens are drawn greedily and its logits not edited.
    """
    self._state = self._insert(self._state, row, np.int32(slot))
    self._is_greedy[slot] = is_greedy
    self.give_back(row.cache)

  def give_back(
    self, cache: cache_lib.Cache, *, is_finite: bool = True
  ) -> None:
    """Keeps the cache of a row that is no longer read for the next one.

    Args:
      cache: of it.
      is_finite: False if some of it may not be. Nobody looks there, but
        infinity and NaN times a weight of zero are NaN.
    """
    self._spare = self._start(cache) if is_finite else self._renew(cache)

  def release(self, slots: Sequence[int]) -> None:
    """Frees slots; what their rows did is lost."""
    is_released = np.zeros(self.num_slots, bool)
    is_released[list(slots)] = True
    self._state = self._release(self._state, is_released[: self.size])
    self._is_greedy[list(slots)] = True

  def resize(self, size: int, moves: Mapping[int, int]) -> None:
    """Makes the batch larger or smaller.

    Args:
      size: one of `sizes`.
      moves: slots of rows that go elsewhere, and where; all rows that the new
        size has no slot for are among them.
    """
    index = np.arange(size, dtype=np.int32)
    is_free = index >= self.size
    index[is_free] = 0
    for old, new in moves.items():
      index[new] = old
      self._is_greedy[new], self._is_greedy[old] = self._is_greedy[old], True
    self._state = self._resize(self._state, index, is_free)
    self.size = size

  def advance(
    self,
    params: Any,
    max_steps: int,
    *,
    min_running: int = 1,
    kind: int = batch_sizes.SIDE_BY_SIDE,
    has_drafts: bool = True,
    is_watched: bool = False,
  ) -> list[seen_lib.Drafts]:
    """At most so many steps; returns before the device is done.

    Args:
      params: weights for the slots that there are now.
      max_steps: the quantum.
      min_running: wakes when fewer rows run.
      kind: of `Solo.kinds`, whose weights they are, or `batch_sizes.SIDE_BY_SIDE`.
      has_drafts: False takes steps without, for which there is a program.
      is_watched: whether the host waits for every step, to see its drafts.

    Returns:
      The trees of each step if it is watched, and of some after the last.
    """
    state = self._state
    settings, edits = state.settings, state.edits
    is_greedy = bool(self._is_greedy.all())
    if is_greedy:  # another program, without the rest
      state = dataclasses.replace(state, settings=None, edits=None)
    run = self._steps[kind != batch_sizes.SIDE_BY_SIDE, has_drafts]
    drafts = []
    for count in [1] * max_steps if is_watched else [max_steps]:
      if is_watched:
        drafts.append(seen_lib.drafts(state))
      state = run(
        params, state, np.int32(count), min_running=np.int32(min_running)
      )
    if is_greedy:
      state = dataclasses.replace(state, settings=settings, edits=edits)
    self._state = state
    return drafts

  def look(self) -> seen_lib.Seen:
    """Waits for the device, and copies what the host wants to know."""
    return seen_lib.look(self._state, self.setup.drafter)

  def accept_lengths(self, slot: int, calls: int) -> list[int]:
    """Accept length of each call that a slot's row took part in."""
    return np.asarray(self._state.accept_lengths)[slot, :calls].tolist()

  def _take_spare(self) -> cache_lib.Cache:
    spare, self._spare = self._spare, None
    assert spare is not None, 'one prompt is read at a time'
    return spare


class Reading:
  """A prompt that is being read, chunk by chunk.

  Attributes:
    num_found: tokens of it that somebody has read before.
  """

  def __init__(
    self,
    decoder: SlotDecoder,
    row_params: Any,
    prompt: Sequence[int],
    rows: loop.Rows,
    owner: int | None = None,
  ):
    self._decoder, self._params, self._rows = decoder, row_params, rows
    self._prompt = np.asarray(prompt, np.int32)
    self._cache = decoder._take_spare()
    self._keys, found = [], []
    if owner is not None:
      self._keys = decoder.prefixes.keys(owner, self._prompt)
      found = decoder.prefixes.find(self._keys, len(prompt))
    for number, part in enumerate(found):
      start = np.int32(number * decoder.chunk)
      self._cache = decoder._place(self._cache, part, start)
    self.num_found = self._num_read = len(found) * decoder.chunk

  def advance(self) -> loop.DecodeState | None:
    """Reads one chunk; the row if it was the last."""
    decoder, size = self._decoder, self._decoder.chunk
    start = self._num_read
    part = self._prompt[start : start + size]
    tokens = np.zeros((1, size), np.int32)
    tokens[0, : len(part)] = part
    count = np.array([len(part)], np.int32)
    self._num_read += len(part)
    if self._num_read < len(self._prompt):
      self._cache = decoder._read(self._params, self._cache, tokens, count)
      if self._keys:
        decoder.prefixes.make_room()
        kept = decoder._take(self._cache, np.int32(start), size)
        decoder.prefixes.add(self._keys[start // size], kept)
      return None
    whole = np.zeros((1, decoder.setup.cfg.cache_length), np.int32)
    whole[0, : len(self._prompt)] = self._prompt
    return decoder._begin(
      self._params, self._cache, tokens, count, whole, self._rows
    )

  def abandon(self) -> None:
    """Stops reading; of what was read nothing is known."""
    self._decoder.give_back(self._cache, is_finite=False)


def _zeros(cache):
  """A cache of zeros that holds nothing."""
  return jax.tree.map(jnp.zeros_like, cache)


def _restart(cache):
  """A cache that holds nothing any more."""
  return dataclasses.replace(cache, length=jnp.zeros_like(cache.length))
