# SPDX-License-Identifier: Apache-2.0
"""Token records of a large corpus, written by Apache Beam workers.

What seqio's `cache_tasks` does, with its own transforms, but to the records
that training reads: a worker runs the task over one file of the corpus at a
time. Training then reads its part of the records in every process.

Imports TensorFlow and Beam (extra `beam`).
"""

from collections.abc import Iterator, Sequence
import functools
import glob
import json
import os
from typing import Any

from absl import logging
import apache_beam as beam  # pyright: ignore[reportMissingImports] (an extra)
from apache_beam.options import (  # pyright: ignore[reportMissingImports]
  pipeline_options,
)
import numpy as np
from seqio import beam_utils
import tokenizers
import tqdm

from specstream_jax.config import bounds, checks
from specstream_jax.data import (
  records,
  registry,
  tasks,
  vocabulary as vocabulary_lib,
)

_COUNTS = 'counts'


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
  num_workers: int = 1,
  options: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes the records of one split with Beam.

  Examples lie in the order in which workers finished. Malformed rows that are
  skipped are in the workers' logs, not in the manifest.

  Args:
    spec: one of `registry.names()`; workers look it up.
    vocabulary: see `prepare.prepare`, as for what follows.
    output_dir: folder to create; like `data_dir`, all workers must see it.
    split: split of the task.
    data_dir: folder of the task's files.
    skip_bad_rows: leave malformed rows out.
    num_shards: ArrayRecord files.
    max_length: most tokens of an example.
    too_long: what becomes of longer examples.
    overwrite: replace an existing folder of records.
    most_positions: see `records.write`.
    num_workers: processes of Beam's DirectRunner.
    options: flags of Beam instead, such as --runner=DataflowRunner.

  Returns:
    The manifest.

  Raises:
    ValueError: a bad argument, an existing folder, no examples, or one that
      is longer than the model.
  """
  records.check_arguments(
    output_dir, num_shards, max_length, too_long, overwrite
  )
  checks.count('num_workers', num_workers, 0, bounds.PROCESSES)
  read = _read(spec, vocabulary, split, data_dir, skip_bad_rows)
  fit = functools.partial(
    _fit, max_length, too_long, int(vocabulary.bos_id is not None)
  )
  with records.new_folder(output_dir) as scratch:
    with beam.Pipeline(options=_options(num_workers, options)) as pipeline:
      _build(pipeline, read, fit, scratch, num_shards)
    lengths = records.Lengths(max_length, too_long)
    metadata = tasks.metadata(spec, split, vocabulary, num_skipped=None)
    metadata['beam_version'] = beam.__version__
    manifest = _finish(scratch, metadata, num_shards, lengths, most_positions)
  records.warn_of_inside(manifest)
  return manifest


def _read(spec, vocabulary, split, data_dir, skip_bad_rows):
  """The task's examples; a worker registers the task before it reads."""
  setup = functools.partial(
    _register,
    spec.name,
    vocabulary.tokenizer.to_str(),
    (vocabulary.eos_id, vocabulary.bos_id),
    data_dir,
    skip_bad_rows,
  )
  return beam_utils.PreprocessTask(
    setup(),
    tasks.pairs_split(spec, split),
    setup_fn=setup,  # pyright: ignore[reportArgumentType] (its result is left)
  )


def _build(pipeline, read, fit, folder, num_shards):
  """From files to records, and counts of what did not fit."""
  fitted = (
    pipeline
    | 'task' >> read
    | 'spread' >> beam.Reshuffle()
    | 'fit' >> beam.FlatMap(fit).with_outputs(_COUNTS, main='records')
  )
  _ = fitted.records | 'write' >> beam_utils.WriteToArrayRecord(
    os.path.join(folder, 'records'),
    file_name_suffix='.array_record',
    num_shards=num_shards,
    coder=beam.coders.BytesCoder(),
    preserve_random_access=True,
  )
  _ = (
    fitted[_COUNTS]
    | 'count' >> beam.combiners.Count.PerElement()
    | 'as JSON' >> beam.Map(json.dumps)
    | 'note'
    >> beam.io.WriteToText(
      os.path.join(folder, _COUNTS), shard_name_template=''
    )
  )


def _options(num_workers, options):
  """Beam's flags; without any, so many processes of this machine."""
  direct = [
    '--runner=DirectRunner',
    '--direct_running_mode='
    + ('multi_processing' if num_workers > 1 else 'in_memory'),
    f'--direct_num_workers={num_workers}',
  ]
  return pipeline_options.PipelineOptions([*(options or direct)])


def _register(name, tokenizer, special_ids, data_dir, skip_bad_rows):
  """The seqio task, in this process."""
  eos_id, bos_id = special_ids
  vocabulary = vocabulary_lib.Vocabulary(
    tokenizers.Tokenizer.from_str(tokenizer), eos_id, bos_id
  )
  return tasks.register(
    registry.get(name),
    vocabulary,
    data_dir=data_dir,
    skip_bad_rows=skip_bad_rows,
  )


def _fit(max_length, too_long, num_kept, example) -> Iterator[Any]:
  """The record of an example, what was done to make it fit, and where the
  prompt ends if that is inside a token."""
  lengths = records.Lengths(max_length, too_long, num_kept=num_kept)
  pair = lengths.fit(
    np.asarray(example['inputs']), np.asarray(example['targets'])
  )
  if pair is not None:
    yield records.encode(*pair)
  if example['is_inside']:
    where = tuple(tasks.boundary(example).items())
    yield beam.pvalue.TaggedOutput(_COUNTS, where)
  for name in ('num_dropped', 'num_truncated'):
    if getattr(lengths, name):
      yield beam.pvalue.TaggedOutput(_COUNTS, name)


def _finish(folder, metadata, num_shards, lengths, most_positions):
  """The manifest, from the records and the workers' counts."""
  files = [records.shard_name(i, num_shards) for i in range(num_shards)]
  empty = []
  for name in tqdm.tqdm(files, desc='lengths', unit='file'):
    pairs = records.read_file(os.path.join(folder, name))
    before = len(lengths.inputs)
    for inputs, targets in pairs:
      lengths.count(inputs, targets)
    if len(lengths.inputs) == before:
      empty.append(name)
  for path in glob.glob(os.path.join(folder, _COUNTS + '*')):
    with open(path, encoding='utf-8') as file:
      for line in file:
        counted, count = json.loads(line)
        if isinstance(counted, str):
          setattr(lengths, counted, count)
        else:
          records.note_inside(metadata, dict(counted), count)
    os.remove(path)
  if not lengths.inputs:
    raise ValueError(
      f'no examples; check the task and max_length ({lengths.num_dropped} '
      'examples were too long)'
    )
  if empty:
    raise ValueError(
      f'{len(empty)} of {num_shards} shards got no example, the first '
      f'{empty[0]}; use fewer'
    )
  logging.info('%d records in %d files', len(lengths.inputs), num_shards)
  summary = lengths.summary()
  records.check_lengths(summary, most_positions)
  return records.write_manifest(folder, metadata, files, summary)
