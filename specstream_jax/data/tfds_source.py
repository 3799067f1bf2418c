# SPDX-License-Identifier: Apache-2.0
"""Rows that TensorFlow Datasets holds or downloads; imports TensorFlow."""

from typing import Any

import tensorflow_datasets as tfds

from specstream_jax.data import readers

E2E_CLEANED = 'gem/e2e_nlg'
_SPLITS = {'train': 'train', 'dev': 'validation', 'test': 'test'}


def read_e2e_cleaned(split: str, data_dir: str | None) -> readers.Rows:
  """(meaning representation, text) pairs of the cleaned E2E data.

  Args:
    split: `train`, `dev` or `test`.
    data_dir: folder in which TFDS keeps its data; None takes its default.

  Raises:
    ValueError: the data is neither there nor can be downloaded.
  """
  builder = tfds.builder(E2E_CLEANED, data_dir=data_dir)
  try:
    builder.download_and_prepare()
    as_dataset: Any = builder.as_dataset  # a decorator hides its arguments
    dataset = as_dataset(split=_SPLITS[split])
  except Exception as error:  # TFDS raises its own kinds for each transport.
    raise ValueError(
      f'TFDS cannot bring {E2E_CLEANED} ({type(error).__name__}: '
      f'{str(error).splitlines()[0][:200] if str(error) else ""}); pass '
      '--data_dir with a TFDS folder that holds it, or use --task=e2e_nlg with '
      'CSV files'
    ) from error
  text = lambda value: value.decode('utf-8')
  pairs = tuple(
    (text(row['meaning_representation']), text(row['target']))
    for row in tfds.as_numpy(dataset)
  )
  return readers.Rows(pairs)
