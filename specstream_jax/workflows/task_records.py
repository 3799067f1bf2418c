# SPDX-License-Identifier: Apache-2.0
"""Records of a task for a training run, which lie in the folder of the run."""

import dataclasses
import os

from specstream_jax import config, processes
from specstream_jax.checkpoints import loading
from specstream_jax.data import (
  mixtures,
  prepare_pairs,
  registry,
  task_modules,
  vocabulary as vocabulary_lib,
)

_DEV = ('dev', 'validation')


@dataclasses.dataclass(frozen=True)
class Records:
  """Folders of records, or a mixture of them; `dev` is None if there are none."""

  train: str
  dev: str | None


def prepare(
  task: config.TaskConfig,
  base: str,
  output_dir: str,
  *,
  data_dir: str | None = None,
  max_length: int = 0,
) -> Records:
  """Writes records/train and records/dev; those that are there stay.

  Args:
    task: its name and splits.
    base: model, whose tokenizer is used.
    output_dir: of the run.
    data_dir: folder of the task's files.
    max_length: most tokens of an example; longer ones lose the beginning of
      their prompts. 0 is no limit.

  Raises:
    ValueError: unknown task or split, a bad row, or records of another task.
  """
  spec = registry.get(task.name)
  dev = task.dev_split or next((s for s in _DEV if s in spec.splits), '')
  vocabulary = model_vocabulary(base)
  folders = {'train': task.train_split, 'dev': dev}
  for name, split in folders.items():
    place = os.path.join(output_dir, 'records', name)
    if split and processes.is_main():
      _write(spec, split, vocabulary, place, data_dir, max_length)
  processes.barrier('records')
  place = os.path.join(output_dir, 'records')
  return Records(
    os.path.join(place, 'train'), os.path.join(place, 'dev') if dev else None
  )


def _write(spec, split, vocabulary, place, data_dir, max_length) -> None:
  if os.path.isdir(place):
    _check(spec, split, place)
    return
  how = {'max_length': max_length, 'too_long': 'truncate_prompt'}
  if not spec.name.startswith(task_modules.SEQIO):
    prepare_pairs.prepare(
      spec, vocabulary, place, split=split, data_dir=data_dir, **how
    )
    return
  if data_dir:
    raise ValueError(
      f'--data_dir={data_dir}: {spec.name} knows itself where its data is; '
      'leave the flag out'
    )
  module = registry.seqio_module('seqio_records', f'task {spec.name}')
  module.prepare(
    spec.name.removeprefix(task_modules.SEQIO),
    vocabulary,
    place,
    split=split,
    settings=module.Settings(**how),
  )


def _check(spec, split, place) -> None:
  """Holds records that are there to the task that is asked for."""
  for manifest in mixtures.manifests(place):
    found = f'{manifest.get("task")}/{manifest.get("split")}'
    is_part = len(mixtures.parse(place)) > 1
    if found != f'{spec.name}/{split}' and not is_part:
      raise ValueError(
        f'{place} holds records of {found}, not of {spec.name}/{split}; give '
        'another --output_dir'
      )


def model_vocabulary(
  base: str, outline: loading.LoadedModel | None = None
) -> vocabulary_lib.Vocabulary:
  """The model's; where only other files name the end of a text, with that.

  Args:
    base: name, folder, hub id or GGUF file.
    outline: of the model, if it is known already.
  """
  try:
    return vocabulary_lib.load(str(loading.resolve(base)))
  except ValueError:
    outline = outline or loading.load_outline(base)
    tokenizer = loading.known_tokenizer(outline.tokenizer)
    if tokenizer is None or not outline.eos_ids:
      raise
    return vocabulary_lib.Vocabulary(
      tokenizer, outline.eos_ids[0], outline.bos_id
    )
