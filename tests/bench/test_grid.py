# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a comparison, on measurements small enough to do by hand.

Three prompts in batches of two, two passes. Plain decoding emits 4, 3 and 5
tokens in 3, 2 and 4 calls (the prompt pass gives the first); the streams need
1, 2 and 2 calls and accept (2), (0, 0) and (1, 1).
"""

import dataclasses
import io

import numpy as np
import pytest
import tqdm

from specstream_jax.bench import (
  grid,
  journal as journal_lib,
  sides as sides_lib,
)
from specstream_jax.data import questions
from specstream_jax.decoding import decoder as decoder_lib

TOKENS = [[7, 8, 9, 6], [5, 4, 3], [2, 1, 2, 1, 0]]
PLAIN_CALLS, CALLS = [3, 2, 4], [1, 2, 2]
ACCEPTS = [[2], [0, 0], [1, 1]]
BATCHES = [[0, 1], [2, 2]]
CELL = grid.Cell('t/test', 0.0, 2)
ASKED = [questions.Question(i, 't', (str(i),)) for i in range(3)]
PLAN = grid.Plan({'t/test': ASKED}, (CELL,), repeats=2, bucket=8)
# [pass][batch]
PLAIN_SECONDS, SECONDS = [[0.6, 0.8], [0.3, 1.6]], [[0.4, 0.5], [0.2, 0.5]]
PLAIN_PREFILL, PREFILL = [[0.1, 0.2], [0.1, 0.4]], [[0.2, 0.2], [0.2, 0.3]]
# The first batch compiles; the streams were stopped and went on in pass 1.
COMPILE = {'none': [[0.5, 0], [0, 0]], 'streams': [[3.0, 0], [0, 5.0]]}


def _entries():
  """The journal of the docstring."""
  measured = {
    'none': (PLAIN_CALLS, [[0] * n for n in PLAIN_CALLS]),
    'streams': (CALLS, ACCEPTS),
  }
  seconds = {
    'none': (PLAIN_SECONDS, PLAIN_PREFILL),
    'streams': (SECONDS, PREFILL),
  }
  entries = journal_lib.Memory()
  for name, (calls, accepts) in measured.items():
    for repeat in range(2):
      for number, rows in enumerate(BATCHES):
        decode, prefill = (x[repeat][number] for x in seconds[name])
        entries[_key(name, repeat, number)] = {
          'tokens': [TOKENS[row] for row in rows],
          'accept_lengths': [accepts[row] for row in rows],
          'calls': [calls[row] for row in rows],
          'decode_seconds': decode,
          'prefill_seconds': prefill,
          'compile_seconds': COMPILE[name][repeat][number],
          'bucket': 8,
        }
  return entries


def _key(name, repeat, number):
  return ('t/test', 0.0, 2, name, 0, repeat, number)


def _side(name, entries, plan=PLAN):
  runners = [_Runner('none', []), _Runner('streams', [])]
  made = grid.Bench(_Model(), plan, runners, entries)
  rows, side = made.collect(CELL, name)
  assert [row.index for row in rows] == [0, 1, 2][: len(side.tokens)]
  return side


def _sides():
  return _side('none', _entries()), _side('streams', _entries())


def _summary(plain=None, fast=None, max_depth=3):
  sides = _sides()
  return sides_lib.summarize(
    plain or sides[0],
    fast or sides[1],
    max_depth=max_depth,
    task='t/test',
    drafter='streams',
    tree={},
    schedule='deferred',
    dtype='float32',
    batch=2,
    lossy=False,
    quality={},
    samples=[],
  )


def test_sides_are_what_was_measured():
  plain, fast = _sides()
  assert plain.tokens == fast.tokens == TOKENS
  assert fast.accept_lengths == ACCEPTS
  assert plain.calls.tolist() == PLAIN_CALLS and fast.calls.tolist() == CALLS
  np.testing.assert_array_equal(plain.seconds, PLAIN_SECONDS)
  np.testing.assert_array_equal(fast.prefill_seconds, PREFILL)
  # A batch makes as many calls as its slowest row.
  assert plain.steps.tolist() == [3, 4] and fast.steps.tolist() == [2, 2]


def test_texts_come_from_the_last_pass():
  entries = _entries()
  key = _key('streams', 1, 0)
  entries[key] = entries[key] | {
    'tokens': [[1, 1, 1, 1], [2, 2, 2]],
    'accept_lengths': [[0, 1], [1]],
    'calls': [2, 1],
  }
  fast = _side('streams', entries)
  assert fast.tokens[:2] == [[1, 1, 1, 1], [2, 2, 2]]
  assert fast.accept_lengths == [[0, 1], [1], [1, 1]]
  assert fast.calls.tolist() == [2, 1, 2]


def test_a_program_that_was_compiled_twice_counts_once():
  plain, fast = _sides()
  assert plain.compile_seconds == pytest.approx(0.5)
  # Twice, for 3 and 5 seconds: the median.
  assert fast.compile_seconds == pytest.approx(4.0)
  entries = _entries()
  other = entries[_key('streams', 0, 1)]
  entries[_key('streams', 0, 1)] = other | {'bucket': 64, 'compile_seconds': 7}
  # Two programs.
  assert _side('streams', entries).compile_seconds == pytest.approx(11.0)


def test_a_third_pass():
  """Texts are of the last one."""
  entries = _entries()
  for number in range(2):
    entries[_key('none', 2, number)] = entries[_key('none', 1, number)] | {
      'tokens': [[1], [2]] if number == 0 else [[3], [3]],
      'decode_seconds': 9.0,
      'calls': [7 + number, 2],
    }
    entries[_key('streams', 2, number)] = entries[_key('streams', 1, number)]
  plan = dataclasses.replace(PLAN, repeats=3)
  plain = _side('none', entries, plan)
  assert plain.tokens == [[1], [2], [3]]
  assert plain.steps.tolist() == [7, 8]
  assert plain.seconds.tolist() == [*PLAIN_SECONDS, [9.0, 9.0]]
  # Two are asked for: the third, of another run, is none of theirs.
  assert _side('none', entries).seconds.tolist() == PLAIN_SECONDS


def test_what_a_rival_lacks_is_left_out_of_all():
  entries = _entries()
  del entries[_key('none', 1, 0)]
  fast = _side('streams', entries)
  # The second pass is not whole, so there is one.
  np.testing.assert_array_equal(fast.seconds, SECONDS[:1])
  assert fast.tokens == TOKENS
  del entries[_key('streams', 0, 1)]
  plain = _side('none', entries)
  np.testing.assert_array_equal(plain.seconds, [PLAIN_SECONDS[0][:1]])
  assert plain.tokens == TOKENS[:2] and plain.calls.tolist() == PLAIN_CALLS[:2]


def test_ratios():
  run = _summary()
  assert (run.calls, run.autoregressive_calls) == (5, 9)
  assert run.call_reduction_ratio == pytest.approx(9 / 5)
  assert run.speedup == pytest.approx(3.3 / 1.6)
  assert run.speedup_with_prefill == pytest.approx(4.1 / 2.5)
  assert run.equal_fraction == 1.0
  assert (run.num_prompts, run.new_tokens, run.repeats) == (3, 12, 2)


def test_step_cost_is_a_ratio_of_medians():
  run = _summary()
  # Per call 0.2, 0.2, 0.1 and 0.4 against 0.2, 0.25, 0.1 and 0.25 seconds.
  # Of means it would be 0.8 / 0.9.
  assert run.ms_per_call['autoregressive'] == pytest.approx(200)
  assert run.ms_per_call['speculative'] == pytest.approx(225)
  assert run.step_cost_ratio == pytest.approx(1.125)


def test_tokens_per_second_leave_out_the_prompt_passes():
  rates = _summary().tokens_per_second
  # 3 + 2 + 4 tokens in each of two passes.
  assert rates['autoregressive'] == pytest.approx(18 / 3.3)
  assert rates['speculative'] == pytest.approx(18 / 1.6)


def test_medians_of_the_prompt_pass():
  run = _summary()
  assert run.autoregressive_prefill_ms == pytest.approx(150)
  assert run.prefill_ms == pytest.approx(200)


def test_acceptance():
  run = _summary()
  # Rows: 1 + 2, 1 + 0, 1 + 1. Calls: 2 0 0 1 1.
  assert run.tokens_per_call_macro == pytest.approx(2.0)
  assert run.tokens_per_call_micro == pytest.approx(1.8)
  assert run.accept_length_histogram == [2, 2, 1, 0]
  assert run.per_depth_acceptance == pytest.approx([0.6, 0.2, 0.0])


def test_intervals_hold_the_ratios():
  run = _summary()
  for interval, ratio in (
    (run.call_reduction_ci95, run.call_reduction_ratio),
    (run.speedup_ci95, run.speedup),
  ):
    assert interval[0] < ratio < interval[1]
  # One prompt that needs no call on a side says nothing of the others.
  plain, fast = _sides()
  plain.calls, fast.calls = np.array([6, 6, 1]), np.array([3, 3, 0])
  assert _summary(plain, fast).call_reduction_ci95 == [2.0, 2.0]
  plain.calls, fast.calls = np.array([6, 6, 0]), np.array([3, 3, 1])
  assert _summary(plain, fast).call_reduction_ci95 == [2.0, 2.0]
  # One call is a call.
  interval = sides_lib._call_reduction_ci95(np.array([1, 3]), np.array([1, 1]))
  assert interval == [1.0, 3.0]
  fast.calls = np.zeros(3, int)
  assert sides_lib._call_reduction_ci95(plain.calls, fast.calls) == [0.0, 0.0]


def test_other_tokens_are_counted_by_the_prompt():
  plain, fast = _sides()
  fast.tokens = [TOKENS[0], [5, 4, 4], TOKENS[2]]
  assert _summary(plain, fast).equal_fraction == pytest.approx(2 / 3)


def test_batches_without_calls_cost_nothing():
  plain, fast = _sides()
  plain.steps = np.array([0, 4])
  run = _summary(plain, fast)
  # 0.8 / 4 and 1.6 / 4.
  assert run.ms_per_call['autoregressive'] == pytest.approx(300)
  plain.steps = np.array([1, 4])
  # 0.6, 0.2, 0.3 and 0.4.
  run = _summary(plain, fast)
  assert run.ms_per_call['autoregressive'] == pytest.approx(350)
  plain.steps = np.array([0, 0])
  with pytest.raises(ValueError, match=r'autoregressive_ms is 0\.0'):
    _summary(plain, fast)


def test_tokens_per_call_of_a_rival_without_accept_lengths():
  """An external one reports none: tokens and calls must do."""
  rates = sides_lib.tokens_per_call(TOKENS, CALLS)
  assert rates == pytest.approx({'micro': 9 / 5, 'macro': (3 + 1 + 2) / 3})
  # A row that ended with the prompt pass made no call.
  rates = sides_lib.tokens_per_call([[1], [1, 2, 3]], [0, 1])
  assert rates == {'micro': 2.0, 'macro': 2.0}
  nothing = {'micro': 0.0, 'macro': 0.0}
  assert sides_lib.tokens_per_call([[1]], [0]) == nothing
  plain, fast = _sides()
  fast.accept_lengths = [[], [], []]
  run = _summary(plain, fast)
  assert run.tokens_per_call_micro == pytest.approx(9 / 5)
  assert run.tokens_per_call_macro == pytest.approx(2.0)
  assert run.per_depth_acceptance == [0.0, 0.0, 0.0]


class _Model:
  """As many ids as a prompt says."""

  bos_id = None

  def encode_prompt(self, text):
    return [1] * (int(text) + 1)

  def decode_text(self, tokens, prompt, **named):
    del prompt, named
    return str(tokens)


class _Runner:
  """Remembers which rival decoded which batch."""

  is_external = False

  def __init__(self, label, seen):
    self.label, self.seen = label, seen

  def generate(self, prompts, row_ids, *, bucket, temperature, seed):
    assert (bucket, temperature, seed) == (16, 0.0, 0)
    assert [len(p) for p in prompts] == [LENGTHS[row] for row in row_ids]
    self.seen.append((self.label, tuple(row_ids)))
    is_cold = len([who for who, _ in self.seen if who == self.label]) == 1
    return decoder_lib.DecodeResult(
      [[1, 2]] * 2,
      np.array([1, 1]),
      [[0]] * 2,
      ['length'] * 2,
      0.25,
      2.5 if is_cold else 0.5,
    )


LENGTHS = [3, 9, 1, 4, 2]
FIVE = [
  questions.Question(i, 't', (str(n - 1),)) for i, n in enumerate(LENGTHS)
]
MEASURED = grid.Plan({'t/test': FIVE}, (CELL,), repeats=2, bucket=16)
FIRST, SECOND, LAST = (0, 1), (2, 3), (4, 4)


def _bench(journal, plan=MEASURED):
  """A benchmark, and what its rivals decode as they do."""
  seen = []
  runners = [_Runner('none', seen), _Runner('streams', seen)]
  return grid.Bench(_Model(), plan, runners, journal), seen


def _both(rows, *names):
  return [(name, rows) for name in names]


def test_rivals_take_turns_at_being_first():
  made, seen = _bench(journal_lib.Memory())
  made.run(progress=False)
  assert seen == [
    # Each once before, to compile.
    *_both(FIRST, 'none', 'none', 'streams', 'streams'),
    *_both(SECOND, 'streams', 'none'),
    *_both(LAST, 'none', 'streams'),
    *_both(FIRST, 'streams', 'none'),
    *_both(SECOND, 'none', 'streams'),
    *_both(LAST, 'streams', 'none'),
  ]


def test_the_baseline_is_first_where_its_answers_are_asked():
  two = [
    questions.Question(i, 't', (str(n), str(n))) for i, n in [(0, 2), (1, 8)]
  ]
  cell = grid.Cell('t/test', 0.0, 1)
  plan = grid.Plan({'t/test': two}, (cell,), repeats=2, bucket=16)
  made, _ = _bench(journal_lib.Memory(), plan)
  order = [(repeat, n, r.label) for repeat, n, r in made._visits(cell, 2)]
  assert order == [
    *[(0, 0, 'none'), (0, 0, 'streams'), (0, 1, 'none'), (0, 1, 'streams')],
    *[(1, 0, 'streams'), (1, 0, 'none'), (1, 1, 'none'), (1, 1, 'streams')],
  ]


def test_compile_time_is_the_cold_batch_less_a_warm_one():
  journal = journal_lib.Memory()
  made, _ = _bench(journal)
  made.run(progress=False)
  assert journal[_key('none', 0, 0)]['compile_seconds'] == 2.0
  assert journal[_key('none', 0, 1)]['compile_seconds'] == 0.0
  assert made.collect(CELL, 'streams')[1].compile_seconds == 2.0
  # A machine that got slower compiled in no time, not in less.
  made, seen = _bench(journal_lib.Memory())
  seen += [('none', FIRST), ('streams', FIRST)]
  made.run(progress=False)
  assert made.collect(CELL, 'none')[1].compile_seconds == 0.0


def test_a_short_batch_repeats_its_first_row():
  made, _ = _bench(journal_lib.Memory())
  rows = lambda size: [
    [row.index for row in batch]
    for batch in made.batches(grid.Cell('t/test', 0.0, size), 0)
  ]
  assert rows(4) == [[0, 1, 2, 3], [4, 4, 4, 4]]
  assert rows(3) == [[0, 1, 2], [3, 4, 3]]


def test_shards_deal_out_the_batches():
  journal = journal_lib.Memory()
  (one, first), (two, second) = _bench(journal), _bench(journal)
  assert not one.is_whole
  one.run(shard=(0, 2), progress=False)
  assert len(journal) == 8 and not two.is_whole
  assert {rows for _, rows in first} == {FIRST, LAST}
  two.run(shard=(1, 2), progress=False)
  assert len(journal) == 12 and one.is_whole
  assert {rows for _, rows in second} == {SECOND}
  # Each compiled, in the same time.
  assert one.collect(CELL, 'none')[1].compile_seconds == 2.0
  assert len(first) == 10 and len(second) == 6
  one.run(shard=(0, 2), progress=False)
  assert len(first) == 10


def test_the_bar_of_a_run_that_goes_on_ends_full(monkeypatch):
  bars = []

  class Bar(tqdm.tqdm):
    def __init__(self, **named):
      super().__init__(**named | {'file': io.StringIO()})
      bars.append(self)

  monkeypatch.setattr(grid.progress_lib.tqdm, 'tqdm', Bar)
  journal = journal_lib.Memory()
  _bench(journal)[0].run()
  del journal[_key('streams', 1, 2)]
  _bench(journal)[0].run()
  # Two rivals, two passes of three batches.
  assert [(bar.n, bar.total) for bar in bars] == [(12, 12), (12, 12)]


def test_a_run_that_goes_on_measures_what_is_missing():
  journal = journal_lib.Memory()
  _bench(journal)[0].run(progress=False)
  kept = dict(journal)
  del journal[_key('streams', 1, 2)]
  made, seen = _bench(journal)
  made.run(progress=False)
  # Once before, so that the timed batch is warm.
  assert seen == _both(LAST, 'streams', 'streams')
  again = journal.pop(_key('streams', 1, 2))
  assert again['compile_seconds'] == 2.0
  # What the first run measured stands.
  assert journal.items() <= kept.items()
