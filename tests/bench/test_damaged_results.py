# SPDX-License-Identifier: Apache-2.0
"""Results, journals, metrics and recipes of runs, damaged in every way."""

import json

import evaluation_samples
import fuzzing
import pytest

from specstream_jax.bench import journal, journal_lines, results
from specstream_jax.cli import decoding_flags
from specstream_jax.report import plots, results_table, table
from specstream_jax.training import metric_files as metrics
from specstream_jax.workflows import resume, train_draft_model

HEADER = {'options': {'seed': 0}, 'source': 'm'}
LINES = [
  HEADER,
  {'key': ['none', 'cold', 0, 1], 'batch': 0, 'seconds': 1.5},
  {
    'key': ['none', 0, 0],
    'tokens': [[1, 2], [3]],
    'accept_lengths': [[0], []],
    'calls': [1, 0],
    'prefill_seconds': 0.1,
    'decode_seconds': 0.2,
  },
]
ANSWERS = [
  HEADER,
  {
    'key': [0],
    'prompt': 'a',
    'completion': 'b',
    'num_tokens': 1,
    'finished': True,
  },
]
METRICS = [
  {'step': 1, 'split': 'train', 'loss/main': 2.5, 'top1/stream_1': 0.5},
  {'step': 2, 'split': 'eval', 'loss/main': 2.0, 'tokens_per_call': 1.5},
]


def write_lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@fuzzing.modes
def test_results(tmp_path, mode):
  good = results.to_json(evaluation_samples.document())
  path = tmp_path / 'results.json'
  path.write_text(json.dumps(good))

  def read():
    found = results.read(str(path))
    if found.runs:
      results_table.markdown([found], [found], [found])
      table.format_table(found.runs)

  damages = fuzzing.json_damage(good)
  fuzzing.attempt(mode, damages, path, read)


@pytest.mark.parametrize(
  ('rows', 'problem'),
  [(LINES, journal_lines.measurement), (ANSWERS, journal_lines.answer)],
)
@fuzzing.modes
def test_journal(tmp_path, mode, rows, problem):
  path = tmp_path / 'journal.jsonl'
  write_lines(path, rows)

  def read():
    journal.read(str(path), HEADER, problem)
    journal.Journal(str(path), HEADER, resume=True, problem=problem)

  damages = fuzzing.lines_damage(rows)
  fuzzing.attempt(mode, damages, path, read)


@fuzzing.modes
def test_metrics(tmp_path, mode):
  path = tmp_path / 'metrics.jsonl'
  write_lines(path, METRICS)

  def read():
    plots.read_metrics(path)
    metrics.forget_after(str(path), 9)

  fuzzing.attempt(mode, fuzzing.lines_damage(METRICS), path, read)


@fuzzing.modes
def test_training_curves(tmp_path, mode):
  path = tmp_path / 'metrics.jsonl'
  write_lines(path, METRICS)
  read = lambda: plots.training_curves(path)
  fuzzing.attempt(mode, fuzzing.lines_damage(METRICS), path, read, cost=10)


@fuzzing.modes
def test_tree_choices(tmp_path, mode):
  good = [[0], [1], [0, 0]]
  path = tmp_path / 'choices.json'
  path.write_text(json.dumps(good))
  read = lambda: decoding_flags._choices(str(path))
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read)


@fuzzing.modes
def test_provenance(tmp_path, mode):
  good = {'recipe': {'num_layers': 4}}
  path = tmp_path / train_draft_model.PROVENANCE
  path.write_text(json.dumps(good))
  read = lambda: train_draft_model.read_provenance(tmp_path)
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read, is_named=False)


@fuzzing.modes
def test_recipe_of_a_run_that_goes_on(tmp_path, mode):
  good = {'train': {'num_steps': 9, 'batch_size': 2}, 'run': {'base': 'm'}}
  path = tmp_path / 'recipe.json'
  path.write_text(json.dumps(good))

  def read():
    raw = resume.files.read_json(path)
    resume._check(str(tmp_path), 3, raw, good)

  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'key': 5}, r'j\.jsonl:2: key is 5; accepted: a list'),
    ({'key': [[1]]}, r'j\.jsonl:2: key is .*; accepted: a list'),
    ({'key': [1]}, r'j\.jsonl:2: it has no tokens; accepted: a list of lists'),
    (LINES[2] | {'calls': [1]}, r'of \[2, 2, 1\] rows; remove the line'),
    (LINES[1] | {'seconds': -1}, 'seconds is -1; accepted: a number >= 0'),
  ],
)
def test_a_line_that_is_no_measurement(tmp_path, line, message):
  path = tmp_path / 'j.jsonl'
  write_lines(path, [HEADER, line])
  with pytest.raises(ValueError, match=message):
    journal.read(str(path), HEADER, journal_lines.measurement)


def test_a_last_line_that_ends_within_a_character_is_left_out(tmp_path):
  write_lines(tmp_path / 'j.jsonl', [*ANSWERS, ANSWERS[1] | {'key': [1]}])
  text = json.dumps(ANSWERS[1] | {'completion': '€'}, ensure_ascii=False)
  with open(tmp_path / 'j.jsonl', 'ab') as file:
    file.write(text.encode()[: text.index('€') + 1])
  found = journal.read(str(tmp_path / 'j.jsonl'), HEADER, journal_lines.answer)
  assert list(found) == [(0,), (1,)]
