# SPDX-License-Identifier: Apache-2.0
"""Trains a DART layer on the records of `prepare`; the model stays frozen.

A DART layer (arXiv 2601.19278) lies on top of the model and drafts several tokens
in one pass: generate --drafter=dart:path=RUN/dart.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax.checkpoints import dart
from specstream_jax.cli import decoding_flags, train_flags
from specstream_jax.workflows import train_dart as workflow

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'adapter', None, 'Adapter whose fine-tuned model the layer is for.'
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    'Token records to train on; FOLDER=RATE,FOLDER=RATE mixes several.',
  )
  flags.DEFINE_string('eval_data_dir', None, 'Token records to evaluate on.')
  flags.DEFINE_string(
    'output_dir', None, 'Folder of the run; the same one goes on with it.'
  )
  train_flags.define()
  flags.DEFINE_integer(
    'num_drafts', 4, 'Tokens that the layer drafts in one pass, at least 2.'
  )
  flags.DEFINE_float('draft_decay', 0.8, 'Loss weight of draft j: decay**j.')
  flags.DEFINE_enum(
    'dtype',
    'float32',
    ['float32', 'bfloat16'],
    'Number type of the frozen model.',
  )
  flags.DEFINE_enum(
    'save_dtype', 'bfloat16', dart.DTYPES, 'Number type of the layer on disk.'
  )
  flags.DEFINE_enum(
    'export', 'best', ['best', 'last'], 'Checkpoint that becomes the layer.'
  )
  flags.mark_flags_as_required(['data_dir', 'output_dir'])


def main(argv: Sequence[str]) -> int:
  """Trains a DART layer."""
  del argv
  args = flags.FLAGS
  recipe = train_flags.apply(
    workflow.DartRecipe(
      num_drafts=args.num_drafts, draft_decay=args.draft_decay
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
  print(f'layer written to {trained.folder} after {trained.step} steps')
  return 0
