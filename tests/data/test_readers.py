# SPDX-License-Identifier: Apache-2.0
"""Readers name file, line and fault; grouping keeps first appearance."""

import gzip
import json
import zipfile

import pytest

from specstream_jax.data import readers


def _write(path, text):
  path.write_text(text, encoding='utf-8')
  return str(path)


def test_csv_reads_quoted_rows_plain_and_gzip(tmp_path):
  text = 'mr,ref\n"name[A], area[b]","He said ""hi"", twice."\nname[C],D.\n'
  plain = _write(tmp_path / 'train.csv', text)
  with gzip.open(tmp_path / 'train.csv.gz', 'wt', encoding='utf-8') as file:
    file.write(text)
  expected = (
    ('name[A], area[b]', 'He said "hi", twice.'),
    ('name[C]', 'D.'),
  )
  assert readers.read_csv(plain).pairs == expected
  assert readers.read_csv(plain + '.gz').pairs == expected


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    ('name[A]', 'has 1 columns, the header has 2'),
    ('name[A],b,c', 'has 3 columns, the header has 2'),
    ('name[A],', 'ref is empty'),
    ('" ",text', 'mr is empty'),
    ('"name[A]"x,text', 'not CSV'),
  ],
)
def test_csv_names_file_and_line_of_malformed_row(tmp_path, row, problem):
  path = _write(
    tmp_path / 'dev.csv', f'mr,ref\nname[A],ok\n{row}\nname[B],ok\n'
  )
  with pytest.raises(ValueError, match=rf'dev\.csv:3: .*{problem}'):
    readers.read_csv(path)
  rows = readers.read_csv(path, skip_bad_rows=True)
  assert rows.num_skipped == 1
  assert rows.pairs == (('name[A]', 'ok'), ('name[B]', 'ok'))


def test_csv_line_number_counts_lines_inside_quotes(tmp_path):
  path = _write(tmp_path / 'a.csv', 'mr,ref\nx,"two\nlines"\nbad\n')
  with pytest.raises(ValueError, match=r'a\.csv:4: '):
    readers.read_csv(path)


def test_csv_names_bad_encoding(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_bytes(b'mr,ref\nx,caf\xe9\n')
  with pytest.raises(ValueError, match=r'a\.csv:2: ref is not valid UTF-8'):
    readers.read_csv(str(path))


def test_csv_names_missing_columns(tmp_path):
  path = _write(tmp_path / 'a.csv', 'meaning,text\nx,y\n')
  with pytest.raises(ValueError, match="needs the columns 'mr' and 'ref'"):
    readers.read_csv(path)


def test_file_without_rows_is_an_error(tmp_path):
  path = _write(tmp_path / 'a.csv', 'mr,ref\n')
  with pytest.raises(ValueError, match='has no usable rows'):
    readers.read_csv(path)


def test_jsonl_keeps_text_verbatim_under_both_names(tmp_path):
  path = _write(
    tmp_path / 'a.jsonl',
    '{"prompt": " p\\n", "completion": "c "}\n\n{"inputs": "i", "targets": "t"}\n',
  )
  assert readers.read_jsonl(path).pairs == ((' p\n', 'c '), ('i', 't'))


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    ('{"prompt": "a"', 'not JSON'),
    ('["a", "b"]', 'is a JSON list, not an object'),
    ('{"prompt": "a"}', "has no 'completion' or 'targets'"),
    ('{"prompt": 3, "completion": "b"}', 'prompt is int, not text'),
    ('{"prompt": "a", "completion": ""}', 'completion is empty'),
  ],
)
def test_jsonl_names_file_and_line_of_malformed_row(tmp_path, row, problem):
  good = '{"prompt": "a", "completion": "b"}'
  path = _write(tmp_path / 'a.jsonl', f'{good}\n{row}\n{row}\n{good}\n')
  with pytest.raises(ValueError, match=rf'a\.jsonl:2: .*{problem}'):
    readers.read_jsonl(path)
  rows = readers.read_jsonl(path, skip_bad_rows=True)
  assert (len(rows.pairs), rows.num_skipped) == (2, 2)


def test_group_collects_references_that_are_apart():
  pairs = (('b', '1'), ('a', '2'), ('b', '3'))
  assert readers.group(pairs) == [('b', ['1', '3']), ('a', ['2'])]


def test_find_file_lists_what_is_there(tmp_path):
  _write(tmp_path / 'other.txt', '')
  with pytest.raises(ValueError, match=r'none of train\.csv .*it has: other'):
    readers.find_file(str(tmp_path), ('train.csv',))
  with pytest.raises(ValueError, match='is not a folder'):
    readers.find_file(str(tmp_path / 'absent'), ('train.csv',))


def test_a_file_in_an_archive(tmp_path):
  rows = [{'prompt': 'ü', 'completion': 'b'}]
  text = '\n'.join(map(json.dumps, rows))
  (tmp_path / 'broken.zip').write_text('no archive')
  with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as file:
    file.writestr('folder/dev.csv', 'mr,ref\nname[A],A.\n')
    file.writestr('folder/dev.jsonl', text)
  table = readers.find_file(str(tmp_path), ('test.csv', 'dev.csv'))
  assert readers.read_csv(table).pairs == (('name[A]', 'A.'),)
  lines = readers.find_file(str(tmp_path), ('dev.jsonl',))
  assert readers.read_jsonl(lines).pairs == (('ü', 'b'),)
  (tmp_path / 'dev.csv').write_text('mr,ref\nname[B],B.\n')
  plain = readers.find_file(str(tmp_path), ('dev.csv',))
  assert plain == str(tmp_path / 'dev.csv')
  folder = tmp_path / 'folder.zip'
  folder.mkdir()
  (folder / 'dev.csv').write_text('mr,ref\nname[C],C.\n')
  assert readers.read_csv(str(folder / 'dev.csv')).pairs == (('name[C]', 'C.'),)


def test_half_a_surrogate_pair_is_no_text(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"prompt": "a \\ud800 b", "completion": "c"}\n')
  with pytest.raises(
    ValueError, match=r'a\.jsonl:1: prompt is not valid UTF-8'
  ):
    readers.read_jsonl(str(path))
