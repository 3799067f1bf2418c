# SPDX-License-Identifier: Apache-2.0
"""Files of rows of every kind, and what is said of those that cannot be."""

import gzip
import sys
import types

import pytest

from specstream_jax.data import row_files


def write(path, text):
  path.write_text(text)
  return str(path)


def columns(source, **options):
  return [row.columns for row in row_files.read(source, **options)]


def test_jsonl_gives_places_and_problems(tmp_path):
  path = write(tmp_path / 'a.jsonl', '{"a": 1}\n\n[2]\n{"a": \n')
  rows = list(row_files.read(path))
  assert rows[0] == row_files.Row(f'{path}:1', {'a': 1})
  assert [row.place for row in rows[1:]] == [f'{path}:3', f'{path}:4']
  assert 'JSON list, not an object' in rows[1].problem
  assert rows[2].problem.startswith('not JSON')


def test_a_json_array_and_gzip(tmp_path):
  assert columns(write(tmp_path / 'a.json', '[{"a": 1}, {"a": 2}]')) == [
    {'a': 1},
    {'a': 2},
  ]
  with gzip.open(tmp_path / 'b.jsonl.gz', 'wt') as file:
    file.write('{"a": 3}\n')
  assert columns(str(tmp_path / 'b.jsonl.gz')) == [{'a': 3}]


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.csv', 'q, a \n"x, y",z\n'),
    ('a.csv', '\ufeffq;a\n"x, y";z\n'),
    ('a.tsv', 'q\ta\nx, y\tz\n'),
  ],
)
def test_tables_with_any_separator(tmp_path, name, text):
  assert columns(write(tmp_path / name, text)) == [{'q': 'x, y', 'a': 'z'}]


def test_a_row_of_a_table_with_a_column_too_many_is_told(tmp_path):
  path = write(tmp_path / 'a.csv', 'q,a\n1,2,3\nx,y\n')
  bad, good = row_files.read(path)
  assert bad.place == f'{path}:2' and bad.problem.startswith('has 3 columns')
  assert good.columns == {'q': 'x', 'a': 'y'}


def test_two_columns_of_one_name_are_refused(tmp_path):
  path = write(tmp_path / 'a.csv', 'q,q\n1,2\n')
  with pytest.raises(ValueError, match='a name for each column, all different'):
    list(row_files.read(path))


def test_parquet(tmp_path):
  arrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  chat = [{'role': 'user', 'content': 'hi'}]
  path = str(tmp_path / 'a.parquet')
  parquet.write_table(arrow.table({'messages': [chat], 'n': [1]}), path)
  assert list(row_files.read(path)) == [
    row_files.Row(f'{path}:row 1', {'messages': chat, 'n': 1})
  ]


def test_a_damaged_parquet_file_is_told(tmp_path):
  pytest.importorskip('pyarrow')
  path = write(tmp_path / 'a.parquet', 'PAR1 no')
  with pytest.raises(ValueError, match='not a whole Parquet file'):
    list(row_files.read(path))


def test_missing_readers_name_their_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  monkeypatch.setitem(sys.modules, 'datasets', None)
  path = write(tmp_path / 'a.parquet', '')
  with pytest.raises(ValueError, match=r"need pyarrow; .*jax\[parquet\]'"):
    list(row_files.read(path))
  with pytest.raises(ValueError, match=r"need datasets; .*jax\[datasets\]'"):
    list(row_files.read('someone/rows'))


def test_a_folder_gives_the_files_of_its_split(tmp_path):
  write(tmp_path / 'test.jsonl', '{"a": 0}')
  write(tmp_path / 'train-1.jsonl', '{"a": 1}')
  write(tmp_path / 'train-2.csv', 'a\n2\n')
  assert columns(str(tmp_path)) == [{'a': 1}, {'a': '2'}]
  assert columns(str(tmp_path), split='dev') == [{'a': 0}, {'a': 1}, {'a': '2'}]


def fake_datasets(monkeypatch, **functions):
  module = types.ModuleType('datasets')
  vars(module).update(functions)
  monkeypatch.setitem(sys.modules, 'datasets', module)


def test_data_sets_of_a_folder_and_of_the_hub(tmp_path, monkeypatch):
  rows = [{'a': 1}, {'a': 2}]
  (tmp_path / 'dataset_dict.json').write_text('{}')
  fake_datasets(
    monkeypatch,
    load_from_disk=lambda path: {'train': rows},
    load_dataset=lambda name, split: rows if split == 'train' else None,
  )
  assert columns(str(tmp_path)) == rows
  assert [row.place for row in row_files.read('me/rows')] == [
    'me/rows:row 1',
    'me/rows:row 2',
  ]
  with pytest.raises(
    ValueError, match="no split 'dev'; accepted: --split=train"
  ):
    columns(str(tmp_path), split='dev')


def test_a_data_set_that_cannot_be_read_is_told(monkeypatch):
  def load_dataset(name, split):
    raise RuntimeError(f'no {split}\nmore')

  fake_datasets(monkeypatch, load_dataset=load_dataset)
  with pytest.raises(ValueError, match=r"'me/x': cannot read .* \(no dev\)"):
    columns('me/x', split='dev')


@pytest.mark.parametrize('name', ['nothing.jsonl', 'a/b.jsonl', 'a b'])
def test_what_is_not_there_is_told(name):
  with pytest.raises(ValueError, match=r'not found; accepted: a file \.jsonl'):
    columns(name)


def test_files_of_no_known_kind_are_told(tmp_path):
  with pytest.raises(ValueError, match='does not say what it holds'):
    columns(write(tmp_path / 'a.txt', 'x'))
  with pytest.raises(ValueError, match='the folder has no file of rows'):
    columns(str(tmp_path))
