# SPDX-License-Identifier: Apache-2.0
"""Grain batches: same content, disjoint shares, exact resumption."""

import collections
import json
import subprocess
import sys

import data_testing
import numpy as np
import pytest

from specstream_jax.data import batches, features, mixtures, records


@pytest.fixture(name='path', scope='module')
def _path(tmp_path_factory):
  path = tmp_path_factory.mktemp('records') / 'train'
  data_testing.write_records(path, 41, num_shards=2)
  return str(path)


def _open(path, **options):
  defaults = {'batch_size': 3, 'sequence_length': 23, 'seed': 7}
  return batches.open_batches(path, **{**defaults, **options})


def _segments(batch):
  """Every segment of a batch as a tuple of its (input, target, weight)."""
  found = []
  for ids, *rows in zip(
    batch['decoder_segment_ids'],
    *(batch[name] for name in features.TOKEN_FEATURES),
    strict=True,
  ):
    for segment in range(1, ids.max() + 1):
      values = [row[ids == segment].tolist() for row in rows]
      found.append(tuple(zip(*values, strict=True)))
  return found


def _content(iterator):
  return collections.Counter(s for batch in iterator for s in _segments(batch))


def _written():
  examples = [features.segment(*e) for e in data_testing.make_examples(41)]
  return collections.Counter(
    tuple(zip(*(e[n].tolist() for n in features.TOKEN_FEATURES), strict=True))
    for e in examples
  )


def _assert_equal(left, right):
  for name, dtype in features.DTYPES.items():
    assert left[name].dtype == right[name].dtype == dtype
    np.testing.assert_array_equal(left[name], right[name])


def test_packed_and_unpacked_hold_what_was_written(path):
  packed = list(_open(path, repeat=False))
  unpacked = list(_open(path, repeat=False, packed=False))
  assert _content(packed) == _content(unpacked) == _written()
  assert len(packed) < len(unpacked) == 14
  assert {b['decoder_positions'].shape for b in packed + unpacked} == {(3, 23)}


def test_positions_restart_in_every_segment(path):
  for batch in _open(path, repeat=False):
    for ids, positions in zip(
      batch['decoder_segment_ids'], batch['decoder_positions'], strict=True
    ):
      for segment in range(1, ids.max() + 1):
        inside = positions[ids == segment]
        np.testing.assert_array_equal(inside, np.arange(len(inside)))
      assert not positions[ids == 0].any()


@pytest.mark.parametrize('packed', [True, False])
def test_resumed_run_sees_the_same_batches(path, packed):
  iterator = _open(path, packed=packed)
  for _ in range(19):  # into a later epoch
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = [next(iterator) for _ in range(17)]
  resumed = _open(path, packed=packed)
  resumed.set_state(state)
  for batch in expected:
    _assert_equal(batch, next(resumed))


def test_state_before_the_first_batch(path):
  first = _open(path)
  state = first.get_state()
  batch = next(first)
  first.set_state(state)
  _assert_equal(batch, next(first))


def test_state_of_other_settings_is_refused(path):
  state = _open(path, seed=1).get_state()
  with pytest.raises(ValueError, match=r'taken with seed=1 but .* seed=2'):
    _open(path, seed=2).set_state(state)


def test_epochs_are_complete_and_differ(path):
  iterator = _open(path, packed=False, batch_size=41)
  first, second = next(iterator), next(iterator)
  assert _content([first]) == _content([second]) == _written()
  assert _segments(first) != _segments(second)


def test_no_seed_keeps_the_order_of_the_files(path):
  iterator = _open(path, packed=False, repeat=False, seed=None)
  names = [s[0][0] - 1000 for batch in iterator for s in _segments(batch)]
  assert names == [*range(0, 41, 2), *range(1, 41, 2)]


def test_shares_of_processes_are_disjoint_complete_and_equally_long(path):
  shares = [
    list(
      _open(path, packed=False, repeat=False, process_index=i, process_count=4)
    )
    for i in range(4)
  ]
  assert {len(share) for share in shares} == {4}
  total = sum((_content(share) for share in shares), collections.Counter())
  assert total == _written()
  assert max(_content(shares[0]).values()) == 1


def test_repeating_shares_cover_an_epoch(path):
  one_row = {'packed': False, 'batch_size': 1, 'process_count': 4}
  total = collections.Counter()
  for index, count in enumerate([11, 10, 10, 10]):
    iterator = _open(path, process_index=index, **one_row)
    total += _content(next(iterator) for _ in range(count))
  assert total == _written()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'sequence_length': 5}, 'needs 1. positions .* max_length=6'),
    ({'process_index': 2, 'process_count': 2}, 'process_index is 2'),
    ({'process_count': 42}, 'cannot be split over 42 processes'),
    ({'process_count': 2, 'repeat': False}, 'packed=False or repeat=True'),
    ({'tokenizer_sha256': 'def'}, 'tokenizer abc… but the model has def…'),
  ],
)
def test_bad_arguments(path, options, message):
  with pytest.raises(ValueError, match=message):
    _open(path, **options)


@pytest.fixture(name='other', scope='module')
def _other(tmp_path_factory):
  """Records of 11 examples, the first prompt id from 5000 on."""
  path = tmp_path_factory.mktemp('records') / 'other'
  examples = data_testing.make_examples(11, seed=1)
  for prompt, _ in examples:
    prompt[0] += 4000
  metadata = {'task': 'others', 'split': 'train', 'tokenizer_sha256': 'abc'}
  records.write(examples, str(path), metadata=metadata)
  return str(path)


def _sources(batch):
  """Whether each segment of a batch is of the other records."""
  return [segment[0][0] >= 5000 for segment in _segments(batch)]


@pytest.mark.parametrize('packed', [False, True])
def test_mixture_draws_at_its_rates(path, other, packed):
  mixed = _open(f'{path}=3,{other}=1', packed=packed)
  drawn = [of for _ in range(60) for of in _sources(next(mixed))]
  assert abs(np.mean(drawn) - 0.25) < 0.06
  firsts = collections.Counter()
  mixed = _open(f'{path}=3,{other}=1', packed=False)
  for _ in range(15):  # 45 rows, 11 of them others: one epoch of those
    firsts.update(s[0][0] for s in _segments(next(mixed)) if s[0][0] >= 5000)
  assert len(firsts) == 11 and set(firsts.values()) == {1}


def test_mixture_resumes(path, other):
  mixed = _open(f'{path}=3,{other}=1')
  next(mixed)
  state = mixed.get_state()
  expected = next(mixed)
  again = _open(f'{path}=3,{other}=1')
  again.set_state(state)
  _assert_equal(next(again), expected)
  with pytest.raises(ValueError, match='taken with rates='):
    _open(f'{path}=2,{other}=1').set_state(state)


@pytest.mark.parametrize(
  ('mixture', 'options', 'message'),
  [
    ('a=1,b=0', {}, "'b=0' has no rate above 0"),
    ('a=1,b=-2', {}, "'b=-2' has no rate above 0"),
    ('a=1,b', {}, "'b' has no rate above 0"),
    ('a=x', {}, "'a=x' has no rate above 0"),
    ('a=1,a=2', {}, 'more than once'),
    ('a=1,b=2', {'repeat': False}, 'a mixture, which has no end'),
  ],
)
def test_bad_mixtures(mixture, options, message):
  with pytest.raises(ValueError, match=message):
    _open(mixture, **options)


def test_loads_no_tensorflow():
  code = (
    'import sys\n'
    'from specstream_jax.data import batches, registry, vocabulary\n'
    "sys.exit(any(m in sys.modules for m in ('tensorflow', 'seqio')))"
  )
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )


def test_a_folder_that_exists_is_one_whatever_its_name(tmp_path):
  folder = tmp_path / 'rate=0.1,b'
  assert mixtures.parse(f'{tmp_path}/rate=2')[0].rate == 2
  folder.mkdir()
  assert mixtures.parse(str(folder)) == (mixtures.Part(str(folder)),)
  with pytest.raises(ValueError, match='more than once'):
    mixtures.parse('a=1,./a=1')
