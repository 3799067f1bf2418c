# SPDX-License-Identifier: Apache-2.0
"""Token records of a task whose rows fit into memory, without TensorFlow.

The examples and ids are those of `prepare`, which runs a task through seqio.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from specstream_jax.checkpoints import chat_format
from specstream_jax.data import (
  readers,
  records,
  registry,
  vocabulary as vocabulary_lib,
)


def prepare(
  spec: registry.TaskSpec,
  vocabulary: vocabulary_lib.Vocabulary,
  output_dir: str,
  *,
  split: str,
  data_dir: str | None = None,
  max_length: int = 0,
  too_long: str = 'drop',
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes the records of one split to `output_dir`.

  Args:
    spec: the task.
    vocabulary: must be the model's.
    output_dir: folder to create.
    split: split of the task; every reference becomes an example.
    data_dir: folder of the task's files.
    max_length: most tokens of an example; 0 is no limit.
    too_long: what becomes of longer examples, see `records.write`.
    overwrite: replace an existing folder of records.

  Returns:
    The manifest (see `records.py`).

  Raises:
    ValueError: a malformed row, an existing folder, or a bad argument.
  """
  loaded = spec.load(split, data_dir)
  metadata = records.of_task(
    spec.name,
    split,
    vocabulary,
    is_chat=_is_chat(loaded.examples),
    num_skipped=loaded.num_skipped,
  )
  manifest = records.write(
    _pairs(spec, loaded.examples, vocabulary, metadata),
    output_dir,
    metadata=metadata,
    max_length=max_length,
    too_long=too_long,
    overwrite=overwrite,
  )
  records.warn_of_inside(manifest)
  return manifest


def _is_chat(examples) -> bool:
  """Whether a chat template wrote the prompts: all of them."""
  return all(isinstance(e.inputs, chat_format.Text) for e in examples)


def _pairs(
  spec, examples, vocabulary, metadata
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Ids of every (prompt, reference); notes answers that start in a token."""
  number = 0
  for example in examples:
    for reference in example.references:
      answer = spec.template.targets(reference)
      is_cut = isinstance(reference, readers.CutAnswer)
      pair = vocabulary.encode_pair(example.inputs, answer, is_cut=is_cut)
      if pair.is_inside:
        where = records.boundary(example.inputs, answer)
        records.note_inside(metadata, {'example': number} | where)
      number += 1
      yield pair.inputs, pair.targets
