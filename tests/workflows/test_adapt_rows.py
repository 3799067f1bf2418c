# SPDX-License-Identifier: Apache-2.0
"""Rows as files of splits, what is said of bad ones, settings of a folder."""

import json

import pytest

from specstream_jax.data import registry, row_shapes
from specstream_jax.workflows import adapt_rows, adapt_run, adapt_settings

ROWS = [{'prompt': f'p{i}', 'completion': f' c{i}', 'id': i} for i in range(20)]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def read(path, **options):
  return adapt_rows.read(path, row_shapes.Shape(), **options)


def test_rows_become_files_of_the_task_jsonl(tmp_path):
  found = read(write(tmp_path / 'a.jsonl', [*ROWS, ROWS[3]]))
  assert found.lines() == [
    'rows: 21 read, 0 bad ones left out, 1 duplicates left out',
    'split by what a prompt says, none on two sides: 16 train, 2 dev, 2 test '
    'examples',
    'columns that are not used: id',
  ]
  assert found.has_answers and not found.end
  adapt_rows.write(str(tmp_path / 'rows'), found)
  task, together = registry.get('jsonl'), set()
  for split in ('train', 'dev', 'test'):
    for row in task.load_split(split, str(tmp_path / 'rows')):
      together.add((row.inputs, *row.references))
  assert together == {(row['prompt'], row['completion']) for row in ROWS}
  done = json.loads((tmp_path / 'rows' / adapt_rows.DONE).read_text())
  assert done['num_examples'] == {'train': 16, 'dev': 2, 'test': 2}


def test_answers_that_stick_to_their_prompts_are_told(tmp_path):
  rows = [{'prompt': f'p{i}', 'completion': 'c'} for i in range(9)]
  note = read(write(tmp_path / 'a.jsonl', rows)).lines()[2]
  assert 'without a space, as in' in note and "c'; end prompts" in note
  spaced = [row | {'completion': ' c'} for row in rows]
  assert len(read(write(tmp_path / 'b.jsonl', spaced)).lines()) == 2


def test_bad_rows_are_all_named(tmp_path):
  bad = [{'prompt': ''}] * 11 + [{'text': 'x'}]
  path = write(tmp_path / 'a.jsonl', [*ROWS, *bad])
  with pytest.raises(ValueError, match='12 of 32 rows are bad') as error:
    read(path)
  text = str(error.value)
  assert f'  {path}:21, {path}:22, ' in text
  assert f'{path}:30 and 1 more: the prompt is empty\n' in text
  assert f'  {path}:32: has columns' in text
  assert text.endswith('leave them out: --skip_bad_rows')
  found = read(path, skip_bad_rows=True)
  assert (found.num_rows, found.num_bad) == (20, 12)


def test_a_column_of_another_name_is_one_mistake(tmp_path):
  path = write(tmp_path / 'a.jsonl', [{'ask': f'p{i}'} for i in range(40)])
  for skip in (False, True):
    with pytest.raises(ValueError, match='40 of 40 rows are bad') as error:
      read(path, skip_bad_rows=skip)
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and "and 30 more: has columns 'ask'" in lines[1]
    assert lines[2] == 'correct them'


def test_many_kinds_of_mistakes_are_counted(tmp_path):
  bad = [{f'odd{i}': 'x'} for i in range(12)]
  path = write(tmp_path / 'a.jsonl', [*ROWS, *bad])
  with pytest.raises(ValueError, match='… and 2 more kinds'):
    read(path)


def test_no_rows_are_told(tmp_path):
  with pytest.raises(ValueError, match='there are none'):
    read(write(tmp_path / 'a.jsonl', []))


def found(tmp_path, **row):
  rows = [{'prompt': f'p{i}', **row} for i in range(9)]
  return read(write(tmp_path / 'a.jsonl', rows))


def test_auto_goes_by_the_answers(tmp_path):
  mode = lambda options, rows: adapt_run.choose(options, rows)
  options, answered = adapt_run.Options(), found(tmp_path, completion='x')
  assert mode(options, answered)[0] == 'fine_tuned'
  name, why = mode(adapt_run.Options(on_adapter='mine'), answered)
  assert name == 'lossless' and 'those of mine' in why
  name, why = mode(options, found(tmp_path))
  assert name == 'lossless' and '9 of 9 rows have no answer, such as ' in why
  assert why.count('a.jsonl:1:') == 1
  with pytest.raises(ValueError, match='learns the answers of the rows'):
    mode(adapt_run.Options(mode='fine_tuned'), found(tmp_path))


def test_a_few_rows_without_an_answer_are_mistakes(tmp_path):
  shape = row_shapes.Shape()
  rows = [{'prompt': f'p{i}', 'completion': 'x'} for i in range(20)]
  rows[3]['completion'] = None
  path = write(tmp_path / 'a.jsonl', rows)
  with pytest.raises(ValueError, match=r'a\.jsonl:4: has no answer, and nea'):
    adapt_rows.read(path, shape, wants_answers=True)
  kept = adapt_rows.read(path, shape, wants_answers=True, skip_bad_rows=True)
  assert kept.has_answers and (kept.num_rows, kept.num_bad) == (19, 1)
  # Who asks for no answers needs none, and many without are no mistake.
  assert not adapt_rows.read(path, shape).has_answers
  for row in rows[:5]:
    row['completion'] = None
  path = write(tmp_path / 'b.jsonl', rows)
  found = adapt_rows.read(path, shape, wants_answers=True)
  assert found.num_rows == 20 and len(found.without) == 5
  why = adapt_run.choose(adapt_run.Options(), found)[1]
  assert '5 of 20 rows have no answer' in why


@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'mode': 'fast'}, "mode is 'fast'; accepted: 'auto', 'fine_tuned'"),
    ({'chat': 'x'}, "chat is 'x'; accepted: 'auto', 'always'"),
    ({'time_limit': 0.0}, 'time_limit is 0.0; accepted: minutes, more than 0'),
    ({'mode': 'fine_tuned', 'on_adapter': 'a'}, '--on_adapter=a keeps the'),
    ({'max_new_tokens': -1}, 'max_new_tokens is -1'),
  ],
)
def test_options_out_of_range_are_told(options, problem):
  with pytest.raises(ValueError, match=problem):
    adapt_run.Options(**options)


def test_a_folder_goes_on_with_its_own_settings_only(tmp_path):
  folder = str(tmp_path / 'run')
  assert not adapt_settings.check(folder, {'mode': 'a', 'model': 'm'})
  assert adapt_settings.check(folder, {'mode': 'a', 'model': 'm'})
  with pytest.raises(ValueError, match="mode was 'a', now 'b'\ngive another"):
    adapt_settings.check(folder, {'mode': 'b', 'model': 'm'})


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(
    ValueError, match=r'holds thesis\.tex, but no run of adapt'
  ):
    adapt_settings.check(str(tmp_path), {})
