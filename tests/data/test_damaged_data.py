# SPDX-License-Identifier: Apache-2.0
"""Records, task files, tables and questions, damaged in every way."""

import functools
import gzip
import io
import json
import os
import pathlib
import zipfile

from array_record.python import array_record_module
import data_testing
import fuzzing
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from specstream_jax.checkpoints import draft_vocabulary, ngram_table
from specstream_jax.data import batches, questions, readers, records, registry

PAIRS = [
  {'prompt': 'a b', 'completion': ' c', 'finished': True},
  {'prompt': 'd', 'completion': ' e'},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('records') / 'r'
  data_testing.write_records(path, 20)
  return path


def read_all(folder):
  """What `train` reads, and a batch."""
  manifest = records.read_manifest(folder)
  records.check_tokenizer(manifest, 'abc', str(folder))
  records.check_ids(folder, 5000)
  next(batches.open_batches(str(folder), batch_size=3, sequence_length=20))
  return list(records.read(folder))


@fuzzing.modes
def test_manifest(folder, mode):
  path = folder / records.MANIFEST
  good = json.loads(path.read_text())
  read = functools.partial(read_all, folder)
  fuzzing.attempt(mode, fuzzing.json_damage(good), path, read, cost=4)


@st.composite
def shard_damage(draw, good: bytes, folder: pathlib.Path):
  """Other bytes, or a whole file of records that are none."""
  if draw(st.booleans()):
    places = [i for i in range(0, len(good), 8) if any(good[i : i + 8])]
    head = draw(st.sampled_from([places[-1], 200]))
    return draw(fuzzing.bytes_damage(good, head=head))
  small = st.integers(-3, 9)
  contents = st.one_of(
    st.binary(max_size=9),
    st.lists(small, max_size=9).map(lambda x: np.array(x, '<i4').tobytes()),
  )
  path = str(folder / 'other.array_record')
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
  for content in draw(st.lists(contents, min_size=20, max_size=20)):
    writer.write(content)
  writer.close()
  return fuzzing.Damage(pathlib.Path(path).read_bytes(), what='records')


@fuzzing.modes
def test_shard(folder, mode, tmp_path):
  path = next(folder.glob('*.array_record'))
  damages = shard_damage(path.read_bytes(), tmp_path)
  read = functools.partial(read_all, folder)
  fuzzing.attempt(mode, damages, path, read, cost=4)


@fuzzing.modes
def test_draft_vocabulary(folder, mode, tmp_path):
  path = tmp_path / draft_vocabulary.FILE
  draft_vocabulary.save(
    str(path), *draft_vocabulary.build(*records.with_source(str(folder)))
  )
  read = functools.partial(
    draft_vocabulary.load,
    str(path),
    tokenizer_sha256='abc',
    vocab_size=5000,
    size=7,
  )
  # A field that says where the tokens come from is nobody's input.
  damages = fuzzing.json_damage(json.loads(path.read_text()))
  fuzzing.attempt(mode, damages, path, read, is_named=False)


@fuzzing.modes
def test_ngram_table(folder, mode, tmp_path):
  path = tmp_path / ngram_table.FILE
  ngram_table.save(
    str(path), *ngram_table.build(*records.with_source(str(folder)))
  )
  damages = fuzzing.tensor_damage(path.read_bytes())

  def read():
    table, metadata = ngram_table.load(str(path))
    ngram_table.check_tokenizer(str(path), metadata, 'abc')
    return table

  fuzzing.attempt(mode, damages, path, read)


@pytest.mark.parametrize('skip', [False, True])
@fuzzing.modes
def test_jsonl(mode, tmp_path, skip):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in PAIRS))
  task = registry.get('jsonl')
  read = lambda: task.load('train', str(tmp_path), skip_bad_rows=skip)
  damages = fuzzing.lines_damage(PAIRS)
  fuzzing.attempt(mode, damages, path, read, is_named=False)


@fuzzing.modes
def test_json_array(mode, tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(json.dumps(PAIRS))
  read = lambda: registry.get('jsonl').load('train', str(tmp_path))
  damages = fuzzing.json_damage(PAIRS)
  fuzzing.attempt(mode, damages, path, read, is_named=False)


@fuzzing.modes
def test_csv(mode, tmp_path):
  path = tmp_path / 'train.csv'
  good = b'mr,ref\n"name[A], area[b]","A is, in ""b""."\nx,y\n'
  path.write_bytes(good)
  read = lambda: registry.get('e2e_nlg').load('train', str(tmp_path))
  fuzzing.attempt(mode, fuzzing.bytes_damage(good), path, read)


def zipped(name, content):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr(name, content)
  return buffer.getvalue()


@pytest.mark.parametrize('name', ['train.jsonl.gz', 'all.zip'])
@fuzzing.modes
def test_packed(mode, tmp_path, name):
  text = ''.join(json.dumps(row) + '\n' for row in PAIRS * 9)
  content = gzip.compress(text.encode(), mtime=0)
  if name == 'all.zip':
    content = zipped('train.jsonl', text)
  path = tmp_path / name
  path.write_bytes(content)
  read = lambda: registry.get('jsonl').load('train', str(tmp_path))
  fuzzing.attempt(mode, fuzzing.bytes_damage(content), path, read)


@fuzzing.modes
def test_questions(mode, tmp_path):
  rows = [
    {'question_id': 7, 'category': 'math', 'turns': ['hi', 'and you']},
    {'question_id': 8, 'category': 'math', 'turns': ['one and two']},
  ]
  path = tmp_path / 'question.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  read = lambda: questions.load('spec_bench', '', str(tmp_path))
  fuzzing.attempt(mode, fuzzing.lines_damage(rows), path, read)


def test_a_row_that_cannot_be_read_is_skipped_on_request(tmp_path):
  path = tmp_path / 'a.jsonl'
  good = json.dumps(PAIRS[1])
  bad = ['{"a":' * 100000, '{"prompt": ' + '1' * 5000 + '}', good[:-1]]
  path.write_text('\n'.join([*bad, good, '']))
  found = readers.read_jsonl(str(path), skip_bad_rows=True)
  assert found.pairs == (('d', ' e'),) and found.num_skipped == 3
  with pytest.raises(ValueError, match=r'a\.jsonl:1: not JSON: nested more'):
    readers.read_jsonl(str(path))


def test_records_that_their_manifest_does_not_count(tmp_path):
  data_testing.write_records(tmp_path / 'r', 5)
  path = tmp_path / 'r' / records.MANIFEST
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | {'num_examples': 7}))
  with pytest.raises(ValueError, match=r"r' holds 5 records, its .* says 7"):
    batches.open_batches(
      os.fspath(tmp_path / 'r'), batch_size=1, sequence_length=20
    )


def test_longer_records_than_their_manifest_says(tmp_path):
  data_testing.write_records(tmp_path / 'r', 5)
  path = tmp_path / 'r' / records.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['lengths']['total']['max'] = 2
  path.write_text(json.dumps(manifest))
  rows = batches.open_batches(
    os.fspath(tmp_path / 'r'), batch_size=5, sequence_length=20
  )
  with pytest.raises(ValueError, match=r'tokens, manifest.json says at most 2'):
    next(rows)


@pytest.mark.parametrize(
  ('checks', 'probs', 'message'),
  [
    (np.zeros((2, 8)), np.zeros((2, 8), 'f2'), r'checks is float64 \(2, 8\)'),
    (np.zeros((2, 8), 'u4'), np.zeros(8, 'f2'), r'probs is float16 \(8,\)'),
    (np.zeros((3, 8), 'u4'), np.zeros((3, 8), 'f2'), 'H a power of two'),
    (np.zeros((0, 8), 'u4'), np.zeros((0, 8), 'f2'), 'H a power of two'),
    (np.zeros((2, 8), 'u4'), np.zeros((4, 8), 'f2'), r'probs \(4, 8\)'),
    (np.zeros((2, 8), 'u4'), np.full((2, 8), np.nan, 'f2'), 'no probability'),
    (np.zeros((2, 8), 'u4'), np.full((2, 8), 2, 'f2'), 'no probability'),
  ],
)
def test_ngram_tables_that_are_none(tmp_path, checks, probs, message):
  path = str(tmp_path / 't.safetensors')
  tensors = {'checks': checks, 'probs': probs}
  safetensors_numpy.save_file(tensors, path, {'format': ngram_table.FORMAT})
  with pytest.raises(
    ValueError, match=rf't\.safetensors.: .*{message}.*; write'
  ):
    ngram_table.load(path)


def test_ngram_table_with_metadata_of_another_kind(tmp_path):
  path = str(tmp_path / 't.safetensors')
  tensors = {'checks': np.zeros((1, 8), 'u4'), 'probs': np.zeros((1, 8), 'f2')}
  text = {'format': ngram_table.FORMAT, 'task': 'x'}
  safetensors_numpy.save_file(tensors, path, text)
  with pytest.raises(ValueError, match=r'its metadata is not JSON \(Expecting'):
    ngram_table.load(path)


@pytest.mark.parametrize(
  'ids', [5, [0.5], [[1]], ['1'], [2**40], [-1], {'a': 1}]
)
def test_draft_vocabularies_that_are_none(tmp_path, ids):
  path = tmp_path / 'v.json'
  path.write_text(json.dumps({'format': draft_vocabulary.FORMAT, 'ids': ids}))
  with pytest.raises(
    ValueError, match=r'v\.json.: ids is .*a list of token ids'
  ):
    draft_vocabulary.load(str(path), tokenizer_sha256=None, vocab_size=9)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('5', ':1: a JSON int; expected'),
    ('{', r':1: not JSON \(.*; expected'),
    ('{"question_id": 1e999}', ':1: question_id is inf; accepted'),
    (
      '{"question_id": 1, "category": 5}',
      ':1: category is 5; accepted: a text',
    ),
    (
      '{"question_id": 1, "category": "a", "turns": "b"}',
      ":1: turns is 'b'; accepted: a list of texts, none of them empty",
    ),
    (
      '{"question_id": 1, "category": "a", "turns": [" "]}',
      ':1: turns is .*accepted',
    ),
    ('{"category": "\udcff"}', ':1: not valid UTF-8; expected'),
  ],
)
def test_questions_that_are_none(tmp_path, line, message):
  path = tmp_path / 'question.jsonl'
  path.write_bytes(line.encode('utf-8', 'surrogateescape'))
  with pytest.raises(ValueError, match=rf'question\.jsonl{message}'):
    questions.load('spec_bench', '', str(tmp_path))


def test_questions_may_be_packed(tmp_path):
  row = {'question_id': 7, 'category': 'math', 'turns': ['hi']}
  (tmp_path / 'question.jsonl.gz').write_bytes(
    gzip.compress(json.dumps(row).encode())
  )
  (found,) = questions.load('spec_bench', '', str(tmp_path))
  assert found.turns == ('hi',)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'files': 'x'}, "files is 'x'; accepted: a list of one name"),
    ({'files': []}, r'files is \[\]; accepted: a list of one name'),
    ({'lengths': {}}, 'lengths is {}; accepted: statistics of inputs'),
    (
      {
        'lengths': {
          key: {'max': 3, 'mean': 'a'} for key in ('inputs', 'targets', 'total')
        }
      },
      'lengths is .*; accepted: statistics of inputs',
    ),
    ({'num_examples': 0}, 'num_examples is 0; accepted: an integer >= 1'),
    ({'tokenizer_sha256': 5}, 'tokenizer_sha256 is 5; accepted: a text'),
    ({'format_version': [1]}, r'has format_version \[1\]; accepted: 1'),
  ],
)
def test_manifests_that_are_none(tmp_path, change, message):
  data_testing.write_records(tmp_path / 'r', 5)
  path = tmp_path / 'r' / records.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=rf'r/manifest\.json.*{message}'):
    records.read_manifest(str(tmp_path / 'r'))


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (b'', 'record 1 has 0 bytes; accepted: a multiple of 4 above 0'),
    (b'abcde', 'record 1 has 5 bytes; accepted'),
    (
      np.array([3, 1], '<i4').tobytes(),
      '1 tokens, of which the prompt takes 3',
    ),
    (np.array([-1], '<i4').tobytes(), '0 tokens, of which the prompt takes -1'),
  ],
)
def test_records_that_are_none(tmp_path, record, message):
  path = str(tmp_path / 'a.array_record')
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
  writer.write(record)
  writer.close()
  with pytest.raises(ValueError, match=rf'a\.array_record: .*{message}'):
    list(records.read_file(path))


@pytest.mark.parametrize('content', [b'', b'x' * 100, bytes(70000)])
def test_shards_that_are_none(tmp_path, content):
  path = tmp_path / 'a.array_record'
  path.write_bytes(content)
  message = r'a\.array_record is cut short or damaged \(.*; prepare the records'
  with pytest.raises(ValueError, match=message):
    list(records.read_file(str(path)))
