# SPDX-License-Identifier: Apache-2.0
"""Answers scored by a seqio task's own metric_fns; loads TensorFlow.

`seqio.Evaluator` runs over the very examples that were answered. Predictions
reach it as bytes, so that no other vocabulary changes them; targets are the
texts that the task has kept.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from specstream_jax.data import seqio_tasks, tasks

_NAME = 'specstream_answered'
_PREDICTION = seqio.metrics.ModelOutputType.PREDICTION


def score(
  found: seqio_tasks.Provider,
  examples: Sequence[seqio_tasks.Element],
  answers: Sequence[str],
) -> dict[str, float]:
  """Scores of answers to examples of a task, or of the tasks of a mixture.

  Args:
    found: the task or mixture.
    examples: that were answered.
    answers: one for each.

  Returns:
    Numbers by the names of the task's metrics; of a mixture, TASK/METRIC.

  Raises:
    ValueError: a metric raises.
  """
  scores = {}
  for task in dict.fromkeys(example.task for example in examples):
    pairs = [
      (example, answer)
      for example, answer in zip(examples, answers, strict=True)
      if example.task is task
    ]
    prefix = f'{task.name}/' if isinstance(found, seqio.Mixture) else ''
    numbers = _of_task(task, *zip(*pairs, strict=True))
    scores |= {prefix + name: value for name, value in numbers.items()}
  return scores


def _of_task(task, examples, answers) -> dict[str, float]:
  metrics = [m for m in task.metric_objs if m.model_output_type == _PREDICTION]
  if len(metrics) < len(task.metric_objs):
    logging.warning(
      'seqio task %r: %d metrics want scores or other values of a model, which '
      'decoding does not give; left out',
      *(task.name, len(task.metric_objs) - len(metrics)),
    )
  if not metrics:
    logging.warning(
      'seqio task %r has no metric_fns of (targets, predictions): quality is '
      'not measured',
      task.name,
    )
    return {}
  vocabulary = seqio.ByteVocabulary()
  with seqio_tasks.naming(task), _registered(task, examples, metrics):
    evaluator = seqio.Evaluator(
      _NAME,
      tasks.CausalFeatureConverter(pack=False),
      eval_split='all',
      async_compute_metrics=False,
    )
    ids = [vocabulary.encode(text) for text in _alike(examples, answers)]
    future, _ = evaluator.evaluate(
      compute_metrics=True,
      predict_fn=functools.partial(_predict, ids),
    )
    found = future.result()[_NAME]
  return _numbers(task, found)


def _alike(examples, answers) -> list[str]:
  """Answers without outer space, where the targets have none in front."""
  return [
    answer if example.text('targets')[:1].isspace() else answer.strip()
    for example, answer in zip(examples, answers, strict=True)
  ]


def _predict(ids, dataset, model_feature_shapes=None):
  """(number, ids) of every example; seqio stacks them, so they are padded."""
  del model_feature_shapes
  width = max(1, *map(len, ids))
  rows = [row + [0] * (width - len(row)) for row in ids]
  return [(int(i), rows[int(i)]) for i, _ in dataset.as_numpy_iterator()]


@contextlib.contextmanager
def _registered(task, examples, metrics):
  """The answered examples as a task of their own, for as long as it lasts."""
  seqio.TaskRegistry.add(
    _NAME,
    source=_source(task, examples),
    preprocessors=[],
    output_features={
      name: dataclasses.replace(
        task.output_features[name], vocabulary=seqio.ByteVocabulary()
      )
      for name in seqio_tasks.FEATURES
    },
    metric_fns=[],
    metric_objs=metrics,
    shuffle_buffer_size=None,
  )
  try:
    yield
  finally:
    seqio.TaskRegistry.remove(_NAME)


def _source(task, examples) -> Any:
  """The examples as they are, with the text of their targets."""
  [split] = {example.split for example in examples}
  specs = dict(seqio_tasks.dataset(task, split).element_spec)
  specs['targets_pretokenized'] = tf.TensorSpec((), tf.string)

  def dataset_fn(split, shuffle_files, seed=None):
    del split, shuffle_files, seed

    def rows():
      for example in examples:
        text = example.text('targets')
        yield {**example.values, 'targets_pretokenized': text}

    return tf.data.Dataset.from_generator(rows, output_signature=specs)

  return seqio.FunctionDataSource(
    dataset_fn, splits=('all',), num_input_examples={'all': len(examples)}
  )


def _numbers(task, values: Mapping[str, Any]) -> dict[str, float]:
  """Metrics that are numbers; the others are named and left out."""
  plain = {name: getattr(v, 'value', v) for name, v in values.items()}
  is_number = lambda v: (
    np.ndim(v) == 0 and np.issubdtype(np.asarray(v).dtype, np.number)
  )
  numbers = {name: float(v) for name, v in plain.items() if is_number(v)}
  if others := sorted(set(plain) - set(numbers)):
    logging.warning(
      'seqio task %r: %s are no numbers; left out',
      *(task.name, ', '.join(others)),
    )
  return numbers
