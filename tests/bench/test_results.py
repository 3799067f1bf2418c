# SPDX-License-Identifier: Apache-2.0
"""Definitions, round trip, validation and failures of results files."""

import copy
import dataclasses
import json
import os
import pathlib

import evaluation_samples as samples
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.bench import results, schema
from specstream_jax.config import drafting as config_drafting
from specstream_jax.outputs import writing

ROOT = pathlib.Path(__file__).parents[2]


def test_ratios_by_hand():
  assert results.call_reduction_ratio(23, 10) == pytest.approx(2.3)
  assert results.step_cost_ratio(25.0, 20.0) == pytest.approx(1.25)
  run = samples.run()
  assert run.predicted_speedup == pytest.approx(1.84)
  assert run.consistency == pytest.approx(1.79 / 1.84)


@pytest.mark.parametrize(
  'ratio, name',
  [
    (results.call_reduction_ratio, 'calls is 0'),
    (results.step_cost_ratio, 'autoregressive_ms is 0'),
  ],
)
def test_no_ratio_over_nothing(ratio, name):
  with pytest.raises(ValueError, match=f'{name}.*more than one token'):
    ratio(5, 0)


def test_round_trip(tmp_path):
  doc = samples.document(samples.run(), samples.run(lossy=True))
  path = results.write(str(tmp_path / 'new' / 'folder'), doc)
  assert os.path.basename(path) == 'results.json'
  assert results.read(path) == doc
  assert os.listdir(os.path.dirname(path)) == ['results.json']
  with open(path, encoding='utf-8') as file:
    assert json.load(file)['schema_version'] == results.SCHEMA_VERSION


def test_numpy_numbers_become_plain():
  run = samples.run(
    calls=np.int64(10),
    speedup=np.float32(1.5),
    accept_length_histogram=np.array([2, 3, 5]),
  )
  values = results.to_json(samples.document(run))
  results.validate(values)
  assert values['runs'][0]['accept_length_histogram'] == [2, 3, 5]


def test_schema_names_the_fields_of_a_run():
  names = [field.name for field in dataclasses.fields(results.RunResult)]
  run = schema.load()['$defs']['run']
  # Added later: files of the same version without them can be read.
  later = {
    'by_prompt_length',
    'prompts_by_length',
    'autoregressive_prefill_ms',
    'sampling',
  }
  assert run['required'] == [n for n in names if n not in later]
  assert list(run['properties']) == names
  version = schema.load()['properties']['schema_version']['const']
  assert version == results.SCHEMA_VERSION


def test_schema_file_means_the_same_to_jsonschema():
  jsonschema = pytest.importorskip('jsonschema')
  jsonschema.Draft202012Validator.check_schema(schema.load())
  validator = jsonschema.Draft202012Validator(schema.load())
  good = results.to_json(samples.document())
  validator.validate(good)
  for _, _, change in _BROKEN:
    broken = copy.deepcopy(good)
    change(broken)
    assert not validator.is_valid(broken)


_BROKEN = [
  (
    'no version',
    r"results has no \['schema_version'\]; required:",
    lambda d: d.pop('schema_version'),
  ),
  (
    'version',
    'results.schema_version is 1; accepted: 2',
    lambda d: d.update(schema_version=1),
  ),
  (
    'no base',
    r"results.source has no \['base'\]",
    lambda d: d['source'].pop('base'),
  ),
  (
    'no speedup',
    r"results.runs\[0\] has no \['speedup'\]",
    lambda d: d['runs'][0].pop('speedup'),
  ),
  (
    'extra',
    r"results.runs\[0\] has 'speed'; accepted: \[",
    lambda d: d['runs'][0].update(speed=1),
  ),
  (
    'text',
    r"results.runs\[0\].speedup is '2x'; accepted: number",
    lambda d: d['runs'][0].update(speedup='2x'),
  ),
  (
    'boolean',
    r'runs\[0\].calls is True; accepted: integer',
    lambda d: d['runs'][0].update(calls=True),
  ),
  (
    'range',
    r'equal_fraction is 1.5; accepted: a finite number from 0 to 1',
    lambda d: d['runs'][0].update(equal_fraction=1.5),
  ),
  (
    'length',
    r'speedup_ci95 has 1 items; accepted: 2 to 2',
    lambda d: d['runs'][0].update(speedup_ci95=[1.0]),
  ),
  (
    'side',
    r"ms_per_call has no \['speculative'\]",
    lambda d: d['runs'][0]['ms_per_call'].pop('speculative'),
  ),
  (
    'item',
    r'samples\[0\].accept_lengths\[1\] is 0.5; accepted: integer',
    lambda d: d['runs'][0]['samples'][0].update(accept_lengths=[1, 0.5]),
  ),
  (
    'score',
    r'quality.speculative.rouge1 is None',
    lambda d: d['runs'][0]['quality']['speculative'].update(rouge1=None),
  ),
]


@pytest.mark.parametrize(
  'message, change',
  [case[1:] for case in _BROKEN],
  ids=[case[0] for case in _BROKEN],
)
def test_validation_names_place_and_value(message, change):
  values = results.to_json(samples.document())
  change(values)
  with pytest.raises(ValueError, match=message):
    results.validate(values)


def test_not_a_number_is_refused(tmp_path):
  doc = samples.document(samples.run(prefill_ms=float('nan')))
  with pytest.raises(ValueError, match='prefill_ms is nan; accepted: a finite'):
    results.write(str(tmp_path), doc)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('inside', ['', 'deeper'])
def test_folder_that_cannot_be_written(tmp_path, inside):
  taken = tmp_path / 'taken'
  taken.write_text('a file')
  with pytest.raises(ValueError, match=r'cannot write .*taken.*give a'):
    results.write(str(taken / inside), samples.document())
  assert os.listdir(tmp_path) == ['taken']


def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  writing.write_text(str(tmp_path / 'a'), 'old')

  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(ValueError, match='No space left on device'):
    writing.write_text(str(tmp_path / 'a'), 'new')
  assert os.listdir(tmp_path) == ['a']
  assert (tmp_path / 'a').read_text() == 'old'


@pytest.mark.parametrize('text', [None, '{', '[]'])
def test_reading_what_is_no_results_file(tmp_path, text):
  path = tmp_path / 'results.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=r'cannot read results from .*give a'):
    results.read(str(path))


def test_versions_and_environment_are_text_and_plain():
  assert {'python', 'jax', 'jaxlib', 'flax', 'specstream_jax'} == set(
    results.versions()
  )
  assert all(isinstance(x, str) for x in results.versions().values())
  assert 'created' in json.loads(json.dumps(results.environment()))


def test_spec_bench_counts_the_tokens_of_a_call(tmp_path):
  record = results.spec_bench_record(
    81, 'writing', ['answer', 'more'], [5, 4], [0.5, 0.25], [3, 0, 1]
  )
  path = tmp_path / 'answers.jsonl'
  results.write_spec_bench(str(path), [record, record])
  lines = path.read_text().splitlines()
  assert len(lines) == 2
  assert json.loads(lines[0]) == {
    'question_id': 81,
    'category': 'writing',
    'choices': [
      {
        'turns': ['answer', 'more'],
        'new_tokens': [5, 4],
        'wall_time': [0.5, 0.25],
        'accept_lengths': [4, 1, 2],
      }
    ],
  }


def test_spec_bench_needs_numbers_for_every_turn():
  with pytest.raises(ValueError, match='question 3 has 2 turns, 1 new_tokens'):
    results.spec_bench_record(3, 'qa', ['a', 'b'], [1], [0.1, 0.2], [])


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'docs' / 'bench').rglob('results.json')), ids=str
)
def test_benchmarks_that_were_written_can_be_read(path):
  """Their drafters, too, are still settings that decode."""
  document = results.read(str(path))
  assert document.runs
  for run in document.runs:
    if not run.external and run.settings:
      made = config.from_json(config_drafting.DrafterConfig, run.settings)
      assert made.name == run.drafter
