# SPDX-License-Identifier: Apache-2.0
"""When evaluations have stopped getting better, and what that does to a run."""

import json

import pytest
import train_process

from specstream_jax.training import stalling


def drafts(*values):
  return [{'tokens_per_call': value} for value in values]


@pytest.mark.parametrize(
  ('values', 'patience', 'stalled'),
  [
    ((1.0, 2.0, 2.0), 0, False),
    ((1.0, 2.0, 1.9, 2.001), 2, True),
    ((1.0, 2.0, 1.9, 2.1), 2, False),
    ((2.0, 1.0), 2, False),
    ((2.0, 1.0, 1.5), 2, True),
  ],
)
def test_no_better_for_so_many_evaluations(values, patience, stalled):
  assert stalling.has_stalled(drafts(*values), patience) is stalled


def test_a_run_goes_on_as_long_as_either_gets_better():
  lines = [
    {'tokens_per_call': 2.0, 'loss/main': loss} for loss in (1.0, 0.9, 0.8)
  ]
  assert not stalling.has_stalled(lines, 2)
  worse = [{'loss/main': loss} for loss in (0.8, 0.9, 1.0)]
  assert stalling.has_stalled(worse, 2)


def test_evaluations_of_a_run_that_goes_on_count(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [
    {'step': 1, 'split': 'train', 'loss/main': 1.0},
    {'step': 2, 'split': 'eval', 'tokens_per_call': 1.5},
    {'step': 4, 'split': 'eval', 'tokens_per_call': 1.6},
  ]
  path.write_text(''.join(json.dumps(x) + '\n' for x in lines) + '{"step": 5')
  assert stalling.read(str(path), 3) == lines[1:2]
  assert stalling.read(str(path), 4) == lines[1:]
  assert stalling.read(str(tmp_path / 'none'), 4) == []


def test_a_run_that_gets_no_better_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(stalling, '_LEAST', 9.0)  # nothing counts as better
  outcome = train_process.run(
    tmp_path,
    train_process.Memory(),
    eval_every=2,
    patience=2,
    step_cost=1.25,
  )
  assert int(outcome.state.step) == 6 and not outcome.interrupted
  assert (tmp_path / 'checkpoints' / '6').is_dir()
  for line in stalling.read(str(tmp_path / 'metrics.jsonl'), 6):
    assert line['predicted_speedup'] == line['tokens_per_call'] / 1.25
