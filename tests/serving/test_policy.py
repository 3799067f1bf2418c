# SPDX-License-Identifier: Apache-2.0
"""A batch drafts where that is faster, by what was measured."""

from typing import NamedTuple

import pytest

from specstream_jax.decoding import batch_sizes
from specstream_jax.serving import policy

# Two tokens a call pay for drafts of one row, four for those of eight.
COSTS = {1: batch_sizes.Cost(0.1, 0.2), 8: batch_sizes.Cost(0.2, 0.8)}


class _Served(NamedTuple):
  name: str


class _Row(NamedTuple):
  served: _Served
  has_drafts: bool = True


GOOD, BAD = _Row(_Served('good')), _Row(_Served('bad'))
PLAIN = _Row(_Served('good'), False)


@pytest.fixture
def weighed():
  made = policy.Policy(COSTS, None)
  made.learn(GOOD, 100, 250)  # 3.5 tokens a call
  made.learn(BAD, 100, 30)  # 1.3
  made.learn(PLAIN, 100, 0)  # tells nothing
  return made


@pytest.mark.parametrize(
  ('size', 'rows', 'want'),
  [
    (1, [GOOD], True),
    (1, [BAD], False),
    (1, [PLAIN], False),
    (8, [GOOD] * 6, False),
    (1, [GOOD, BAD], True),  # 2.4 on average
    (1, [GOOD, BAD, BAD], True),  # 2.03
    (1, [GOOD, BAD, BAD, PLAIN], False),
    (4, [BAD], True),  # nobody knows what it costs
  ],
)
def test_gains_are_weighed_against_costs(size, rows, want, weighed):
  assert weighed.has_drafts(size, rows) == want


def test_what_is_not_known_yet_is_tried(weighed):
  new = _Row(_Served('new'))
  assert weighed.has_drafts(8, [BAD, BAD, new])
  weighed.learn(new, 31, 0)
  assert weighed.has_drafts(8, [new])
  weighed.learn(new, 2, 0)
  assert not weighed.has_drafts(8, [new])


def test_now_and_then_one_tries_again(weighed):
  tried = [weighed.has_drafts(1, [BAD]) for _ in range(300)]
  assert sum(tried) == 4
  # Where nobody drafts there is nothing to try.
  assert not any(weighed.has_drafts(1, [PLAIN]) for _ in range(300))
  for _ in range(60):
    weighed.learn(BAD, 32, 96)
  assert weighed.has_drafts(1, [BAD])


def test_a_bound_on_rows_decides_by_itself():
  made = policy.Policy(COSTS, 2)
  made.learn(BAD, 100, 0)
  assert made.has_drafts(8, [BAD, BAD])
  assert not made.has_drafts(8, [GOOD, GOOD, GOOD])
  assert not policy.Policy({}, 0).has_drafts(1, [GOOD])
