# SPDX-License-Identifier: Apache-2.0
"""Token records of a registered seqio task or mixture; loads TensorFlow.

Ids of the model's own vocabulary are taken as the task gives them. Of any other
vocabulary the texts are taken, prompt and answer tokenized as one text.
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import os
import re
from typing import Any

from absl import logging
import numpy as np
import seqio
import tqdm

from specstream_jax.data import (
  mixtures,
  records,
  seqio_tasks,
  seqio_vocabulary,
  task_modules,
  vocabulary as vocabulary_lib,
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How records are written; see `records.write`."""

  num_shards: int = 1
  max_length: int = 0
  too_long: str = 'drop'
  overwrite: bool = False
  most_positions: int = 0
  skip_bad_rows: bool = False


@dataclasses.dataclass
class _Counts:
  """What became of the examples."""

  examples: int = 0
  bad: int = 0
  glued: int = 0
  endless: int = 0


def prepare(
  name: str,
  vocabulary: vocabulary_lib.Vocabulary,
  output_dir: str,
  *,
  split: str,
  settings: Settings = Settings(),
) -> dict[str, Any]:
  """Writes the records of a split.

  The training split of a mixture (`train…`) becomes a folder of records for
  each task, from which training draws at the rates of the mixture. Of any other
  split the examples of all tasks follow each other in turn.

  Args:
    name: of the task or mixture, without the prefix.
    vocabulary: must be the model's.
    output_dir: folder to create.
    split: of the task.
    settings: see `Settings`.

  Returns:
    The manifest; of a mixture's training split, what `mixtures` reads.

  Raises:
    ValueError: no such task or split, a bad example, a vocabulary that cannot
      be used, or whatever `records.write` refuses.
  """
  found = seqio_tasks.find(name)
  tasks = seqio_tasks.subtasks(found, split)
  if isinstance(found, seqio.Mixture) and split.startswith('train'):
    rates = {_folder(task.name): found.get_rate(task) for task in tasks}
    for task in tasks:
      place = os.path.join(output_dir, _folder(task.name))
      _write(task, vocabulary, place, split, settings)
    return mixtures.write(output_dir, task_modules.SEQIO + name, rates)
  return _write(found, vocabulary, output_dir, split, settings)


def _folder(name: str) -> str:
  """A folder's name for a task: no sign that `--data_dir` reads otherwise."""
  return re.sub(r'[^\w.-]', '_', name)


def _write(found, vocabulary, output_dir, split, settings) -> dict[str, Any]:
  metadata = records.of_task(
    task_modules.SEQIO + found.name,
    split,
    vocabulary,
    is_chat=False,
    num_skipped=0,
  )
  metadata['seqio_version'] = importlib.metadata.version('seqio')
  counts = _Counts()
  manifest = records.write(
    _pairs(found, split, vocabulary, metadata, settings, counts),
    output_dir,
    metadata=metadata,
    num_shards=settings.num_shards,
    max_length=settings.max_length,
    too_long=settings.too_long,
    overwrite=settings.overwrite,
    most_positions=settings.most_positions,
  )
  records.warn_of_inside(manifest)
  _warn(found.name, counts)
  return manifest


def _pairs(
  found, split, vocabulary, metadata, settings, counts
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Ids of prompts and answers; `metadata` is written last, with its counts."""
  is_own = {
    task: all(
      seqio_vocabulary.is_models(
        task.output_features[field].vocabulary, vocabulary
      )
      for field in seqio_tasks.FEATURES
    )
    for task in seqio_tasks.subtasks(found, split)
  }
  examples = seqio_tasks.interleaved(found, split)
  for example in tqdm.tqdm(examples, desc=split, unit='example'):
    counts.examples += 1
    if is_own[example.task]:
      yield _given(example, vocabulary, counts)
    elif seqio_tasks.check(example, settings.skip_bad_rows):
      yield _tokenized(example, vocabulary, metadata, counts)
    else:
      counts.bad += 1
      metadata['num_skipped_rows'] = counts.bad


def _given(example, vocabulary, counts):
  """The task's ids, after BOS if the model wants one."""
  inputs, targets = map(example.ids, seqio_tasks.FEATURES)
  bos = vocabulary.bos_id
  if bos is not None and inputs[:1].tolist() != [bos]:
    inputs = np.append(bos, inputs).astype(np.int32)
  if not inputs.size or not targets.size:
    raise ValueError(f'{example.place}: inputs or targets are empty')
  counts.endless += targets[-1] != vocabulary.eos_id
  return inputs, targets


def _tokenized(example, vocabulary, metadata, counts):
  """Ids of the example's texts, which are one text to the model."""
  prompt, answer = map(example.text, seqio_tasks.FEATURES)
  pair = vocabulary.encode_pair(prompt, answer)
  if pair.is_inside:
    where = {'example': counts.examples - 1}
    records.note_inside(metadata, where | records.boundary(prompt, answer))
  has_space = prompt[-1:].isspace() or answer[:1].isspace()
  counts.glued += bool(answer) and not has_space
  return pair.inputs, pair.targets


def _warn(name: str, counts: _Counts) -> None:
  """Says what a decoder-only model may not like of an encoder-decoder's task."""
  if 2 * counts.glued > counts.examples:
    logging.warning(
      'seqio task %r: %d of %d answers follow their prompts without a space; '
      'the model reads both as one text, so end inputs in a line break, or let '
      'targets begin with a space',
      *(name, counts.glued, counts.examples),
    )
  if counts.endless:
    logging.warning(
      'seqio task %r: %d of %d answers do not end in EOS, so the model is not '
      'taught to stop; add seqio.preprocessors.append_eos',
      *(name, counts.endless, counts.examples),
    )
