# SPDX-License-Identifier: Apache-2.0
"""A batch drafts where that is faster, by what was measured."""

import pytest

from specstream_jax.decoding import batch_sizes
from specstream_jax.serving import policy

# Two tokens a call pay for drafts of one row, four for those of eight.
ONE, FOUR, EIGHT = map(batch_sizes.Shape, (1, 4, 8))
COSTS = {ONE: batch_sizes.Cost(0.1, 0.2), EIGHT: batch_sizes.Cost(0.2, 0.8)}
_LEFT = 10_000  # tokens, enough for what comes at the end not to count


def _rows(names, left=_LEFT, has_tree=True):
  return [policy.Running(name, left, has_tree) for name in names]


def _note(made, shape, calls, num_tokens):
  """A quantum whose steps took what they cost."""
  cost = COSTS.get(shape, COSTS[ONE])
  is_drafting = made._is_drafting or made._is_trying
  step = cost.drafting if is_drafting else cost.plain
  made.note(shape, calls, num_tokens, max(calls) * step)


@pytest.fixture
def weighed():
  made = policy.Policy(COSTS, None)
  # 16 calls of three tokens count beside what was seen.
  made.learn('good', 100, 258)  # (258 + 32) / 116 = 2.5: 3.5 tokens a call
  made.learn('bad', 100, 0)  # 1.276
  made.learn('even', 64, 48)  # 2 exactly
  return made


@pytest.mark.parametrize(
  ('shape', 'names', 'want'),
  [
    (ONE, ['good'], True),
    (ONE, ['bad'], False),
    (ONE, [None], False),
    (EIGHT, ['good'] * 6, False),
    (ONE, ['good', 'bad'], True),  # 2.39 on average
    (ONE, ['good', 'bad', 'bad'], False),  # 2.02, which is not enough to begin
    (ONE, ['good', 'good', None], True),  # a row without drafts is one of them
    (ONE, ['good', None, None], False),  # 1.83
    (ONE, ['even'], False),  # two tokens pay nothing
    (FOUR, ['bad'], True),  # nobody knows what it costs
  ],
)
def test_gains_are_weighed_against_costs(shape, names, want, weighed):
  assert weighed.gain('good') == pytest.approx(3.5)
  assert weighed.gain('even') == 2
  assert weighed.has_drafts(shape, _rows(names)) == want


def test_who_drafts_goes_on_where_nobody_would_begin(weighed):
  between = _rows(['good', 'bad', 'bad'])
  assert not weighed.has_drafts(ONE, between)
  assert weighed.has_drafts(ONE, _rows(['good']))
  assert weighed.has_drafts(ONE, between)
  assert not weighed.has_drafts(ONE, _rows(['even']))  # who gains nothing ends
  assert not weighed.has_drafts(ONE, between)


@pytest.mark.parametrize(
  ('left', 'has_tree', 'want'),
  [
    (7, True, True),  # two calls of 3.5 tokens
    (7, False, True),  # one without drafts, two that give the other six
    (5, False, False),  # one without, two for four more
    (9, False, True),  # four calls, 2.25 tokens each
    (2, True, False),  # one call, and more than two tokens are not needed
    (3, True, True),
    (1, False, False),
  ],
)
def test_what_is_left_of_a_row_counts(left, has_tree, want, weighed):
  asked = _rows(['good'], left, has_tree)
  assert weighed.has_drafts(ONE, asked) == want


def test_the_last_token_of_a_row_takes_a_call(weighed):
  [many], [last] = _rows(['good']), _rows(['good'], 1)
  [after] = _rows(['good'], 1, has_tree=False)
  assert weighed.has_drafts(ONE, [many, after])  # (3.5 + 1) / 2
  assert not weighed.has_drafts(ONE, [many, last, last])  # 5.5 / 3


def test_who_is_not_known_drafts_where_three_tokens_pay():
  made = policy.Policy(COSTS, None)
  assert made.gain('new') == 3
  assert made.has_drafts(ONE, _rows(['new']))
  assert not made.has_drafts(EIGHT, _rows(['new']))


def test_a_hundredth_of_the_time_may_be_lost_by_trying(weighed):
  asked = _rows(['bad'] * 8)
  assert not weighed.has_drafts(EIGHT, asked)  # nothing was done yet
  _note(weighed, EIGHT, [5] * 8, 40)  # one second
  assert weighed.has_drafts(EIGHT, asked)
  # 0.8 s for 16 tokens, two calls of all rows, which take 0.4 s without.
  _note(weighed, EIGHT, [1] * 8, 16)
  assert not weighed.has_drafts(EIGHT, asked)
  # 0.4 s are lost: 40 s must pass, of which 1.8 have.
  _note(weighed, EIGHT, [190] * 8, 8 * 190)
  assert not weighed.has_drafts(EIGHT, asked)
  _note(weighed, EIGHT, [2] * 8, 16)
  assert weighed.has_drafts(EIGHT, asked)
  # What does not lose may go on.
  _note(weighed, EIGHT, [1] * 8, 32)
  assert weighed.has_drafts(EIGHT, asked)


def test_rows_that_end_early_lose_what_the_others_took(weighed):
  asked = _rows(['bad'] * 2)
  assert not weighed.has_drafts(EIGHT, asked)
  _note(weighed, EIGHT, [100, 100], 200)  # 20 s, of which 0.2 may be lost
  assert weighed.has_drafts(EIGHT, asked)
  # One step of 0.8 s; each call of the two rows gave 3.5 tokens: 0.7 s.
  _note(weighed, EIGHT, [1, 1], 7)
  assert weighed.has_drafts(EIGHT, asked)
  # Two steps, of which one row took one: 3 calls, 9 tokens, 2 * 3 * 0.2 s.
  _note(weighed, EIGHT, [2, 1], 9)
  assert not weighed.has_drafts(EIGHT, asked)
  _note(weighed, EIGHT, [150, 150], 300)  # 52 s by now, 0.5 of which are lost
  assert weighed.has_drafts(EIGHT, asked)


def test_steps_that_pay_lose_nothing(weighed):
  assert weighed.has_drafts(ONE, _rows(['good']))
  _note(weighed, ONE, [100], 100)  # bad luck, but nobody tried anything
  assert weighed.has_drafts(ONE, _rows(['bad']))  # 20 s have passed


def test_where_nobody_can_draft_nothing_is_tried(weighed):
  _note(weighed, ONE, [1000], 1000)
  assert not any(weighed.has_drafts(ONE, _rows([None])) for _ in range(3))
  _note(weighed, ONE, [10], 10)
  assert weighed.has_drafts(ONE, _rows(['bad']))
  assert not weighed.has_drafts(ONE, _rows([None]))
  _note(weighed, ONE, [1000], 1000)
  assert weighed.has_drafts(ONE, _rows(['bad']))  # nothing is lost
  _note(weighed, FOUR, [1000], 1000)  # a size that was not timed


def test_a_quantum_takes_no_longer_with_drafts(weighed):
  assert [weighed.steps(ONE, n) for n in (8, 9, 1)] == [4, 4, 1]
  assert weighed.steps(EIGHT, 8) == 2
  assert weighed.steps(FOUR, 8) == 8  # nobody knows what it costs


def _costs(made, shape=ONE):
  cost = made._costs[shape]
  return pytest.approx(cost.plain), pytest.approx(cost.drafting)


def test_what_steps_took_corrects_what_they_cost(weighed):
  # Without drafts 0.1 s were known, and 48 steps took 0.13 s each.
  kept = (47 / 48) ** 48
  assert not weighed.has_drafts(ONE, _rows(['bad']))
  weighed.note(ONE, [48], 48, 48 * 0.13)
  assert _costs(weighed) == (kept * 0.1 + (1 - kept) * 0.13, 0.2)
  # One step of two rows, which counts once; and none that was not asked for.
  assert weighed.has_drafts(ONE, _rows(['good', 'good']))
  weighed.note(ONE, [1, 1], 7, 0.3)
  weighed.note(ONE, [0, 0], 0, 0.3)
  assert _costs(weighed)[1] == (47 * 0.2 + 0.3) / 48
  assert _costs(weighed, EIGHT) == (0.2, 0.8)
  # However long a step waited for others, it tells no more than twice as much.
  weighed.note(EIGHT, [1] * 8, 8, 77.0)
  assert _costs(weighed, EIGHT) == (0.2, (47 * 0.8 + 1.6) / 48)


def test_drafts_begin_where_the_start_measured_them_too_dear(weighed):
  """Trying them now and then corrects it."""
  dear = {ONE: batch_sizes.Cost(0.1, 0.5)}
  made = policy.Policy(dear, None)
  made.learn('good', 100, 258)
  drafted = 0
  for _ in range(2000):
    has_drafts = made.has_drafts(ONE, _rows(['good']))
    drafted += has_drafts
    if has_drafts:
      made.note(ONE, [2], 7, 2 * 0.2)
    else:
      made.note(ONE, [2], 2, 2 * 0.1)
  assert drafted > 1500 and made.has_drafts(ONE, _rows(['good']))
  assert dear[ONE].drafting == 0.5  # of the decoder, not its own


def test_a_bound_on_rows_decides_by_itself():
  made = policy.Policy(COSTS, 2)
  made.learn('bad', 100, 0)
  assert made.has_drafts(EIGHT, _rows(['bad', 'bad']))
  assert not made.has_drafts(EIGHT, _rows(['good', 'good', 'good']))
  assert not made.has_drafts(EIGHT, _rows([None]))
  assert not policy.Policy({}, 0).has_drafts(ONE, _rows(['good']))


def test_what_was_learnt_long_ago_counts_little():
  made = policy.Policy(COSTS, None)
  made.learn('a', 100, 250)
  assert made.gain('a') == pytest.approx(1 + (250 + 32) / 116)
  made.learn('a', 400, 100)
  kept = (511 / 512) ** 400
  want = 1 + (250 * kept + 100 + 32) / (100 * kept + 400 + 16)
  assert made.gain('a') == pytest.approx(want)
