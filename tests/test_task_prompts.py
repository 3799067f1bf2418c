# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/task_prompts.py, split_sql.py and records_of_answers.py."""

import gzip
import json

import byte_model
import experiments
import numpy as np
import pytest

from specstream_jax.checkpoints import draft_vocabulary
from specstream_jax.data import records

MRS = [
  'name[Aromi], area[riverside], food[French]',
  'name[Zizzi], area[city centre]',
  'name[Aromi], area[riverside], food[French]',
]


def rows(path):
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


@pytest.fixture(name='e2e', scope='module')
def fixture_e2e(tmp_path_factory):
  folder = tmp_path_factory.mktemp('e2e')
  lines = [f'"{mr}",Text {i}.' for i, mr in enumerate(MRS)]
  (folder / 'train.csv').write_text('\n'.join(['mr,ref', *lines]) + '\n')
  (folder / 'dev.csv').write_text(f'mr,ref\n"{MRS[1]}",Other.\n')
  return folder


def test_prompts_are_there_once_and_clear_of_other_splits(e2e, tmp_path):
  out = tmp_path / 'prompts.jsonl'
  common = ('--task=e2e_nlg', f'--data_dir={e2e}', f'--output={out}')
  assert experiments.run('task_prompts.py', *common).returncode == 0
  found = [row['prompt'] for row in rows(out)]
  assert found == [f'{mr}\nDescription:' for mr in MRS[:2]]
  done = experiments.run(
    'task_prompts.py', *common, '--exclude=dev', '--shortened=9'
  )
  assert done.returncode == 0, done.stderr
  found = [row['prompt'] for row in rows(out)]
  assert found[0] == f'{MRS[0]}\nDescription:'
  assert set(found[1:]) == {
    f'name[Aromi]{rest}\nDescription:'
    for rest in ('', ', area[riverside]', ', food[French]')
  }


def test_references_keep_every_row(e2e, tmp_path):
  out = tmp_path / 'pairs.jsonl'
  words = ('--task=e2e_nlg', f'--data_dir={e2e}', f'--output={out}')
  assert (
    experiments.run('task_prompts.py', *words, '--references').returncode == 0
  )
  assert [row['completion'] for row in rows(out)] == [
    f' Text {i}.' for i in range(3)
  ]


def test_other_tasks_cannot_be_shortened(tmp_path):
  done = experiments.run(
    'task_prompts.py', '--task=jsonl', '--shortened=1', f'--output={tmp_path}/x'
  )
  assert done.returncode == 1 and 'is for E2E tasks' in done.stderr


def test_no_table_is_on_two_sides(tmp_path):
  tables = ['a', 'b', 'a', 'c', 'd', 'b', 'e', 'a']
  contexts = [f'CREATE TABLE {name} (x VARCHAR)' for name in tables]
  contexts[4] += ' CREATE TABLE C (y VARCHAR)'  # c and d belong together
  path = tmp_path / 'rows.jsonl.gz'
  with gzip.open(path, 'wt') as file:
    for i, text in enumerate(contexts):
      file.write(json.dumps({'context': text, 'answer': str(i)}) + '\n')
  done = experiments.run(
    'split_sql.py', f'--rows={path}', f'--output_dir={tmp_path}/out',
    '--dev=1', '--test=1',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  parts = {
    name: [
      int(row['answer']) for row in rows(tmp_path / 'out' / f'{name}.jsonl')
    ]
    for name in ('train', 'dev', 'test')
  }
  assert sorted(i for part in parts.values() for i in part) == list(range(8))
  groups = [{0, 2, 7}, {1, 5}, {3, 4}, {6}]
  for part in parts.values():
    assert part and all(g <= set(part) or not g & set(part) for g in groups)
  assert {0, 2, 7} <= set(parts['train'])  # the largest


def test_rows_without_a_table_are_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'context': 'SELECT 1'}) + '\n')
  done = experiments.run(
    'split_sql.py', f'--rows={path}', f'--output_dir={tmp_path}/out'
  )
  assert done.returncode == 1 and 'row 1 has no CREATE TABLE' in done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr


def test_records_of_answers(tmp_path):
  byte_model.write_model(tmp_path / 'model', byte_model.model_config())
  (tmp_path / 'model' / 'tokenizer_config.json').write_text(
    '{"eos_token": "<eos>"}'
  )
  answers = tmp_path / 'train.jsonl'
  answers.write_text(
    '{"prompt": "ab:", "completion": " c", "finished": true}\n'
    '{"prompt": "d:", "completion": " ef", "finished": false}\n'
  )
  done = experiments.run(
    'records_of_answers.py', f'--answers={answers}',
    f'--tokenizer={tmp_path}/model', f'--output_dir={tmp_path}/records',
    f'--draft_vocabulary={tmp_path}/vocabulary.json',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  tokenizer = byte_model.byte_tokenizer()
  ids = lambda text: tokenizer.encode(text).ids
  found = [
    (a.tolist(), b.tolist()) for a, b in records.read(f'{tmp_path}/records')
  ]
  assert found == [(ids('ab:'), [*ids(' c'), 0]), (ids('d:'), ids(' ef'))]
  kept = draft_vocabulary.load(
    f'{tmp_path}/vocabulary.json', tokenizer_sha256=None, vocab_size=257
  )
  assert kept.tolist() == np.unique([*ids(' cef'), 0]).tolist()
