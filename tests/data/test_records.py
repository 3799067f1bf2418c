# SPDX-License-Identifier: Apache-2.0
"""Records on disk: round trip, counts, and a folder that is whole or absent."""

import json
import os

import data_testing
from grain import python as grain
import numpy as np
import pytest

from specstream_jax.data import records


def _read(path, manifest):
  source = grain.ArrayRecordDataSource(
    [os.path.join(path, name) for name in manifest['files']]
  )
  return [records.decode(source[i]) for i in range(len(source))]


def test_round_trip_over_shards(tmp_path):
  path = tmp_path / 'deep' / 'train'
  examples, manifest = data_testing.write_records(path, 11, num_shards=3)
  order = [i for shard in range(3) for i in range(shard, 11, 3)]
  for (inputs, targets), i in zip(_read(path, manifest), order, strict=True):
    np.testing.assert_array_equal(inputs, examples[i][0])
    np.testing.assert_array_equal(targets, examples[i][1])
  assert records.read_manifest(str(path)) == manifest


def test_manifest_statistics(tmp_path):
  examples, manifest = data_testing.write_records(tmp_path / 'r', 11)
  totals = [len(inputs) + len(targets) for inputs, targets in examples]
  assert manifest['num_examples'] == 11
  assert manifest['dtype'] == 'int32'
  assert manifest['lengths']['total']['max'] == max(totals)
  assert manifest['lengths']['total']['mean'] == round(np.mean(totals), 2)
  assert 'array_record' in manifest['versions']


@pytest.mark.parametrize('too_long', records.TOO_LONG)
def test_too_long_examples_are_counted(tmp_path, too_long):
  examples, manifest = data_testing.write_records(
    tmp_path / 'r', 31, max_length=6, too_long=too_long
  )
  long = [e for e in examples if len(e[0]) + len(e[1]) > 6]
  hopeless = {
    'drop': long,
    'truncate': [e for e in long if len(e[0]) >= 6],
    'truncate_prompt': [e for e in long if len(e[1]) >= 6],
  }[too_long]
  assert len(long) > len(hopeless) or too_long == 'drop'
  assert manifest['num_dropped_too_long'] == len(hopeless)
  assert manifest['num_truncated'] == len(long) - len(hopeless)
  assert manifest['num_examples'] == 31 - len(hopeless)
  assert manifest['lengths']['total']['max'] == 6


@pytest.mark.parametrize('bos_id', [None, 7])
def test_a_long_prompt_loses_its_beginning_but_bos(tmp_path, bos_id):
  prompt, answer = np.arange(10, 19), np.arange(50, 54)
  records.write(
    [(prompt, answer), (prompt[:2], answer), (prompt, np.arange(50, 58))],
    str(tmp_path / 'r'),
    metadata={'bos_id': bos_id},
    max_length=8,
    too_long='truncate_prompt',
  )
  manifest = records.read_manifest(str(tmp_path / 'r'))
  assert manifest['num_truncated'] == 1
  assert manifest['num_dropped_too_long'] == 1  # its answer fills the row
  source = grain.ArrayRecordDataSource(
    [str(tmp_path / 'r' / name) for name in manifest['files']]
  )
  found = [records.decode(source[i]) for i in range(len(source))]
  kept = [10, 16, 17, 18] if bos_id is not None else [15, 16, 17, 18]
  assert [f[0].tolist() for f in found] == [kept, [10, 11]]
  assert [f[1].tolist() for f in found] == [answer.tolist()] * 2


def test_existing_folder_needs_overwrite(tmp_path):
  data_testing.write_records(tmp_path / 'r', 3)
  with pytest.raises(ValueError, match='exists; pass overwrite'):
    data_testing.write_records(tmp_path / 'r', 4)
  data_testing.write_records(tmp_path / 'r', 5, overwrite=True)
  assert records.read_manifest(str(tmp_path / 'r'))['num_examples'] == 5


def test_overwrite_leaves_other_folders_alone(tmp_path):
  (tmp_path / 'thesis.txt').write_text('x')
  with pytest.raises(ValueError, match='holds something other than records'):
    data_testing.write_records(tmp_path, 3, overwrite=True)
  assert (tmp_path / 'thesis.txt').exists()


def test_failure_leaves_nothing_and_keeps_the_old(tmp_path):
  data_testing.write_records(tmp_path / 'r', 3)

  def broken():
    yield from data_testing.make_examples(2)
    raise RuntimeError('disk on fire')

  with pytest.raises(RuntimeError, match='disk on fire'):
    records.write(broken(), str(tmp_path / 'r'), metadata={}, overwrite=True)
  assert os.listdir(tmp_path) == ['r']
  assert records.read_manifest(str(tmp_path / 'r'))['num_examples'] == 3


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_shards': 0}, 'num_shards is 0'),
    ({'num_shards': 10**9}, 'num_shards is 1000000000; it must be <= 65536'),
    ({'num_shards': 4}, '3 examples cannot fill num_shards=4'),
    ({'max_length': -1}, 'max_length is -1'),
    ({'max_length': 1}, '0 examples cannot fill .*3 examples were too long'),
    ({'too_long': 'cut'}, "accepted: 'drop', 'truncate', 'truncate_prompt'"),
  ],
)
def test_bad_arguments(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    data_testing.write_records(tmp_path / 'r', 3, **options)
  assert os.listdir(tmp_path) == []


def test_examples_longer_than_the_model_are_refused(tmp_path):
  _, manifest = data_testing.write_records(tmp_path / 'r', 31)
  longest = manifest['lengths']['total']['max'] - 1
  records.check_lengths(manifest, longest)
  records.check_lengths(manifest, 0)
  most = longest - 1
  message = (
    f'the longest example needs {longest} positions, but the model has only '
    f'{most}; prepare the records with --max_length={longest}$'
  )
  with pytest.raises(ValueError, match=f"^'here': {message}"):
    records.check_lengths(manifest, most, 'here')
  pairs = data_testing.make_examples(31)
  with pytest.raises(ValueError, match=f'^{message}'):
    records.write(
      pairs, str(tmp_path / 'new'), metadata={}, most_positions=most
    )
  assert os.listdir(tmp_path) == ['r']
  pairs = data_testing.make_examples(31)
  kept = records.write(
    pairs,
    str(tmp_path / 'new'),
    metadata={},
    most_positions=most,
    max_length=longest,
  )
  assert kept['num_dropped_too_long']


def test_more_shards_than_files_can_be_open(tmp_path, monkeypatch):
  limit = 103
  monkeypatch.setattr(records.resource, 'getrlimit', lambda _: (limit, limit))
  data_testing.write_records(tmp_path / 'r', 4, num_shards=3)
  with pytest.raises(
    ValueError, match=r'4, but no more than 3 can be open .* ulimit -n 104'
  ):
    data_testing.write_records(tmp_path / 's', 4, num_shards=4)
  limit = records.resource.RLIM_INFINITY
  data_testing.write_records(tmp_path / 't', 4, num_shards=4)


def test_damaged_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'has no manifest\.json'):
    records.read_manifest(str(tmp_path))
  path = tmp_path / 'r'
  _, manifest = data_testing.write_records(path, 3)
  os.remove(path / manifest['files'][0])
  with pytest.raises(ValueError, match='lacks records-00000'):
    records.read_manifest(str(path))
  manifest['format_version'] = 99
  (path / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='format_version 99; accepted: 1'):
    records.read_manifest(str(path))


def test_a_manifest_does_not_point_out_of_its_folder(tmp_path):
  _, manifest = data_testing.write_records(tmp_path / 'a', 3)
  manifest['files'] = ['../b/records.array_record']
  (tmp_path / 'a' / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='of files that lie beside it'):
    records.read_manifest(str(tmp_path / 'a'))


def test_a_failed_write_leaves_nothing_and_the_old_records(tmp_path):
  data_testing.write_records(tmp_path / 'a', 3)

  def broken():
    yield from data_testing.make_examples(2)
    raise KeyError('row')

  with pytest.raises(KeyError):
    records.write(broken(), str(tmp_path / 'a'), metadata={}, overwrite=True)
  assert [path.name for path in tmp_path.iterdir()] == ['a']
  assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == [
    'manifest.json',
    'records-00000-of-00001.array_record',
  ]
  assert len(list(records.read(str(tmp_path / 'a')))) == 3
