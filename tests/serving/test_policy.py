# SPDX-License-Identifier: Apache-2.0
"""A batch drafts where that is faster, by what was measured."""

import pytest

from specstream_jax.decoding import batch_sizes
from specstream_jax.serving import policy

# Two tokens a call pay for drafts of one row, four for those of eight.
COSTS = {1: batch_sizes.Cost(0.1, 0.2), 8: batch_sizes.Cost(0.2, 0.8)}


@pytest.fixture
def weighed():
  made = policy.Policy(COSTS, None)
  made.learn('good', 100, 250)  # 3.5 tokens a call
  made.learn('bad', 100, 30)  # 1.3
  made.learn('even', 32, 32)  # 2, and just enough to be known
  return made


@pytest.mark.parametrize(
  ('size', 'rows', 'want'),
  [
    (1, ['good'], True),
    (1, ['bad'], False),
    (1, [None], False),
    (8, ['good'] * 6, False),
    (1, ['good', 'bad'], True),  # 2.4 on average
    (1, ['good', 'bad', 'bad'], True),  # 2.03
    (1, ['good', 'bad', 'bad', None], False),
    (1, ['good', 'good', None], True),  # a row without drafts is one of them
    (1, ['even'], False),  # two tokens pay nothing
    (4, ['bad'], True),  # nobody knows what it costs
  ],
)
def test_gains_are_weighed_against_costs(size, rows, want, weighed):
  assert weighed.has_drafts(size, rows) == want


def test_what_is_not_known_yet_is_tried(weighed):
  assert weighed.has_drafts(8, ['bad', 'bad', 'new'])
  weighed.learn('new', 31, 0)
  assert weighed.has_drafts(8, ['new'])
  weighed.learn('new', 2, 0)
  assert not weighed.has_drafts(8, ['new'])
  weighed.learn('enough', 32, 0)
  assert not weighed.has_drafts(1, ['enough'])


def test_what_was_learnt_is_forgotten(weighed):
  weighed.learn('changed', 512, 3 * 512)
  assert weighed.has_drafts(1, ['changed'])
  # (511/512)^350 = 0.504 is left: 1 + 3 * 258 / (258 + 350) = 2.27 tokens.
  weighed.learn('changed', 350, 0)
  assert weighed.has_drafts(1, ['changed'])
  # Of it 0.728: 1 + 3 * 188 / (188 + 255 + 162) = 1.93.
  weighed.learn('changed', 162, 0)
  assert not weighed.has_drafts(1, ['changed'])


def test_now_and_then_one_tries_again(weighed):
  tried = [weighed.has_drafts(1, ['bad']) for _ in range(300)]
  assert [i for i, one in enumerate(tried) if one] == [63, 127, 191, 255]
  # Where nobody drafts there is nothing to try.
  assert not any(weighed.has_drafts(1, [None]) for _ in range(300))
  for _ in range(60):
    weighed.learn('bad', 32, 96)
  assert weighed.has_drafts(1, ['bad'])


def test_a_bound_on_rows_decides_by_itself():
  made = policy.Policy(COSTS, 2)
  made.learn('bad', 100, 0)
  assert made.has_drafts(8, ['bad', 'bad'])
  assert not made.has_drafts(8, ['good', 'good', 'good'])
  assert not made.has_drafts(8, [None])
  assert not policy.Policy({}, 0).has_drafts(1, ['good'])


def test_what_was_learnt_long_ago_counts_little():
  made = policy.Policy(COSTS, None)
  made.learn('a', 100, 250)
  assert made._gain('a') == pytest.approx(3.5)
  made.learn('a', 400, 100)
  kept = (511 / 512) ** 400
  want = 1 + (250 * kept + 100) / (100 * kept + 400)
  assert made._gain('a') == pytest.approx(want)
