# SPDX-License-Identifier: Apache-2.0
"""The host's side of a batch that rows enter and leave; nothing compiles."""

import dataclasses
import itertools
import types
from typing import Any

import jax
import numpy as np
import pytest
import table_lm

from specstream_jax import config, sampling
from specstream_jax.decoding import (
  batch_sizes,
  interface,
  loop,
  slots,
  verify,
)
from specstream_jax.drafters import none

CFG = config.DecodeConfig(
  max_new_tokens=7, prompt_bucket=20, cache_length=20, eos_ids=(3,)
)


def _decoder(*, has_plain=False, kinds=()) -> Any:
  setup = interface.DecodeSetup(
    table_lm.MODEL, table_lm.MODEL, none.NoDraft(), CFG, verify.walk
  )
  plain = setup if has_plain else None
  solo = batch_sizes.Solo(setup, plain, kinds) if kinds else batch_sizes.Solo()
  return slots.SlotDecoder(
    setup, num_slots=3, chunk=5, sizes=(1,), plain=plain, solo=solo
  )


def test_programs_are_counted_by_size_and_kind():
  decoder = _decoder()
  assert (decoder.sizes, decoder.size, decoder.num_steps) == ((1, 3), 3, 4)
  assert _decoder(has_plain=True).num_steps == 8
  # Of each kind that drafts, and once what drafts nothing.
  assert _decoder(has_plain=True, kinds=(4, 9)).num_steps == 8 + 4 + 8
  assert _decoder(kinds=(4, 9)).num_steps == 4 + 8
  assert _decoder(has_plain=True).has_plain and not _decoder().has_plain
  assert decoder.num_compilations == 0


def test_a_trace_is_counted_once_and_told():
  decoder, told = _decoder(), []
  decoder.on_compile = told.append

  def double(factor, x):
    return factor * x

  assert decoder._counted(double, 2)(np.ones(3)).tolist() == [2, 2, 2]
  assert (decoder.num_compilations, told) == (1, ['double'])


def test_a_cache_that_starts_again_holds_nothing():
  cache = table_lm.init_cache(1, 20)
  used = dataclasses.replace(cache, length=cache.length + 5)
  assert slots._restart(used).length.tolist() == [0]
  assert slots._zeros(used).length.tolist() == [0]


def test_slots_that_move_keep_how_they_draw():
  decoder = _decoder()
  decoder._state, decoder._is_greedy[1:] = 'state', False
  decoder._resize = lambda *args: args
  decoder.resize(1, {2: 0})
  state, index, is_free = decoder._state
  assert (state, index.tolist(), is_free.tolist()) == ('state', [2], [False])
  assert decoder.size == 1
  assert decoder._is_greedy.tolist() == [False, False, True]
  decoder.resize(3, {})
  _, index, is_free = decoder._state
  assert index.tolist() == [0, 0, 0] and decoder.size == 3
  assert is_free.tolist() == [False, True, True]


def test_slots_that_are_released_draw_greedily_again():
  decoder = _decoder()
  decoder._is_greedy[:], decoder.size = False, 2
  decoder._release = lambda state, is_released: is_released.tolist()
  decoder.release([1])
  assert decoder._state == [False, True]
  assert decoder._is_greedy.tolist() == [False, True, False]


@dataclasses.dataclass(frozen=True)
class State:
  settings: Any = 'settings'
  edits: Any = 'edits'
  path: tuple[Any, ...] = ()


@pytest.mark.parametrize('is_greedy', [True, False])
@pytest.mark.parametrize(
  ('asked', 'want'),
  [
    ({}, (False, True)),
    ({'has_drafts': False}, (False, False)),
    ({'kind': 9}, (True, True)),
    ({'kind': 9, 'has_drafts': False}, (True, False)),
    ({'kind': 0}, (True, True)),
  ],
)
def test_which_program_takes_the_steps(is_greedy, asked, want):
  decoder = _decoder()
  decoder._state, decoder._is_greedy[1] = State(), is_greedy

  def program(name):
    def run(params, state, max_steps, *, min_running):
      assert (params, max_steps, min_running) == ('params', 9, 1)
      path = *state.path, name, state.settings, state.edits
      return dataclasses.replace(state, path=path)

    return run

  keys = itertools.product((False, True), repeat=2)
  decoder._steps = {key: program(key) for key in keys}
  decoder.advance('params', 9, **asked)
  drawn = (None, None) if is_greedy else ('settings', 'edits')
  assert decoder._state == State(path=(want, *drawn))


@pytest.mark.parametrize(('calls', 'want'), [((1, 3), 1.0), ((0, 0), 3.0)])
def test_a_step_is_timed_by_the_best_of_three(monkeypatch, calls, want):
  clock = iter((0.0, 6.0, 10.0, 19.0, 20.0, 23.0))
  monkeypatch.setattr(slots.time, 'perf_counter', lambda: next(clock))
  decoder, seen = _decoder(), []
  decoder._insert = lambda state, row, slot: seen.append((row, int(slot)))
  decoder.advance = lambda *args, **named: seen.append((args, named))
  decoder.look = lambda: types.SimpleNamespace(calls=np.array(calls))
  shape = batch_sizes.Shape(3, 9)
  params = lambda *given: given
  assert decoder._seconds(shape, params, 'row', False) == want
  once = [('row', 0), ('row', 1), ('row', 2)]
  taken = (((shape, False), 3), {'kind': 9, 'has_drafts': False})
  assert seen == 3 * [*once, taken]
  with pytest.raises(StopIteration):
    next(clock)


class _Prefixes:
  def __init__(self, found):
    self.found, self.log = found, []

  def keys(self, owner, prompt):
    assert owner == 8
    return ['k0', 'k1', 'k2']

  def find(self, keys, length):
    assert (keys, length) == (['k0', 'k1', 'k2'], 12)
    return self.found

  def make_room(self):
    self.log.append('room')

  def add(self, key, kept):
    self.log.append((key, kept))


def _host(found=()) -> Any:
  """A decoder whose caches are lists of what was done to them."""
  return types.SimpleNamespace(
    chunk=5,
    setup=types.SimpleNamespace(cfg=CFG),
    prefixes=_Prefixes(list(found)),
    _take_spare=list,
    _place=lambda cache, part, start: [*cache, (part, int(start))],
    _read=lambda params, cache, tokens, count: [
      *cache,
      (tokens.tolist(), count.tolist()),
    ],
    _take=lambda cache, start, size: (len(cache), int(start), size),
    _begin=lambda *args: args,
  )


PROMPT = list(range(1, 13))


@pytest.mark.parametrize('owner', [None, 8])
def test_a_prompt_is_read_in_chunks(owner):
  host = _host()
  reading = slots.Reading(host, 'params', PROMPT, 'rows', owner)
  assert reading.num_found == 0
  assert reading.advance() is None and reading.advance() is None
  made: Any = reading.advance()
  params, cache, tokens, count, whole, rows = made
  assert (params, rows) == ('params', 'rows')
  assert cache == [([[1, 2, 3, 4, 5]], [5]), ([[6, 7, 8, 9, 10]], [5])]
  assert tokens.tolist() == [[11, 12, 0, 0, 0]] and count.tolist() == [2]
  assert whole.tolist() == [PROMPT + [0] * 8]
  kept = ['room', ('k0', (1, 0, 5)), 'room', ('k1', (2, 5, 5))]
  assert host.prefixes.log == ([] if owner is None else kept)


def test_what_was_found_is_not_read_again():
  host = _host(['a', 'b'])
  reading = slots.Reading(host, 'params', PROMPT, 'rows', 8)
  assert reading.num_found == 10
  made: Any = reading.advance()
  assert made[1] == [('a', 0), ('b', 5)]
  assert made[2].tolist() == [[11, 12, 0, 0, 0]]


def test_a_prompt_that_ends_with_a_chunk_is_begun_with_it():
  reading = slots.Reading(_host(), 'params', PROMPT[:10], 'rows')
  assert reading.advance() is None
  made: Any = reading.advance()
  assert made[2].tolist() == [[6, 7, 8, 9, 10]] and made[3].tolist() == [5]


def test_a_cache_that_may_hold_no_numbers_is_emptied():
  decoder = _decoder()
  decoder._start = lambda cache: ('started', cache)
  decoder._renew = lambda cache: ('renewed', cache)
  decoder.give_back('cache')
  assert decoder._take_spare() == ('started', 'cache')
  decoder._spare = 'cache'
  slots.Reading(decoder, 'params', PROMPT, 'rows').abandon()
  assert decoder._take_spare() == ('renewed', 'cache')


@pytest.mark.parametrize('is_greedy', [True, False])
def test_a_row_gives_its_cache_back_when_it_is_seated(is_greedy):
  decoder = _decoder()
  decoder._is_greedy[2] = not is_greedy
  decoder._insert = lambda state, row, slot: (state, row, int(slot))
  decoder._start = lambda cache: ('started', cache)
  decoder._state = 'state'
  row = types.SimpleNamespace(cache='cache')
  decoder.insert(row, 2, is_greedy=is_greedy)
  assert decoder._state == ('state', row, 2)
  assert decoder._is_greedy.tolist() == [True, True, is_greedy]
  assert decoder._spare == ('started', 'cache')


@pytest.mark.parametrize('is_timed', [None, True])
@pytest.mark.parametrize('prefix_bytes', [0, 9])
def test_all_there_is_is_run_once(monkeypatch, is_timed, prefix_bytes):
  decoder, log = _decoder(has_plain=True, kinds=(9,)), []
  row = types.SimpleNamespace(cache='row')
  steps = iter((None, row))
  monkeypatch.setattr(
    slots,
    'Reading',
    lambda *args: (
      log.append(args[1:]) or types.SimpleNamespace(advance=lambda: next(steps))
    ),
  )
  decoder.prefixes = types.SimpleNamespace(most_bytes=prefix_bytes)
  decoder._make_spare = lambda: 'made'
  decoder._take = lambda cache, start, size: (cache, int(start), size)
  decoder._place = lambda cache, part, start: (cache, part, int(start))
  decoder._renew = lambda cache: log.append(cache) or 'renewed'
  decoder._warm_up_size = lambda *args: log.append(args)
  decoder._compile_steps = lambda shape, params: log.append((shape, params))
  decoder._seconds = lambda shape, params, row, drafts: shape.kind + drafts
  decoder.release = lambda slots: log.append(list(slots))
  decoder.give_back = log.append
  timed = {} if is_timed is None else {'is_timed': is_timed}
  decoder.warm_up('of slots', 'params', 'rows', **timed)
  spare = ('made', ('made', 0, 5), 0) if prefix_bytes else 'made'
  assert log == [
    spare,
    ('params', [0] * 6, 'rows'),  # two chunks
    (1, row),
    ((1, -1), 'of slots'),
    ((1, 9), 'of slots'),
    [0],
    (3, row),
    ((3, -1), 'of slots'),
    ((3, 9), 'of slots'),
    [0, 1, 2],
    'row',
  ]
  assert decoder._spare == 'renewed'
  costs = {
    (size, kind): (kind, kind + 1) for size in (1, 3) for kind in (-1, 9)
  }
  assert decoder.costs == (costs if is_timed else {})


def test_a_size_is_run_with_drafts_and_without_greedy_and_not():
  decoder, log = _decoder(has_plain=True, kinds=(9,)), []
  decoder._empty = lambda row, size: ('empty', row, size)
  decoder._insert = lambda *args: args
  decoder._resize = lambda state, index, is_free: log.append(
    (state, index.tolist(), is_free.tolist())
  )
  decoder.advance = lambda params, steps, *, kind, has_drafts: log.append(
    (decoder._is_greedy[:2].tolist(), params, steps, kind, has_drafts)
  )
  decoder._warm_up_size(1, 'row')
  assert decoder.size == 1
  assert decoder._state == (('empty', 'row', 1), 'row', 0)
  assert log == [(('empty', 'row', 1), [0, 0, 0], [False, False, False])]
  for kind in (batch_sizes.SIDE_BY_SIDE, 9):
    log.clear()
    shape = batch_sizes.Shape(1, kind)
    decoder._compile_steps(shape, lambda *given: given)
    assert log == [
      ([is_greedy, True], (shape, way), 0, kind, way)
      for is_greedy in (False, True)
      for way in (False, True)
    ]
  assert _decoder()._ways(batch_sizes.Shape(1)) == [True]


def _donated(program, *args, **named):
  """Of each array argument, whether its memory is given to the result."""
  info, _ = program.lower(*args, **named).args_info
  flags = [{leaf.donated for leaf in jax.tree.leaves(one)} for one in info]
  assert all(len(one) == 1 for one in flags)
  return [one.pop() for one in flags]


def test_what_is_replaced_gives_its_memory():
  """The cache and the slots; weights, a row and what was found stay."""
  decoder = _decoder(has_plain=True, kinds=(9,))
  params, cache = table_lm.make_params(0), table_lm.init_cache(1, 20)
  one, tokens = np.ones(1, np.int32), np.zeros((1, 5), np.int32)
  reading = params, cache, tokens, one
  assert _donated(decoder._read, *reading) == [False, True, False, False]
  asked: Any = loop.Rows(one, tokens, sampling.row_keys(0, [0]))
  begin = *reading, np.zeros((1, 20), np.int32), asked
  donated = [False, True, *[False] * 4]
  assert _donated(decoder._begin, *begin) == donated
  row = jax.eval_shape(decoder._begin, *begin)
  state = jax.eval_shape(lambda row: decoder._empty(row, 3), row)
  assert len(decoder._steps) == 4
  for run in decoder._steps.values():
    found = _donated(run, params, state, np.int32(9), min_running=np.int32(1))
    assert found == [False, True, False]
  mask, index = np.zeros(3, bool), np.zeros(3, np.int32)
  assert (
    _donated(decoder._insert, state, row, np.int32(0)) == [True] + [False] * 2
  )
  assert _donated(decoder._release, state, mask) == [True, False]
  assert _donated(decoder._resize, state, index, mask) == [False] * 3
  assert (
    _donated(decoder._start, cache) == _donated(decoder._renew, cache) == [True]
  )
  part = jax.eval_shape(lambda: decoder._take(cache, np.int32(0), 5))
  assert _donated(decoder._place, cache, part, np.int32(0)) == [
    True,
    False,
    False,
  ]
