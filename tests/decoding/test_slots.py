# SPDX-License-Identifier: Apache-2.0
"""Rows that enter and leave a running batch say what they say alone."""

import functools

import numpy as np
import pytest
import table_lm
import tiny

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  batch_sizes,
  decoder as decoder_lib,
  edits,
  interface,
  loop,
  slots,
  stopping,
  transformer_fns,
  verify,
)
from specstream_jax.drafters import lookahead, none, prompt_lookup, streams

MAX_NEW, CHUNK, NUM_SLOTS, NUM_IDS = 17, 5, 3, 4
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW, prompt_bucket=20, cache_length=45, eos_ids=(3,)
)
TREE = config.TreeConfig('best_first', depth=3, branching=3, num_nodes=7)
DRAFTERS = {
  'none': none.NoDraft,
  'streams': lambda: streams.Streams(TREE, table_lm.NUM_STREAMS),
  'prompt_lookup': lambda: prompt_lookup.PromptLookup(
    config_drafting.DrafterConfig('prompt_lookup', num_guesses=2)
  ),
  'lookahead': lambda: lookahead.Lookahead(
    config_drafting.DrafterConfig('lookahead')
  ),
}
SAMPLING = (
  config.SamplingConfig(),
  config.SamplingConfig(0.9, top_k=7),
  config.SamplingConfig(presence_penalty=1.0, frequency_penalty=0.4),
  config.SamplingConfig(1.2, min_p=0.05, repetition_penalty=1.3),
  config.SamplingConfig(logit_bias={3: -100.0}, ignore_eos=True),
)


def rows_of(cfg, limit, seed, *, eos_ids=(3,), has_drafts=True, is_bare=False):
  """A request as a batch of one row; a bare one is greedy and no more."""
  ids = np.full((1, NUM_IDS), -1, np.int32)
  if not cfg.ignore_eos:
    ids[0, : len(eos_ids)] = eos_ids
  return loop.Rows(
    np.array([limit], np.int32),
    ids,
    sampling.row_keys(seed, [0]),
    None if is_bare else sampling.row_settings([cfg]),
    None if is_bare else edits.request([cfg]),
    np.array([has_drafts]),
  )


class Batch:
  """A schedule of its own: who waits enters as soon as a slot is free."""

  def __init__(self, setup, params, quantum):
    self.decoder = slots.SlotDecoder(setup, num_slots=NUM_SLOTS, chunk=CHUNK)
    self.params, self.quantum = params, quantum
    first = rows_of(SAMPLING[0], 2, 0)
    self.decoder.warm_up(lambda shape, has_drafts: params, params, first)

  def run(self, asked):
    """Tokens, reason and calls of each (prompt, sampling, limit, seed)."""
    waiting, running, done = list(enumerate(asked)), {}, {}
    while waiting or running:
      free = [s for s in range(NUM_SLOTS) if s not in running]
      if waiting and free:
        number, (prompt, cfg, limit, seed) = waiting.pop(0)
        rows = rows_of(cfg, limit, seed)
        reading = self.decoder.read(self.params, prompt, rows)
        while (row := reading.advance()) is None:
          pass
        self.decoder.insert(row, free[0], is_greedy=cfg.is_plain_greedy)
        running[free[0]] = number
      self.decoder.advance(self.params, self.quantum, min_running=len(running))
      seen = self.decoder.look()
      for slot in [s for s in running if seen.finish_reason[s]]:
        number, calls = running.pop(slot), int(seen.calls[slot])
        done[number] = (
          seen.tokens[slot, : seen.num_tokens[slot]].tolist(),
          stopping.REASONS[seen.finish_reason[slot]],
          self.decoder.accept_lengths(slot, calls),
        )
        self.decoder.release([slot])
    return [done[i] for i in range(len(asked))]


def requests(seed, count, vocab_size):
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(0, vocab_size, int(rng.integers(1, 20))).tolist(),
      SAMPLING[int(rng.integers(0, len(SAMPLING)))],
      int(rng.integers(1, MAX_NEW + 1)),
      int(rng.integers(0, 99)),
    )
    for _ in range(count)
  ]


def alone(decoder, params, asked):
  """The same from a decoder of one batch."""
  found = []
  for prompt, cfg, limit, seed in asked:
    made = decoder.generate(params, [prompt], limit, seed=seed, sampling=cfg)
    found.append(
      (made.tokens[0], made.finish_reasons[0], made.accept_lengths[0])
    )
  return found


@functools.cache
def _batch(name):
  setup = interface.DecodeSetup(
    table_lm.MODEL, table_lm.MODEL, DRAFTERS[name](), CFG, verify.walk
  )
  return Batch(setup, table_lm.make_params(4, quality=0.8), quantum=4)


@functools.cache
def _plain():
  return decoder_lib.Decoder(table_lm.MODEL, none.NoDraft(), CFG)


@pytest.mark.parametrize(
  'name',
  [
    'streams',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in DRAFTERS
      if name != 'streams'
    ),
  ],
)
def test_tokens_are_those_of_each_row_alone(name):
  params = table_lm.make_params(4, quality=0.8)
  batch = _batch(name)
  before = batch.decoder.num_compilations
  asked = requests(7, 25, table_lm.VOCAB_SIZE)
  got, want = batch.run(asked), alone(_plain(), params, asked)
  assert [one[:2] for one in got] == [one[:2] for one in want]
  reasons = {reason for _, reason, _ in got}
  assert reasons == {'eos', 'length'}
  accepted = sum(sum(lengths) for *_, lengths in got)
  assert (accepted > 2) == (name != 'none')
  for tokens, _, lengths in got:
    assert len(tokens) == 1 + len(lengths) + sum(lengths)
  assert batch.decoder.num_compilations == before


@functools.cache
def _transformer(schedule, keep_nodes):
  built, base, adapter = tiny.model()
  fns = functools.partial(transformer_fns.model_fns, built)
  tree = config.TreeConfig('best_first', 3, 3, 11, keep_nodes=keep_nodes)
  setup = interface.DecodeSetup(
    fns(schedule, keep_nodes),
    fns(is_prompt=True),
    streams.Streams(tree, 3),
    CFG,
    verify.walk,
    fns(),
  )
  return setup, transformer_fns.Params(base, adapter)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('schedule', 'keep_nodes'), [('deferred', 5), ('parallel', 0)]
)
def test_the_transformer_reads_prompts_in_chunks(schedule, keep_nodes):
  setup, params = _transformer(schedule, keep_nodes)
  asked = requests(1, 9, tiny.CONFIG.vocab_size)
  whole = decoder_lib.Decoder(
    setup.model, setup.drafter, CFG, prompt_model=setup.prompt_model
  )
  batch = Batch(setup, params, quantum=3)
  # Accept lengths, too: the state behind the drafts is that of a whole prompt.
  assert batch.run(asked) == alone(whole, params, asked)


def _seat(decoder, params, limits, *, has_drafts, is_bare=False):
  """Fills slots with rows that end at their limits alone."""
  cfg = config.SamplingConfig(ignore_eos=True)
  for slot, (limit, drafts) in enumerate(zip(limits, has_drafts, strict=True)):
    rows = rows_of(cfg, limit, 0, has_drafts=drafts, is_bare=is_bare)
    row = decoder.read(params, [1, 2], rows).advance()
    decoder.insert(row, slot, is_greedy=True)


def test_a_row_that_drafts_not_says_the_same_in_more_calls():
  params, decoder = (
    table_lm.make_params(4, quality=1.0),
    _batch('streams').decoder,
  )
  _seat(decoder, params, [13, 13], has_drafts=[True, False])
  decoder.advance(params, 100)
  seen = decoder.look()
  decoder.release([0, 1])
  assert seen.num_tokens[:2].tolist() == [13, 13]
  assert seen.tokens[0].tolist() == seen.tokens[1].tolist()
  assert seen.calls[1] == 12 > seen.calls[0]
  assert decoder.accept_lengths(1, 12) == [0] * 12


def test_the_loop_wakes_when_a_row_ends_or_the_quantum_is_over():
  params, decoder = table_lm.make_params(4), _batch('streams').decoder
  _seat(decoder, params, [5, 16], has_drafts=[False, False])
  count = lambda: decoder.look().num_tokens[:2].tolist()
  decoder.advance(params, 2, min_running=2)
  assert count() == [3, 3]
  decoder.advance(params, 100, min_running=2)
  assert count() == [5, 5]
  decoder.advance(params, 3)
  assert count() == [5, 8]
  decoder.release([1])
  decoder.advance(params, 3)
  assert count() == [5, 8]
  reasons = decoder.look().finish_reason[:2].tolist()
  assert reasons == [stopping.LENGTH, stopping.FREE]
  decoder.release([0])


@functools.cache
def _growing():
  """A batch of 1 or 3 slots that may do without drafts; greedy alone."""
  setup = _batch('streams').decoder.setup
  plain = setup._replace(drafter=none.NoDraft())
  made = slots.SlotDecoder(
    setup, num_slots=NUM_SLOTS, chunk=CHUNK, sizes=(1,), plain=plain
  )
  params = table_lm.make_params(4, quality=1.0)
  first = rows_of(SAMPLING[0], MAX_NEW, 0, is_bare=True)
  made.warm_up(lambda shape, has_drafts: params, params, first, is_timed=True)
  return made, params


def test_a_batch_that_grows_shrinks_and_drafts_at_times():
  decoder, params = _growing()
  before, rng = decoder.num_compilations, np.random.default_rng(0)
  asked = [
    (prompt, SAMPLING[0], limit, seed)
    for prompt, _, limit, seed in requests(5, 30, table_lm.VOCAB_SIZE)
  ]
  want = alone(_plain(), params, asked)
  waiting, running, seen_sizes = list(enumerate(asked)), {}, set()
  for turn in range(400):
    most = (1, 3, 2, 3)[turn // 3 % 4]
    while waiting and len(running) < most:
      number, (prompt, cfg, limit, seed) = waiting.pop(0)
      rows = rows_of(cfg, limit, seed, is_bare=True)
      reading = decoder.read(params, prompt, rows)
      while (row := reading.advance()) is None:
        pass
      _resize(decoder, running, len(running) + 1)
      slot = next(s for s in range(decoder.size) if s not in running)
      decoder.insert(row, slot, is_greedy=True)
      running[slot] = number
    _resize(decoder, running, len(running))
    seen_sizes.add(decoder.size)
    decoder.advance(params, 2, has_drafts=bool(rng.integers(0, 2)))
    seen = decoder.look()
    for slot in [s for s in running if seen.finish_reason[s]]:
      tokens, reason, _ = want[running.pop(slot)]
      assert seen.tokens[slot, : seen.num_tokens[slot]].tolist() == tokens
      assert stopping.REASONS[seen.finish_reason[slot]] == reason
      decoder.release([slot])
    if not (waiting or running):
      break
  assert not waiting and not running and seen_sizes == {1, 3}
  assert decoder.num_compilations == before


def _resize(decoder, running, num_rows):
  """Moves rows that there is no slot for any more."""
  size = next(size for size in decoder.sizes if size >= num_rows)
  if size == decoder.size:
    return
  free = (s for s in range(size) if s not in running)
  moves = {s: next(free) for s in running if s >= size}
  decoder.resize(size, moves)
  for old, new in moves.items():
    running[new] = running.pop(old)


def test_steps_without_drafts_give_a_token_each():
  decoder, params = _growing()
  decoder.resize(3, {})
  _seat(decoder, params, [14, 14], has_drafts=[True, True], is_bare=True)
  decoder.advance(params, 4, has_drafts=False)
  assert decoder.look().num_tokens[:2].tolist() == [5, 5]
  decoder.advance(params, 1)  # verifies the root alone, and drafts
  assert decoder.look().num_tokens[:2].tolist() == [6, 6]
  decoder.advance(params, 1)
  assert min(decoder.look().num_tokens[:2]) > 7
  decoder.advance(params, 100, has_drafts=False)
  assert decoder.accept_lengths(0, 5) == [0, 0, 0, 0, 0]
  decoder.release([0, 1])


def test_steps_are_timed_by_size_with_drafts_and_without():
  decoder, _ = _growing()
  assert set(decoder.costs) == {batch_sizes.Shape(1), batch_sizes.Shape(3)}
  for cost in decoder.costs.values():
    assert cost.plain > 0 and cost.drafting > 0
    assert cost.break_even == cost.drafting / cost.plain


def test_default_sizes():
  sizes = {n: batch_sizes.default(n) for n in (1, 2, 8, 16, 33)}
  assert sizes == {
    1: (1,), 2: (1, 2), 8: (1, 8), 16: (1, 8, 16), 33: (1, 8, 33)
  }  # fmt: skip
