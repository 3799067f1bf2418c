# SPDX-License-Identifier: Apache-2.0
"""A batch that rows enter and leave while it runs.

A batch has a fixed number of slots. A prompt is read in chunks by itself, and
its row then put into a slot that is free; rows that are done, or given up,
leave theirs. All of that happens between calls of the one decode loop, and has
one shape each, so that nothing compiles after `SlotDecoder.warm_up`.

Axis letters: B slots, C tokens of a chunk, T room for a prompt, S cache slots.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, partitioning
from specstream_jax.decoding import interface, loop, stopping
from specstream_jax.modeling import cache as cache_lib


def read_chunk(
  setup: interface.DecodeSetup,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  counts: arrays.Array,
) -> interface.Forward:
  """A pass over what comes next of prompts.

  Args:
    setup: its `chunk_model` makes the pass.
    params: weights.
    cache: what was read before.
    tokens: [B, C] int32, padded on the right.
    counts: [B] int32 valid entries of `tokens`.

  Returns:
    The pass, its cache with `counts` more tokens.
  """
  model = setup.chunk_model or setup.model
  batch, size = tokens.shape
  causal = jnp.tri(size, dtype=bool)[None]
  forward = model.forward(
    params,
    tokens,
    cache.length[:, None] + jnp.arange(size)[None],
    jnp.broadcast_to(causal, (batch, size, size)),
    cache,
    with_streams=setup.drafter.with_streams,
  )
  grown = dataclasses.replace(forward.cache, length=cache.length + counts)
  return forward._replace(cache=grown)


def begin_row(
  setup: interface.DecodeSetup,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  counts: arrays.Array,
  prompts: arrays.Array,
  rows: loop.Rows,
) -> loop.DecodeState:
  """Reads the last chunk of prompts and draws the first token.

  Args:
    setup: model, drafter and configs.
    params: weights.
    cache: all chunks but the last.
    tokens: [B, C] int32, the last chunk.
    counts: [B] int32 valid entries of `tokens`, at least 1.
    prompts: [B, T] int32, whole.
    rows: what each of them asks for.
  """
  forward = read_chunk(setup, params, cache, tokens, counts)
  own = setup._replace(prompt_model=setup.chunk_model or setup.model)
  lengths = forward.cache.length
  return loop.begin(own, params, forward, counts - 1, prompts, lengths, rows)


def empty(row: Any, num_slots: int) -> Any:
  """As many free slots, of the kind that a batch of one row takes."""
  spread = jax.tree.map(lambda x: x[jnp.zeros(num_slots, jnp.int32)], row)
  free = jnp.full(num_slots, stopping.FREE, spread.finish_reason.dtype)
  return dataclasses.replace(spread, finish_reason=free)


def insert(slots: Any, row: Any, slot: arrays.Array) -> Any:
  """The slots [B, ...] with a batch of one row, [1, ...], in one of them."""
  put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(
    all_, one[0], slot, axis=0
  )
  return jax.tree.map(put, slots, row)


def release(
  state: loop.DecodeState, is_released: arrays.Array
) -> loop.DecodeState:
  """The state with the slots `is_released` [B] bool free."""
  reason = jnp.where(is_released, stopping.FREE, state.finish_reason)
  return dataclasses.replace(state, finish_reason=reason)


class Seen(NamedTuple):
  """What the host sees of the slots between two calls, as numpy.

  Attributes:
    tokens: [B, max_new] int32.
    num_tokens: [B] int32.
    finish_reason: [B] int32, see `stopping.REASONS`.
    calls: [B] int32.
  """

  tokens: np.ndarray
  num_tokens: np.ndarray
  finish_reason: np.ndarray
  calls: np.ndarray


class SlotDecoder:
  """The compiled programs of one running batch, and its state on the device.

  Attributes:
    num_compilations: programs that were traced so far.
  """

  def __init__(
    self,
    setup: interface.DecodeSetup,
    *,
    num_slots: int,
    chunk: int,
    partitioner: partitioning.Partitioner | None = None,
  ):
    """Compiles nothing yet.

    Args:
      setup: model, drafter and sizes; `cfg.cache_length` S is a multiple of
        `chunk`, and the room for a prompt.
      num_slots: B.
      chunk: C, tokens of a prompt that one pass reads.
    """
    self.setup, self.num_slots, self.chunk = setup, num_slots, chunk
    self.num_compilations = 0
    part = partitioner or partitioning.local()
    own = lambda fun, **named: part.jit(self._counted(fun, setup), **named)
    plain = lambda fun, **named: part.jit(self._counted(fun), **named)
    self._read = own(_read_on, donate_argnums=1)
    self._begin = own(begin_row, donate_argnums=1)
    self._run = own(loop.run, donate_argnums=1)
    self._insert = plain(insert, donate_argnums=0)
    self._release = plain(release, donate_argnums=0)
    self._empty = plain(empty, static_argnums=1)
    self._start = plain(_restart, donate_argnums=0)
    self._state: Any = None
    self._spare: Any = None
    self._is_greedy = np.ones(num_slots, bool)

  def _counted(self, fun: Callable[..., Any], *first: Any):
    """`fun` after its first arguments; every trace counts as a compilation."""

    @functools.wraps(fun)
    def traced(*args, **kwargs):
      self.num_compilations += 1
      return fun(*first, *args, **kwargs)

    return traced

  def warm_up(self, params: Any, row_params: Any, rows: loop.Rows) -> None:
    """Compiles all there is, and makes the slots.

    Args:
      params: weights for all slots.
      row_params: weights for one row.
      rows: any request, as a batch of one.
    """
    cfg = self.setup.cfg
    self._spare = jax.jit(
      lambda: self.setup.model.init_cache(1, cfg.cache_length)
    )()
    # Two chunks, where there is room for more than one.
    prompt = [0] * min(self.chunk + 1, cfg.cache_length)
    reading = Reading(self, row_params, prompt, rows)
    while (row := reading.advance()) is None:
      pass
    self._state = self._empty(row, self.num_slots)
    self.insert(row, 0, is_greedy=False)
    self.advance(params, 0)
    self.release([0])
    self._is_greedy[:] = True
    self.advance(params, 0)
    jax.block_until_ready(self._state)

  def read(
    self, row_params: Any, prompt: Sequence[int], rows: loop.Rows
  ) -> 'Reading':
    """Begins to read a prompt; one at a time.

    Args:
      row_params: weights for this row.
      prompt: token ids.
      rows: what it asks for, as a batch of one, with settings and edits.
    """
    return Reading(self, row_params, prompt, rows)

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

  def give_back(self, cache: cache_lib.Cache) -> None:
    """Keeps the cache of a row that is no longer read for the next one."""
    self._spare = self._start(cache)

  def release(self, slots: Sequence[int]) -> None:
    """Frees slots; what their rows did is lost."""
    is_released = np.zeros(self.num_slots, bool)
    is_released[list(slots)] = True
    self._state = self._release(self._state, is_released)
    self._is_greedy[list(slots)] = True

  def advance(
    self, params: Any, max_steps: int, *, min_running: int = 1
  ) -> None:
    """At most so many steps; returns before the device is done.

    Args:
      params: weights for all slots.
      max_steps: the quantum.
      min_running: wakes when fewer rows run.
    """
    state = self._state
    settings, edits = state.settings, state.edits
    is_plain = bool(self._is_greedy.all())
    if is_plain:  # another program, without the rest
      state = dataclasses.replace(state, settings=None, edits=None)
    state = self._run(
      params,
      state,
      np.int32(max_steps),
      min_running=np.int32(min_running),
    )
    if is_plain:
      state = dataclasses.replace(state, settings=settings, edits=edits)
    self._state = state

  def look(self) -> Seen:
    """Waits for the device, and copies what the host wants to know."""
    state = self._state
    # Copied, as the next call consumes the state.
    return Seen(
      np.array(state.tokens),
      np.array(state.num_tokens),
      np.array(state.finish_reason),
      np.array(state.calls),
    )

  def accept_lengths(self, slot: int, calls: int) -> list[int]:
    """Accept length of each call that a slot's row took part in."""
    return np.asarray(self._state.accept_lengths)[slot, :calls].tolist()

  def _take_spare(self) -> cache_lib.Cache:
    spare, self._spare = self._spare, None
    assert spare is not None, 'one prompt is read at a time'
    return spare


class Reading:
  """A prompt that is being read, chunk by chunk."""

  def __init__(
    self,
    decoder: SlotDecoder,
    row_params: Any,
    prompt: Sequence[int],
    rows: loop.Rows,
  ):
    self._decoder, self._params, self._rows = decoder, row_params, rows
    self._prompt = np.asarray(prompt, np.int32)
    self._num_read = 0
    self._cache = decoder._take_spare()

  def advance(self) -> loop.DecodeState | None:
    """Reads one chunk; the row if it was the last."""
    decoder, size = self._decoder, self._decoder.chunk
    part = self._prompt[self._num_read : self._num_read + size]
    tokens = np.zeros((1, size), np.int32)
    tokens[0, : len(part)] = part
    count = np.array([len(part)], np.int32)
    self._num_read += len(part)
    if self._num_read < len(self._prompt):
      self._cache = decoder._read(self._params, self._cache, tokens, count)
      return None
    whole = np.zeros((1, decoder.setup.cfg.cache_length), np.int32)
    whole[0, : len(self._prompt)] = self._prompt
    return decoder._begin(
      self._params, self._cache, tokens, count, whole, self._rows
    )

  def abandon(self) -> None:
    """Stops reading."""
    self._decoder.give_back(self._cache)


def _read_on(setup, params, cache, tokens, counts):
  """The cache after a chunk."""
  return read_chunk(setup, params, cache, tokens, counts).cache


def _restart(cache):
  """A cache that holds nothing any more."""
  return dataclasses.replace(cache, length=jnp.zeros_like(cache.length))
