# SPDX-License-Identifier: Apache-2.0
"""Rows of the tasks: from a folder, and from the originals on the hub."""

import csv
import itertools
import json

import huggingface_hub
import pytest

from specstream_jax.data import registry

SQL = [
  {
    'question': f'How many {i}?',
    'context': 'CREATE TABLE t (a INT)',
    'answer': a,
  }
  for i, a in enumerate(f'SELECT {i} FROM t' for i in range(103))
]


def dialogues(path, rows):
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['id', 'dialogue', 'summary', 'topic'])
    writer.writerows(rows)


def hub(monkeypatch, folder, asked=None):
  """The hub is a folder here."""

  def download(repository, name, *, repo_type, **_):
    if asked is not None:
      asked.append((repository, name, repo_type))
    return str(folder / name)

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)


def test_three_summaries_of_a_dialogue_are_three_references(tmp_path):
  rows = [(f't_{i}', '#A#: hi\n#B#: ho', f'summary {i}', 'x') for i in range(3)]
  rows += [('u_0', '#A#: bye', 'they part', 'y')]
  dialogues(tmp_path / 'dialogsum_test.csv', rows)
  examples = registry.get('dialogsum').load_split('test', str(tmp_path))
  assert [e.references for e in examples] == [
    ('summary 0', 'summary 1', 'summary 2'),
    ('they part',),
  ]
  assert '#A#: hi\n#B#: ho' in examples[0].inputs


def test_dialogsum_comes_from_the_hub(tmp_path, monkeypatch):
  asked = []
  hub(monkeypatch, tmp_path, asked)
  dialogues(
    tmp_path / 'validation.csv', [('v_0', '#A#: hi', 'a greeting', 'x')]
  )
  (example,) = registry.get('dialogsum').load_split('dev')
  assert example.references == ('a greeting',)
  assert asked == [('knkarthick/dialogsum', 'validation.csv', 'dataset')]


def test_the_authors_test_rows_hold_three_references(tmp_path):
  rows = [
    {'fname': 't_0', 'dialogue': '#A#: hi '}
    | {f'summary{i}': f'text {i}' for i in (1, 2, 3)},
    {'fname': 't_1', 'dialogue': '#A#: ho', 'summary1': 'one'},
  ]
  path = tmp_path / 'dialogsum.test.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  examples = registry.get('dialogsum').load_split('test', str(tmp_path))
  assert [e.references for e in examples] == [
    ('text 1', 'text 2', 'text 3'),
    ('one',),
  ]
  train = {'fname': 'a', 'dialogue': '#A#: hi', 'summary': 's', 'topic': 'x'}
  (tmp_path / 'dialogsum.train.jsonl').write_text(json.dumps(train))
  (example,) = registry.get('dialogsum').load_split('train', str(tmp_path))
  assert example.references == ('s',)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'dialogue': 'a', 'topic': 'x'}, 'jsonl:1: has no summary, only'),
    ({'summary': 'a'}, 'jsonl:1: has no dialogue, only'),
    ({'dialogue': 'a', 'summary2': ''}, 'jsonl:1: summary2 is empty'),
  ],
)
def test_bad_lines_of_dialogues(tmp_path, row, message):
  (tmp_path / 'dialogsum.dev.jsonl').write_text(json.dumps(row))
  with pytest.raises(ValueError, match=message):
    registry.get('dialogsum').load('dev', str(tmp_path))


@pytest.mark.parametrize(
  ('header', 'row', 'message'),
  [
    (
      ['id', 'dialogue', 'topic'],
      ['a', '#A#: hi', 'x'],
      "needs the columns 'dialogue' and 'summary'",
    ),
    (
      ['id', 'dialogue', 'summary', 'topic'],
      ['a', '#A#: hi', ' ', 'x'],
      'test.csv:2: summary is empty; correct the row',
    ),
  ],
)
def test_bad_dialogues(tmp_path, header, row, message):
  with open(tmp_path / 'test.csv', 'w', newline='') as file:
    csv.writer(file).writerows([header, row])
  with pytest.raises(ValueError, match=message):
    registry.get('dialogsum').load('test', str(tmp_path))


def test_the_original_sql_file_is_split_without_overlap(tmp_path, monkeypatch):
  asked = []
  hub(monkeypatch, tmp_path, asked)
  (tmp_path / 'sql_create_context_v4.json').write_text(json.dumps(SQL))
  task = registry.get('sql_create_context')
  parts = {split: task.load_split(split) for split in task.splits}
  assert asked[0] == (
    'b-mc2/sql-create-context',
    'sql_create_context_v4.json',
    'dataset',
  )
  found = {k: [e.references[0] for e in part] for k, part in parts.items()}
  assert found['dev'] == ['SELECT 48 FROM t', 'SELECT 98 FROM t']
  assert found['test'] == ['SELECT 49 FROM t', 'SELECT 99 FROM t']
  assert sorted(itertools.chain(*found.values())) == sorted(
    r['answer'] for r in SQL
  )
  # The same file in a folder of the user's.
  again = task.load_split('test', str(tmp_path))
  assert [e.inputs for e in again] == [e.inputs for e in parts['test']]


def test_sql_parts_are_found_by_their_names(tmp_path):
  def write(name, answer):
    row = {'question': 'q', 'context': 'c', 'answer': answer}
    (tmp_path / name).write_text(json.dumps(row))

  task = registry.get('sql_create_context')
  for name in ('wikisql_train.jsonl', 'train.jsonl'):
    write(name, f'SELECT {name[:6]}')
    examples = task.load_split('train', str(tmp_path))
    assert [e.references for e in examples] == [(f'SELECT {name[:6]}',)]


def test_an_original_too_small_to_split(tmp_path):
  (tmp_path / 'sql_create_context_v4.json').write_text(json.dumps(SQL[:9]))
  with pytest.raises(ValueError, match="has 9 rows, too few for a split 'dev'"):
    registry.get('sql_create_context').load('dev', str(tmp_path))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[{"question": "q"}, 3', 'not a JSON array'),
    ('[3]', '1: is a JSON int, not an object'),
    ('[{"question": "q", "context": "c"}]', '1: has no answer, only'),
    (
      '{"question": "q", "context": "c", "answer": ""}',
      'jsonl:1: answer is empty',
    ),
  ],
)
def test_bad_sql_rows(tmp_path, text, message):
  (tmp_path / 'test.jsonl').write_text(text)
  with pytest.raises(ValueError, match=message):
    registry.get('sql_create_context').load('test', str(tmp_path))


@pytest.mark.parametrize('task', ['dialogsum', 'sql_create_context'])
def test_a_hub_out_of_reach_is_one_clear_line(task, monkeypatch):
  def unreachable(*_, **__):
    raise ConnectionError('no route\nto host')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', unreachable)
  with pytest.raises(
    ValueError, match=r'from the hub \(no route\); pass --data'
  ):
    registry.get(task).load('test')
