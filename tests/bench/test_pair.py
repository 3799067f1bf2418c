# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a comparison, on measurements small enough to do by hand.

Three prompts in batches of two, two passes. Plain decoding emits 4, 3 and 5
tokens in 3, 2 and 4 calls (the prompt pass gives the first); the streams need
1, 2 and 2 calls and accept (2), (0, 0) and (1, 1).
"""

import dataclasses
import io
import types

import numpy as np
import pytest
import tqdm

from specstream_jax import config
from specstream_jax.bench import pair, sides as sides_lib
from specstream_jax.decoding import decoder as decoder_lib

TOKENS = [[7, 8, 9, 6], [5, 4, 3], [2, 1, 2, 1, 0]]
PLAIN_CALLS, CALLS = [3, 2, 4], [1, 2, 2]
ACCEPTS = [[2], [0, 0], [1, 1]]
BATCHES = [[0, 1], [2, 2]]
SETTINGS = pair.Settings(
  tree=config.TreeConfig('chain', depth=3),
  decode=config.DecodeConfig(max_new_tokens=5, prompt_bucket=8),
  batch=2,
  repeats=2,
)
# [pass][batch]
PLAIN_SECONDS, SECONDS = [[0.6, 0.8], [0.3, 1.6]], [[0.4, 0.5], [0.2, 0.5]]
PLAIN_PREFILL, PREFILL = [[0.1, 0.2], [0.1, 0.4]], [[0.2, 0.2], [0.2, 0.3]]


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
  entries = {
    ('none', 'cold', 0, 1): {'batch': 1, 'seconds': 2.0},
    ('streams', 'cold', 0, 2): {'batch': 0, 'seconds': 3.5},
    ('streams', 'cold', 1, 2): {'batch': 1, 'seconds': 5.75},
  }
  for name, (calls, accepts) in measured.items():
    for repeat in range(2):
      for number, rows in enumerate(BATCHES):
        decode, prefill = (x[repeat][number] for x in seconds[name])
        entries[name, repeat, number] = {
          'tokens': [TOKENS[row] for row in rows],
          'accept_lengths': [accepts[row] for row in rows],
          'calls': [calls[row] for row in rows],
          'decode_seconds': decode,
          'prefill_seconds': prefill,
        }
  return entries


def _sides():
  return pair.sides(_entries(), 3, SETTINGS)


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
  entries['streams', 1, 0] = entries['streams', 1, 0] | {
    'tokens': [[1, 1, 1, 1], [2, 2, 2]],
    'accept_lengths': [[0, 1], [1]],
    'calls': [2, 1],
  }
  _, fast = pair.sides(entries, 3, SETTINGS)
  assert fast.tokens[:2] == [[1, 1, 1, 1], [2, 2, 2]]
  assert fast.accept_lengths == [[0, 1], [1], [1, 1]]
  assert fast.calls.tolist() == [2, 1, 2]


def test_compile_time_is_the_cold_batch_less_a_warm_one():
  plain, fast = _sides()
  # Batch 1 took 1.0 and 2.0 seconds when warm: 2.0 - 1.5.
  assert plain.compile_seconds == pytest.approx(0.5)
  # Of two shards, 3.5 - 0.5 and 5.75 - 0.75: the median of 3 and 5.
  assert fast.compile_seconds == pytest.approx(4.0)
  entries = _entries()
  entries['none', 'cold', 0, 1] = {'batch': 1, 'seconds': 0.1}
  # A machine that got slower compiled in no time, not in less.
  assert pair.sides(entries, 3, SETTINGS)[0].compile_seconds == 0.0


def test_a_third_pass():
  """Texts are of the last one; a warm batch is a median, not a mean."""
  entries = _entries()
  for number in range(2):
    entries['none', 2, number] = entries['none', 1, number] | {
      'tokens': [[1], [2]] if number == 0 else [[3], [3]],
      'decode_seconds': 9.0,
      'calls': [7 + number, 2],
    }
    entries['streams', 2, number] = entries['streams', 1, number]
  settings = dataclasses.replace(SETTINGS, repeats=3)
  plain, _ = pair.sides(entries, 3, settings)
  assert plain.tokens == [[1], [2], [3]]
  assert plain.steps.tolist() == [7, 8]
  # Batch 1 took 1.0, 2.0 and 9.4 seconds when warm.
  entries['none', 'cold', 0, 1] = {'batch': 1, 'seconds': 2.25}
  # A third shard compiled for 11 seconds, the others for 3 and 5.
  entries['streams', 'cold', 2, 3] = {'batch': 0, 'seconds': 11.4}
  plain, fast = pair.sides(entries, 3, settings)
  assert plain.compile_seconds == pytest.approx(0.25)
  assert fast.compile_seconds == pytest.approx(5.0, abs=0.2)


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
  """Remembers which side decoded which batch."""

  def __init__(self):
    self.seen = []

  def decoder(self, rival, decode, *settings, **named):
    del settings, named
    assert decode.prompt_bucket == 16  # of the longest prompt

    def generate(params, prompts, *, seed, row_ids, **named):
      del params, named
      assert seed == 0 and [len(p) for p in prompts] == [
        LENGTHS[row] for row in row_ids
      ]
      self.seen.append((rival, tuple(row_ids)))
      return decoder_lib.DecodeResult(
        [[1, 2]] * 2, np.array([1, 1]), [[0]] * 2, ['length'] * 2, 0.25, 0.5
      )

    return types.SimpleNamespace(generate=generate, params=None)


LENGTHS = [3, 9, 1, 4, 2]
PROMPTS = [[1] * n for n in LENGTHS]


def test_sides_take_turns_at_being_first():
  model = _Model()
  pair.compare(model, PROMPTS, SETTINGS, progress=False)
  first, second, last = (0, 1), (2, 3), (4, 4)
  cold = [('none', first), ('streams', first)]
  both = lambda rows, *names: [(name, rows) for name in names]
  assert model.seen == [
    *cold,
    *both(first, 'none', 'streams'),
    *both(second, 'streams', 'none'),
    *both(last, 'none', 'streams'),
    *both(first, 'streams', 'none'),
    *both(second, 'none', 'streams'),
    *both(last, 'streams', 'none'),
  ]


def test_a_short_batch_repeats_its_first_row():
  assert pair._batches(6, 4) == [[0, 1, 2, 3], [4, 5, 4, 4]]
  assert pair._batches(1, 3) == [[0, 0, 0]]


def test_shards_deal_out_the_batches():
  journal = pair._Memory()
  models = [_Model(), _Model()]
  count = lambda number: pair.measure(
    models[number],
    PROMPTS,
    SETTINGS,
    journal,
    shard=(number, 2),
    progress=False,
  )
  assert len(pair.missing(journal, 5, SETTINGS)) == 12
  assert count(0) == 8
  assert len(pair.missing(journal, 5, SETTINGS)) == 4
  assert {rows for _, rows in models[0].seen} == {(0, 1), (4, 4)}
  assert count(1) == 4
  assert pair.missing(journal, 5, SETTINGS) == []
  assert {rows for _, rows in models[1].seen} == {(2, 3)}
  # The second shard's own first batch is what compiled there.
  assert journal['none', 'cold', 0, 2] == {'batch': 0, 'seconds': 0.75}
  assert journal['none', 'cold', 1, 2] == {'batch': 1, 'seconds': 0.75}
  assert count(0) == 0 and len(models[0].seen) == 10


def test_the_bar_of_a_run_that_goes_on_ends_full(monkeypatch):
  bars = []

  class Bar(tqdm.tqdm):
    def __init__(self, **named):
      super().__init__(**named | {'file': io.StringIO()})
      bars.append(self)

  monkeypatch.setattr(pair.progress_lib.tqdm, 'tqdm', Bar)
  journal = pair._Memory()
  pair.measure(_Model(), PROMPTS, SETTINGS, journal)
  del journal['streams', 1, 2]
  pair.measure(_Model(), PROMPTS, SETTINGS, journal)
  # Two sides, two passes of three batches, and each side once before.
  assert [(bar.n, bar.total) for bar in bars] == [(14, 14), (14, 14)]


def test_a_run_that_goes_on_measures_what_is_missing():
  journal, model = pair._Memory(), _Model()
  pair.measure(model, PROMPTS, SETTINGS, journal, progress=False)
  del journal['streams', 1, 2]
  cold = journal['none', 'cold', 0, 1] = {'batch': 0, 'seconds': 9.0}
  del journal['streams', 'cold', 0, 1]
  model.seen.clear()
  again = pair.measure(model, PROMPTS, SETTINGS, journal, progress=False)
  assert again == 1
  last = (4, 4)
  # Both sides run once before, so that the first timed batch is warm.
  assert model.seen == [('none', last), ('streams', last), ('streams', last)]
  # What the first run measured stands.
  assert journal['none', 'cold', 0, 1] is cold
  assert journal['streams', 'cold', 0, 1] == {'batch': 2, 'seconds': 0.75}
