# SPDX-License-Identifier: Apache-2.0
"""Trains Medusa heads on the records of `prepare`; the model stays frozen.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax.checkpoints import medusa
from specstream_jax.cli import decoding_flags, train_flags
from specstream_jax.workflows import train_medusa as workflow

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'adapter', None, 'Adapter whose fine-tuned model the heads are for.'
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    'Token records to train on; FOLDER=RATE,FOLDER=RATE mixes several.',
  )
  flags.DEFINE_string(
    'eval_data_dir', None, 'Token records to evaluate and choose the tree on.'
  )
  flags.DEFINE_string(
    'output_dir', None, 'Folder of the run; the same one goes on with it.'
  )
  train_flags.define()
  flags.DEFINE_integer(
    'num_heads', 4, 'Heads; each guesses a token further ahead.'
  )
  flags.DEFINE_float('head_decay', 0.8, 'Loss weight of head j: decay**j.')
  flags.DEFINE_integer(
    'calibration_batches', 16, 'Evaluation batches to choose the tree on.'
  )
  flags.DEFINE_enum(
    'dtype',
    'float32',
    ['float32', 'bfloat16'],
    'Number type of the frozen model.',
  )
  flags.DEFINE_enum(
    'save_dtype', 'bfloat16', medusa.DTYPES, 'Number type of the heads on disk.'
  )
  flags.DEFINE_enum(
    'export', 'best', ['best', 'last'], 'Checkpoint that becomes the heads.'
  )
  flags.mark_flags_as_required(['data_dir', 'output_dir'])


def main(argv: Sequence[str]) -> int:
  """Trains Medusa heads."""
  del argv
  args = flags.FLAGS
  recipe = train_flags.apply(
    workflow.HeadsRecipe(
      num_heads=args.num_heads,
      head_decay=args.head_decay,
      calibration_batches=args.calibration_batches,
    ),
    args.data_dir,
  )
  train_flags.announce(recipe, args.data_dir)
  trained = workflow.train(
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
    print(f'stopped at step {trained.step}; run the same command to resume')
    return 128 + trained.signal
  print(f'heads written to {trained.folder} after {trained.step} steps')
  return 0
