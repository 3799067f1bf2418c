# SPDX-License-Identifier: Apache-2.0
"""The time left, once what happens only once is forgotten."""

import pytest
import tqdm

from specstream_jax.outputs import progress


def test_the_pace_leaves_out_what_came_before(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, 'time', lambda: now[0])
  made = progress.bar(total=10, unit='row')
  made._time = lambda: now[0]
  made.start_t = made.last_print_t = now[0]
  now[0] += 60  # compiles
  made.update()
  progress.forget_so_far(made)
  for _ in range(2):
    now[0] += 3
    made.update()
  found = made.format_dict
  assert (found['n'] - found['initial']) / found['elapsed'] == pytest.approx(
    1 / 3
  )
  assert '<00:21' in tqdm.tqdm.format_meter(**found)  # seven rows to go
  now[0] += 90  # an evaluation compiles
  progress.leave_out(made, 90)
  assert '<00:21' in tqdm.tqdm.format_meter(**made.format_dict)
  made.close()


def test_a_bar_that_is_not_shown_is_left_alone():
  made = progress.bar(total=3, unit='row', show=False)
  progress.forget_so_far(made)
  progress.leave_out(made, 1.0)
  assert made.disable and made.n == 0


def test_what_was_done_before_is_no_part_of_the_pace():
  made = progress.bar(total=10, unit='step', show=True)
  for _ in range(6):
    progress.skip(made)
  made.update(2)
  assert (made.n, made.initial) == (8, 6)
  made.close()
  hidden = progress.bar(total=2, unit='step', show=False)
  progress.skip(hidden)
