# SPDX-License-Identifier: Apache-2.0
"""Files cut short or of the wrong kind end in one line, not a stack trace."""

import gzip
import json

from array_record.python import array_record_module
import data_testing
import pytest

from specstream_jax.checkpoints import files, huggingface_config
from specstream_jax.data import batches, readers, records

CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 8,
  'hidden_size': 4,
  'intermediate_size': 4,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
}


@pytest.mark.parametrize('name', ['a.csv.gz', 'a.jsonl.gz'])
@pytest.mark.parametrize('skip', [False, True])
def test_cut_gzip(tmp_path, name, skip):
  line = '{"prompt": "a", "completion": "b"}\n'
  text = {'csv': 'mr,ref\n' + 'a,b\n' * 9, 'jsonl': line * 9}
  whole = gzip.compress(text[name.split('.')[1]].encode())
  (tmp_path / name).write_bytes(whole[:-9])
  read = readers.read_csv if 'csv' in name else readers.read_jsonl
  with pytest.raises(ValueError, match='damaged or cut short'):
    read(str(tmp_path / name), skip_bad_rows=skip)


def test_header_that_is_not_csv(tmp_path):
  (tmp_path / 'a.csv').write_text('"mr"x,ref\na,b\n')
  with pytest.raises(ValueError, match=r'a\.csv:1: header is not CSV'):
    readers.read_csv(str(tmp_path / 'a.csv'))


def test_json_that_is_no_object(tmp_path):
  (tmp_path / 'a.json').write_text('[]')
  with pytest.raises(ValueError, match='a JSON list, not an object'):
    files.read_json(str(tmp_path / 'a.json'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_hidden_layers': '3'}, "num_hidden_layers is '3'; accepted: an int"),
    ({'num_attention_heads': 0}, 'num_attention_heads is 0'),
    ({'rope_scaling': 'linear'}, "rope_scaling is 'linear'; accepted: an obj"),
    ({'rope_theta': 'abc'}, "rope_theta is 'abc'; accepted: a number"),
    ({'layer_types': 5}, 'layer_types = 5 is not understood'),
    ({'architectures': 'Llama'}, "architectures 'Llama'; accepted"),
  ],
)
def test_config_values_of_the_wrong_type(change, message):
  assert huggingface_config.parse(CONFIG, 'x').num_layers == 1
  raw = json.loads(json.dumps(CONFIG | change))
  with pytest.raises(ValueError, match=message):
    huggingface_config.parse(raw, 'config.json')


def test_json_nested_without_end_names_the_file(tmp_path):
  (tmp_path / 'deep.json').write_text('[' * 200000)
  with pytest.raises(ValueError, match=r"deep\.json' is not JSON \("):
    files.read_json(str(tmp_path / 'deep.json'))


MANIFEST = 'manifest.json'


@pytest.fixture
def folder(tmp_path):
  """Two files of three records each."""
  path = tmp_path / 'records'
  data_testing.write_records(path, 6, num_shards=2)
  return path


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'files': None}, 'files is None; accepted: a list of one name at'),
    ({'files': []}, r'files is \[\]; accepted: a list'),
    ({'files': 'a'}, "files is 'a'; accepted: a list"),
    ({'files': ['../a']}, r"files is \['../a'\]; .* that lie beside it"),
    ({'files': [3]}, r'files is \[3\]; accepted: a list'),
    (
      {'num_examples': '6'},
      "num_examples is '6'; accepted: an integer >= 1",
    ),
    ({'num_examples': 0}, 'num_examples is 0; accepted'),
    ({'lengths': None}, 'lengths is None; accepted: statistics'),
    (
      {'lengths': {'total': {'max': 1.5}}},
      r'lengths is \{.*; accepted: stat',
    ),
    ({'tokenizer_sha256': 5}, 'tokenizer_sha256 is 5; accepted: a text'),
    ({'format_version': None}, 'has format_version None; accepted: 1'),
    ({'files': ['a.array_record']}, 'lacks a.array_record; prepare'),
  ],
)
def test_manifest_fields_name_the_file(folder, change, message):
  manifest = json.loads((folder / MANIFEST).read_text())
  (folder / MANIFEST).write_text(json.dumps(manifest | change))
  with pytest.raises(ValueError, match=f'records.*{message}'):
    records.read_manifest(str(folder))


@pytest.mark.parametrize('text', ['', '{', '[]', '\xff', '[' * 100000])
def test_manifest_that_is_no_json_object(folder, text):
  (folder / MANIFEST).write_text(text, encoding='latin-1')
  with pytest.raises(ValueError, match=r"records/manifest.json' "):
    records.read_manifest(str(folder))


def open_batches(folder):
  return batches.open_batches(str(folder), batch_size=1, sequence_length=99)


@pytest.mark.parametrize('kind', ['empty', 'small', 'zeros', 'half', 'text'])
def test_damaged_record_files_are_named(folder, kind):
  file = folder / records.shard_name(1, 2)
  whole = file.read_bytes()
  damaged = {
    'empty': b'',
    'small': b'x' * 9,
    'zeros': bytes(len(whole)),
    'half': whole[: len(whole) // 2],
    'text': b'a line\n' * 20000,
  }
  file.write_bytes(damaged[kind])
  message = r'00001-of-00002.array_record is cut short or damaged \(.+\); prep'
  for read in (open_batches, lambda path: list(records.read(str(path)))):
    with pytest.raises(ValueError, match=message):
      read(folder)


@pytest.mark.parametrize('odd', [b'', b'abc', b'\5\0\0\0', b'\xff' * 8])
def test_a_record_that_is_none_is_named(folder, odd):
  file = folder / records.shard_name(1, 2)
  good = list(records.read_file(str(file)))
  writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
  for record in (records.encode(*good[0]), odd, records.encode(*good[2])):
    writer.write(record)
  writer.close()
  message = r'00001-of-00002.array_record: record 2 has \d'
  with pytest.raises(ValueError, match=message):
    list(records.read(str(folder)))
  with pytest.raises(ValueError, match=message):
    made = open_batches(folder)
    for _ in range(6):
      next(made)


def test_a_manifest_of_another_number_of_records(folder):
  manifest = json.loads((folder / MANIFEST).read_text())
  changed = json.dumps(manifest | {'num_examples': 7})
  (folder / MANIFEST).write_text(changed)
  with pytest.raises(
    ValueError, match=r'holds 6 records, its manifest.json says 7'
  ):
    open_batches(folder)
