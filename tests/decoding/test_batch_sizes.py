# SPDX-License-Identifier: Apache-2.0
"""Slots that rows enter, leave and move between, on arrays made by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from specstream_jax.decoding import batch_sizes, stopping, tree as tree_lib

RUNNING, EOS, FREE = stopping.RUNNING, stopping.EOS, stopping.FREE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """As much of a `loop.DecodeState` as matters here."""

  finish_reason: jax.Array
  tokens: jax.Array
  tree: Any = None

  @property
  def is_done(self):
    return self.finish_reason != RUNNING


def _slots(*reasons) -> Any:
  tokens = 10 * jnp.arange(1, len(reasons) + 1)[:, None] + jnp.arange(2)[None]
  return Slots(jnp.array(reasons, jnp.int32), tokens)


def test_empty_slots_hold_nothing():
  made = batch_sizes.empty(_slots(EOS), 3)
  assert made.finish_reason.tolist() == [FREE] * 3
  assert made.finish_reason.dtype == jnp.int32
  assert made.tokens.tolist() == [[10, 11]] * 3


@pytest.mark.parametrize('slot', [0, 2])
def test_a_row_enters_one_slot(slot):
  row = Slots(jnp.array([RUNNING]), jnp.array([[7, 8]]))
  made = batch_sizes.insert(_slots(EOS, FREE, FREE), row, jnp.int32(slot))
  want = [[10, 11], [20, 21], [30, 31]]
  want[slot] = [7, 8]
  assert made.tokens.tolist() == want
  reasons = [EOS, FREE, FREE]
  reasons[slot] = RUNNING
  assert made.finish_reason.tolist() == reasons


def test_released_slots_are_free():
  slots = _slots(EOS, RUNNING, RUNNING)
  made = batch_sizes.release(slots, jnp.array([True, False, True]))
  assert made.finish_reason.tolist() == [FREE, RUNNING, FREE]


@pytest.mark.parametrize(
  ('index', 'is_free', 'want'),
  [
    ([2], [False], [RUNNING]),
    ([0, 1, 2, 0], [False, False, False, True], [EOS, FREE, RUNNING, FREE]),
  ],
)
def test_rows_move_to_another_number_of_slots(index, is_free, want):
  slots = _slots(EOS, FREE, RUNNING)
  made = batch_sizes.resize(slots, jnp.array(index), jnp.array(is_free))
  assert made.finish_reason.tolist() == want
  assert made.tokens.tolist() == [[10 * (i + 1), 10 * i + 11] for i in index]


def test_steps_without_drafts_leave_none(monkeypatch):
  nothing: Any = None
  tree = tree_lib.DraftTree(
    jnp.array([[5, 1, 2], [6, 3, 4]]),
    jnp.array([[0, 0, 1], [0, 0, 0]]),
    jnp.array([[0, 1, 2], [0, 1, 1]]),
    scores=jnp.zeros((2, 3)),
  )
  seen = []

  def run(setup, params, state, *args, **named):
    seen.append((setup, params, state.tree, args, named))
    root = tree_lib.root_only(state.tree.tokens[:, 0] + 10)
    return dataclasses.replace(state, tree=root)

  monkeypatch.setattr(batch_sizes.loop, 'run', run)
  state: Any = dataclasses.replace(_slots(RUNNING, EOS), tree=tree)
  made = batch_sizes.run_plain(
    nothing, 'params', state, jnp.int32(9), min_running=nothing, stops=nothing
  )
  assert made.tree.tokens.tolist() == [[15, -1, -1], [16, -1, -1]]
  assert made.tree.parents is tree.parents and made.tree.depths is tree.depths
  inf = float('inf')
  assert made.tree.scores is not None
  assert made.tree.scores.tolist() == [[0.0, -inf, -inf]] * 2
  ((_, params, root, args, named),) = seen
  assert root.tokens.tolist() == [[5], [6]] and root.scores is None
  assert (params, args, named) == ('params', (9, None), {'min_running': None})


def test_what_drafts_must_give_to_pay():
  assert batch_sizes.Cost(plain=0.25, drafting=0.75).break_even == 3.0
