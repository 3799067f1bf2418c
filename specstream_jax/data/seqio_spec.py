# SPDX-License-Identifier: Apache-2.0
"""A registered seqio task as one of the task table; loads TensorFlow."""

from specstream_jax.data import (
  prompts,
  readers,
  registry,
  seqio_scores,
  seqio_tasks,
  task_modules,
)


def spec(name: str) -> registry.TaskSpec:
  """The task or mixture `name`, without the prefix, scored by its own metrics.

  Raises:
    ValueError: see `seqio_tasks.find`.
  """
  found = seqio_tasks.find(name)

  def read(split, data_dir, skip_bad_rows):
    no_data_dir(name, data_dir)
    examples = seqio_tasks.loaded(found, split)
    good = [e for e in examples if seqio_tasks.check(e, skip_bad_rows)]
    if not good:
      raise ValueError(f'seqio task {name!r}: split {split!r} has no examples')
    pairs = tuple((e.text('inputs'), e.text('targets')) for e in good)
    return readers.Rows(pairs, len(examples) - len(good))

  def score(split, numbers, answers):
    examples = seqio_tasks.loaded(found, split)
    return seqio_scores.score(found, [examples[i] for i in numbers], answers)

  return registry.TaskSpec(
    task_modules.SEQIO + name,
    read,
    prompts.VERBATIM,
    splits=tuple(found.splits),
    metrics=(),
    score=score,
  )


def no_data_dir(name: str, data_dir: str | None) -> None:
  """Raises ValueError if a folder is given, which no seqio task reads."""
  if data_dir:
    raise ValueError(
      f'--data_dir={data_dir}: the seqio task {name!r} knows itself where its '
      'data is; leave the flag out'
    )
