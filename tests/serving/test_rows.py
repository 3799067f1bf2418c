# SPDX-License-Identifier: Apache-2.0
"""What the host notes of a row, by hand; no device."""

import types
from typing import Any

import pytest

from specstream_jax.serving import requests, rows


def _row(drafts_per_call=5, eos_ids=(9,)):
  model: Any = types.SimpleNamespace(has_tokenizer=False)
  nothing: Any = None
  handle = requests.Handle(requests.Request((1, 2)))
  return rows.Row(
    handle,
    model,
    nothing,
    nothing,
    eos_ids=eos_ids,
    stop_ids=(7,),
    drafts_per_call=drafts_per_call,
  )


def test_the_first_call_after_plain_ones_has_no_drafts():
  row = _row()
  assert row.count_calls(3, has_drafts=True) == 3
  assert row.count_calls(5, has_drafts=False) == 0
  assert row.count_calls(5, has_drafts=True) == 0
  assert row.count_calls(8, has_drafts=True) == 2
  assert row.count_calls(10, has_drafts=True) == 2
  assert row.num_calls == 10
  made = row.finish(())
  assert made.metrics.num_plain_calls == 0  # none of them gave a token
  plain = _row(drafts_per_call=0)
  assert not plain.has_drafts and plain.count_calls(3, has_drafts=True) == 0


def test_one_plain_call_is_enough_and_one_call_may_come_after_it():
  row = _row()
  assert row.count_calls(2, has_drafts=True) == 2
  assert row.count_calls(3, has_drafts=False) == 0
  assert row.count_calls(4, has_drafts=True) == 0
  assert row.count_calls(6, has_drafts=True) == 2


def test_plain_calls_are_those_that_gave_tokens():
  row = _row()
  row.count_calls(2, has_drafts=True)
  row.count_calls(5, has_drafts=False)
  row.take([3, 3, 3, 3, 3, 3], 'length')
  # The prompt's pass, then 1 + 1, 1, 1 and one of the plain calls.
  made = row.finish((1, 0, 0, 0, 0))
  assert made.metrics.accept_lengths == (1, 0, 0, 0)
  assert made.metrics.num_plain_calls == 2
  assert made.metrics.num_calls == 4 and made.finish_reason == 'length'


@pytest.mark.parametrize(
  ('num_tokens', 'want'),
  [
    (0, ()),
    (1, ()),
    (2, (0,)),  # the call's draft lies beyond a stop
    (3, (1,)),
    (4, (2,)),
    (5, (2, 0)),
    (6, (2, 0, 0)),
    (7, (2, 0, 1)),
    (9, (2, 0, 3)),
  ],
)
def test_accept_lengths_end_with_the_tokens(num_tokens, want):
  assert rows._kept((2, 0, 3), num_tokens) == want


def test_pieces_are_calls_where_they_are_asked_for():
  row = _row()
  row.take([1], 'running')
  row.take([2, 3, 4, 5], 'running', (2, 0))
  row.take([6, 9], 'eos', (2, 0, 1))
  pieces = [piece.tokens for piece in row.handle.take()]
  assert pieces == [[1], [2, 3, 4], [5], [6, 9]]
  together = _row()
  together.take([1], 'running')
  together.take([2, 3, 4, 5], 'running')
  assert [piece.tokens for piece in together.handle.take()] == [
    [1],
    [2, 3, 4, 5],
  ]
  # What the prompt gives goes before what calls do.
  at_once = _row()
  at_once.take([1, 2, 3], 'running')
  assert [piece.tokens for piece in at_once.handle.take()] == [[1], [2, 3]]


@pytest.mark.parametrize(
  ('tokens', 'reason', 'want'),
  [
    ([3, 9], 'eos', 'eos'),
    ([9, 3], 'eos', 'stop'),  # an id that the request asks for
    ([3, 7], 'eos', 'stop'),
    ([3, 9], 'length', 'length'),
    ([3], 'running', None),
    ([], 'eos', 'stop'),
  ],
)
def test_why_a_row_ended(tokens, reason, want):
  row = _row()
  row.take(tokens, reason)
  assert row.finish_reason == want
  assert row.finish((), 'timeout').finish_reason == (want or 'timeout')


def test_times_of_a_row(monkeypatch):
  clock = iter((10.0, 10.5, 12.0, 15.0))
  monkeypatch.setattr(rows.time, 'monotonic', lambda: next(clock))
  row = _row()
  row.start()
  row.take([3, 3], 'running')
  row.take([3], 'length')
  cost = row.finish((1, 0)).metrics
  assert (cost.waited, cost.first_token, cost.total) == (0.5, 2.0, 5.0)
  assert cost.num_prompt_tokens == 2 and cost.num_new_tokens == 3
  clock = iter((20.0, 23.0))
  early = _row().finish(())
  assert early.finish_reason == 'cancelled'
  cost = early.metrics
  assert (cost.waited, cost.first_token, cost.total) == (3.0, None, 3.0)
