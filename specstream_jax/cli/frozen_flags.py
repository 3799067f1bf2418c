# SPDX-License-Identifier: Apache-2.0
"""What commands have in common that train something beside a frozen model."""

from collections.abc import Callable
from typing import Any

from absl import flags

from specstream_jax.checkpoints import pair
from specstream_jax.cli import decoding_flags, train_flags
from specstream_jax.workflows import train_run


def define(noun: str, *, verb: str = 'is', also: str = '') -> None:
  """Declares the flags.

  Args:
    noun: what is trained, such as 'layer'.
    verb: that goes with it.
    also: what evaluation records are for beside evaluation, ' and …'.
  """
  decoding_flags.define_model()
  flags.DEFINE_string(
    'adapter', None, f'Adapter whose fine-tuned model the {noun} {verb} for.'
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    'Token records to train on; FOLDER=RATE,FOLDER=RATE mixes several.',
  )
  flags.DEFINE_string(
    'eval_data_dir', None, f'Token records to evaluate{also} on.'
  )
  flags.DEFINE_string(
    'output_dir', None, 'Folder of the run; the same one goes on with it.'
  )
  train_flags.define()
  flags.DEFINE_enum(
    'dtype',
    'float32',
    ['float32', 'bfloat16'],
    'Number type of the frozen model.',
  )
  flags.DEFINE_enum(
    'save_dtype',
    'bfloat16',
    pair.DTYPES,
    f'Number type of the {noun} on disk.',
  )
  flags.DEFINE_enum(
    'export', 'best', ['best', 'last'], f'Checkpoint that becomes the {noun}.'
  )
  flags.mark_flags_as_required(['data_dir', 'output_dir'])


def run(
  noun: str,
  train: Callable[..., train_run.Trained],
  recipe: train_run.BaseRecipe,
) -> int:
  """Trains by the flags and says what came of it; the exit status.

  Args:
    noun: as above.
    train: of the workflow.
    recipe: its settings, to which the flags of training are applied.
  """
  args: Any = flags.FLAGS
  recipe = train_flags.apply(recipe, args.data_dir)
  train_flags.announce(recipe, args.data_dir)
  trained = train(
    args.model,
    args.data_dir,
    args.output_dir,
    adapter=args.adapter,
    eval_data_dir=args.eval_data_dir,
    recipe=recipe,
    dtype=args.dtype,
    save_dtype=args.save_dtype,
    export=args.export,
  )
  if trained.interrupted:
    return train_flags.stopped(trained)
  print(f'{noun} written to {trained.folder} after {trained.step} steps')
  return 0
