# SPDX-License-Identifier: Apache-2.0
"""Corpora in several files: read in order, and prepared by Beam workers."""

import json

import data_testing
import numpy as np
import pytest

pytest.importorskip('seqio')

import seqio

from specstream_jax.data import prepare, records, registry, sources, tasks

SIZES = (4, 1, 3)


@pytest.fixture
def data_dir(tmp_path):
  """Three files of rows, all different."""
  folder = tmp_path / 'corpus'
  folder.mkdir()
  for number, size in enumerate(SIZES):
    lines = [
      {'prompt': f'{number}{i}' + 'p' * i, 'completion': 'a' * (number + 1)}
      for i in range(size)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / f'train-{number:05d}-of-00003.jsonl').write_text(text)
  return str(folder)


def write(data_dir, output_dir, module=prepare, **options):
  return module.prepare(
    registry.get('jsonl'),
    data_testing.make_vocabulary(bos_id=3),
    str(output_dir),
    split='train',
    data_dir=data_dir,
    **options,
  )


def contents(folder):
  """All records, sorted, as lists of ids."""
  return sorted((a.tolist(), b.tolist()) for a, b in records.read(str(folder)))


def test_all_files_are_the_split(data_dir, tmp_path):
  manifest = write(data_dir, tmp_path / 'out')
  assert manifest['num_examples'] == sum(SIZES)
  rows = sources.read_jsonl('train', data_dir, False).pairs
  assert len(set(rows)) == sum(SIZES)
  with pytest.raises(ValueError, match=r'has none of dev\.jsonl'):
    sources.read_jsonl('dev', data_dir, False)


@pytest.mark.parametrize('num_shards', [1, 2, 3])
def test_shards_of_the_source_are_its_files(data_dir, num_shards):
  task = tasks.register(
    registry.get('jsonl'), data_testing.make_vocabulary(), data_dir=data_dir
  )
  assert len(task.source.list_shards('train')) == len(SIZES)
  parts = [
    [
      element['inputs']
      for element in task.source.get_dataset(
        'train', shuffle=False, shard_info=seqio.ShardInfo(i, num_shards)
      ).as_numpy_iterator()
    ]
    for i in range(num_shards)
  ]
  sizes = [sum(SIZES[i::num_shards]) for i in range(num_shards)]
  assert [len(part) for part in parts] == sizes
  assert len({text for part in parts for text in part}) == sum(SIZES)


@pytest.mark.parametrize(
  'options',
  [
    {'num_workers': 2, 'num_shards': 2},
    {'max_length': 5, 'too_long': 'truncate_prompt'},
    {'max_length': 5},
  ],
)
def test_beam_writes_the_same_records(data_dir, tmp_path, options):
  beam_prepare = beam()
  found = write(data_dir, tmp_path / 'beam', beam_prepare, **options)
  options.pop('num_workers', None)
  expected = write(data_dir, tmp_path / 'plain', **options)
  assert contents(tmp_path / 'beam') == contents(tmp_path / 'plain')
  for name in ('num_skipped_rows', 'beam_version'):
    found.pop(name), expected.pop(name, None)
  assert found == expected
  assert sorted(p.name for p in (tmp_path / 'beam').iterdir()) == sorted(
    [*found['files'], records.MANIFEST]
  )


def test_beam_leaves_nothing_behind_when_a_row_is_malformed(data_dir, tmp_path):
  beam_prepare = beam()
  bad = '{"a": 1}\n{"prompt": "p", "completion": "a"}\n'
  (tmp_path / 'corpus' / 'train-00001-of-00003.jsonl').write_text(bad)
  with pytest.raises(Exception, match=r'train-00001-of-00003\.jsonl:1'):
    write(data_dir, tmp_path / 'out', beam_prepare)
  assert [path.name for path in tmp_path.iterdir()] == ['corpus']
  manifest = write(data_dir, tmp_path / 'out', beam_prepare, skip_bad_rows=True)
  assert manifest['num_examples'] == sum(SIZES)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'max_length': 1}, r'no examples; .*8 examples were too long'),
    ({'num_shards': 9}, 'shards got no example'),
  ],
)
def test_beam_says_what_cannot_be(data_dir, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    write(data_dir, tmp_path / 'out', beam(), **options)


def beam():
  pytest.importorskip('apache_beam')
  from specstream_jax.data import beam_prepare

  return beam_prepare


def test_ids_survive(data_dir, tmp_path):
  write(data_dir, tmp_path / 'out')
  vocabulary = data_testing.make_vocabulary(bos_id=3)
  inputs, targets = next(records.read(str(tmp_path / 'out')))
  np.testing.assert_array_equal(inputs, vocabulary.encode_inputs('00'))
  np.testing.assert_array_equal(targets, vocabulary.encode_targets('a'))
