# SPDX-License-Identifier: Apache-2.0
"""Trains Medusa heads on the records of `prepare`; the model stays frozen.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax.cli import frozen_flags
from specstream_jax.workflows import train_medusa as workflow

RESULTS = 'output_dir'
TRAINS = True


def define_flags() -> None:
  """Defines the flags of this command."""
  frozen_flags.define('heads', verb='are', also=' and choose the tree')
  flags.DEFINE_integer(
    'num_heads', 4, 'Heads; each guesses a token further ahead.'
  )
  flags.DEFINE_float('head_decay', 0.8, 'Loss weight of head j: decay**j.')
  flags.DEFINE_integer(
    'calibration_batches', 16, 'Evaluation batches to choose the tree on.'
  )


def main(argv: Sequence[str]) -> int:
  """Trains Medusa heads."""
  del argv
  args = flags.FLAGS
  recipe = workflow.HeadsRecipe(
    num_heads=args.num_heads,
    head_decay=args.head_decay,
    calibration_batches=args.calibration_batches,
  )
  return frozen_flags.run('heads', workflow.train, recipe)
