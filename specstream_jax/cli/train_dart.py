# SPDX-License-Identifier: Apache-2.0
"""Trains a DART layer on the records of `prepare`; the model stays frozen.

A DART layer (arXiv 2601.19278) lies on top of the model and drafts several tokens
in one pass: generate --drafter=dart:path=RUN/dart.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax.cli import frozen_flags
from specstream_jax.workflows import train_dart as workflow

RESULTS = 'output_dir'
TRAINS = True


def define_flags() -> None:
  """Defines the flags of this command."""
  frozen_flags.define('layer')
  flags.DEFINE_integer(
    'num_drafts', 4, 'Tokens that the layer drafts in one pass, at least 2.'
  )
  flags.DEFINE_float('draft_decay', 0.8, 'Loss weight of draft j: decay**j.')


def main(argv: Sequence[str]) -> int:
  """Trains a DART layer."""
  del argv
  args = flags.FLAGS
  recipe = workflow.DartRecipe(
    num_drafts=args.num_drafts, draft_decay=args.draft_decay
  )
  return frozen_flags.run('layer', workflow.train, recipe)
