# SPDX-License-Identifier: Apache-2.0
"""Flags that every training command shares: how long, how wide, how fast."""

import dataclasses
import sys
from typing import Any

from absl import flags

from specstream_jax import processes
from specstream_jax.data import epochs as epochs_lib
from specstream_jax.workflows import train_run


def define() -> None:
  """Declares the flags; None as a default leaves the value to gin."""
  flags.DEFINE_integer(
    'steps', None, 'Batches to train on; TrainConfig.num_steps.', lower_bound=1
  )
  flags.DEFINE_float(
    'epochs',
    None,
    'How often to go through the records, instead of --steps.',
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    'batch_size', None, 'Rows of a step; TrainConfig.batch_size.', lower_bound=1
  )
  flags.DEFINE_float(
    'learning_rate',
    None,
    'Peak rate; OptimizerConfig.learning_rate. Stream embeddings have another, '
    'OptimizerConfig.embedding_learning_rate.',
    lower_bound=0.0,
  )


def apply(recipe: Any, data_dir: str) -> Any:
  """The recipe with the values of the flags.

  Args:
    recipe: has `train`, `optimizer` and `data`.
    data_dir: token records, or a mixture.

  Raises:
    ValueError: steps and epochs at once, or no records to count epochs of.
  """
  args = flags.FLAGS
  if args.steps is not None and args.epochs is not None:
    raise ValueError(
      f'--steps={args.steps} and --epochs={args.epochs} say two things; leave '
      'one out'
    )
  train, optimizer = recipe.train, recipe.optimizer
  if args.batch_size is not None:
    train = dataclasses.replace(train, batch_size=args.batch_size)
  if args.learning_rate is not None:
    optimizer = dataclasses.replace(optimizer, learning_rate=args.learning_rate)
  steps = args.steps
  if args.epochs is not None:
    steps = epochs_lib.steps(
      args.epochs, data_dir, train.batch_size, recipe.data
    )
  if steps is not None:
    train = dataclasses.replace(train, num_steps=steps)
  return dataclasses.replace(recipe, train=train, optimizer=optimizer)


def announce(recipe: Any, data_dir: str) -> None:
  """Says how often the records are gone through, and if that is too often."""
  found = epochs_lib.count(data_dir, recipe.train, recipe.data)
  if processes.is_main():
    print(
      f'{recipe.train.num_steps:,} steps of {recipe.train.batch_size} rows: '
      f'{found}'
    )
    if found.warning:
      print(f'warning: {found.warning}', file=sys.stderr)


def stopped(trained: train_run.Trained) -> int:
  """Says that a signal stopped a run; the exit status, as a shell has it."""
  print(f'stopped at step {trained.step}; run the same command to resume')
  return 128 + trained.signal
