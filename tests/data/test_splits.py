# SPDX-License-Identifier: Apache-2.0
"""Splits share no prompt and depend on content alone."""

import pytest

from specstream_jax.data import chat_rows, splits


def rows(count):
  return [[chat_rows.Turn(f'prompt {i}', 'x')] for i in range(count)]


def prompts(found, name):
  return [turn.prompt for turn in found.turns[name]]


def test_a_tenth_each_is_held_out_whatever_the_order():
  found, again = splits.split(rows(40)), splits.split(rows(40)[::-1])
  assert found == again
  assert [len(found.turns[name]) for name in splits.NAMES] == [32, 4, 4]
  assert found.num_prompts == 40 and found.num_duplicates == 0
  together = [p for name in splits.NAMES for p in prompts(found, name)]
  assert sorted(together) == sorted(f'prompt {i}' for i in range(40))


def test_rows_of_one_prompt_stay_together_and_equal_ones_go():
  more = [[chat_rows.Turn(f'prompt {i}', 'y')] for i in range(20)]
  found = splits.split([*rows(20), *more, *rows(5)])
  assert found.num_prompts == 20 and found.num_duplicates == 5
  for name in splits.NAMES:
    assert all(prompts(found, name).count(p) == 2 for p in prompts(found, name))


def test_a_chat_stays_whole():
  chat = [chat_rows.Turn('a', 'b'), chat_rows.Turn('a b c', 'd')]
  found = splits.split([chat, *rows(7)])
  where = [n for n in splits.NAMES if chat[0] in found.turns[n]]
  assert chat[1] in found.turns[where[0]]
  assert [len(found.turns[name]) for name in ('dev', 'test')].count(1) >= 1


def test_large_sets_hold_out_two_hundred():
  found = splits.split(rows(3000))
  assert [len(found.turns[name]) for name in splits.NAMES] == [2600, 200, 200]


def test_too_few_rows_are_refused():
  with pytest.raises(ValueError, match='7 rows with a prompt of their own; at'):
    splits.split([*rows(7), *rows(7)])
