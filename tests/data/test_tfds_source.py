# SPDX-License-Identifier: Apache-2.0
"""E2E by way of TensorFlow Datasets; its data is mocked, its builder is not."""

import sys

import pytest

from specstream_jax.data import registry


def test_rows_of_the_tfds_builder_become_prompts():
  tfds = pytest.importorskip('tensorflow_datasets')
  rows = [
    {'meaning_representation': 'name[A]', 'target': 'A is here.'},
    {'meaning_representation': 'name[A]', 'target': 'Here is A.'},
    {'meaning_representation': 'name[B]', 'target': 'B is there.'},
  ]

  def as_dataset(self, split, **unused):
    import tensorflow as tf

    del self, unused
    assert split == 'validation'
    columns = {k: [row[k] for row in rows] for k in rows[0]}
    return tf.data.Dataset.from_tensor_slices(columns)

  with tfds.testing.mock_data(num_examples=3, as_dataset_fn=as_dataset):
    examples = registry.get('e2e_cleaned').load_split('dev')
  assert [e.inputs for e in examples] == [
    'name[A]\nDescription:',
    'name[B]\nDescription:',
  ]
  assert examples[0].references == ('A is here.', 'Here is A.')


def test_unreachable_data_is_one_clear_error(tmp_path, monkeypatch):
  tfds = pytest.importorskip('tensorflow_datasets')

  def fail(*args, **kwargs):
    raise ConnectionError('no route')

  monkeypatch.setattr(
    tfds.core.GeneratorBasedBuilder, 'download_and_prepare', fail
  )
  with pytest.raises(ValueError, match=r'cannot bring gem/e2e_nlg .*no route'):
    registry.get('e2e_cleaned').load_split('train', str(tmp_path))


def test_without_tfds_the_error_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  monkeypatch.delitem(
    sys.modules, 'specstream_jax.data.tfds_source', raising=False
  )
  with pytest.raises(ValueError, match=r'needs tensorflow_datasets.*\[data\]'):
    registry.get('e2e_cleaned').load_split('train')
