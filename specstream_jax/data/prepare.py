# SPDX-License-Identifier: Apache-2.0
"""Runs a task once through seqio and writes its token records.

Imports TensorFlow; the records are read without it (`batches.py`).
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import numpy as np
import tqdm

from specstream_jax.data import (
  records,
  registry,
  tasks,
  vocabulary as vocabulary_lib,
)


def _pairs(
  task, split: str, total: int, metadata: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Token ids of every (prompt, reference), with a progress bar.

  Notes in `metadata`, which is written last, answers that start in a token.
  """
  dataset = task.get_dataset(
    sequence_length=None, split=split, shuffle=False, num_epochs=1
  )
  elements = dataset.as_numpy_iterator()
  bar = tqdm.tqdm(elements, total=total, desc=split, unit='example')
  for number, element in enumerate(bar):
    if element['is_inside']:
      where = {'example': number} | tasks.boundary(element)
      records.note_inside(metadata, where)
    yield element['inputs'], element['targets']


def prepare(
  spec: registry.TaskSpec,
  vocabulary: vocabulary_lib.Vocabulary,
  output_dir: str,
  *,
  split: str,
  data_dir: str | None = None,
  skip_bad_rows: bool = False,
  num_shards: int = 1,
  max_length: int = 0,
  too_long: str = 'drop',
  overwrite: bool = False,
  most_positions: int = 0,
) -> dict[str, Any]:
  """Writes the records of one split to `output_dir`.

  Args:
    spec: the task.
    vocabulary: must be the model's.
    output_dir: folder to create.
    split: split of the task; every reference becomes an example.
    data_dir: folder of the task's files; None downloads or reads shipped rows.
    skip_bad_rows: leave malformed rows out and count them.
    num_shards: ArrayRecord files.
    max_length: most tokens of an example; 0 is no limit.
    too_long: what becomes of longer examples, see `records.write`.
    overwrite: replace an existing folder of records.
    most_positions: see `records.write`.

  Returns:
    The manifest (see `records.py`).

  Raises:
    ValueError: a malformed row, an example that is longer than the model, an
      existing folder, or a bad argument.
  """
  records.check_arguments(
    output_dir, num_shards, max_length, too_long, overwrite
  )
  spec = dataclasses.replace(spec, read=functools.cache(spec.read))
  loaded = spec.load(split, data_dir, skip_bad_rows=skip_bad_rows)
  task = tasks.register(
    spec, vocabulary, data_dir=data_dir, skip_bad_rows=skip_bad_rows
  )
  total = sum(len(example.references) for example in loaded.examples)
  metadata = tasks.metadata(spec, split, vocabulary, loaded.num_skipped)
  manifest = records.write(
    _pairs(task, tasks.pairs_split(spec, split), total, metadata),
    output_dir,
    metadata=metadata,
    num_shards=num_shards,
    max_length=max_length,
    too_long=too_long,
    overwrite=overwrite,
    most_positions=most_positions,
  )
  records.warn_of_inside(manifest)
  return manifest
