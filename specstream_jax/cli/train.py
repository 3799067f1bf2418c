# SPDX-License-Identifier: Apache-2.0
"""Trains speculative streams (and LoRA) on the records of `prepare`.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence

from absl import flags
import gin

from specstream_jax.workflows import dry_run, train as workflow


def define_flags() -> None:
  flags.DEFINE_string('model', 'smollm2-135m-instruct', 'Base model.')
  flags.DEFINE_string('data_dir', None, 'Token records to train on.')
  flags.DEFINE_string('eval_data_dir', None, 'Token records to evaluate on.')
  flags.DEFINE_string('output_dir', None, 'Folder of the run.')
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  flags.DEFINE_bool('remat', False, 'Recompute layers to save memory.')
  flags.DEFINE_enum(
    'export', 'best', ['best', 'last'], 'Checkpoint that becomes the adapter.'
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Resolve settings, estimate memory, and exit.'
  )
  flags.mark_flags_as_required(['data_dir', 'output_dir'])


def main(argv: Sequence[str]) -> int:
  del argv
  args = flags.FLAGS
  recipe = workflow.Recipe()
  if args.dry_run:
    print(
      dry_run.describe(args.model, recipe, dtype=args.dtype, remat=args.remat)
    )
    print(gin.operative_config_str())
    return 0
  trained = workflow.train(
    args.model,
    args.data_dir,
    args.output_dir,
    eval_data_dir=args.eval_data_dir,
    recipe=recipe,
    dtype=args.dtype,
    remat=args.remat,
    export=args.export,
  )
  if trained.interrupted:
    print(f'stopped at step {trained.step}; run the same command to resume')
  else:
    print(
      f'adapter written to {trained.adapter_dir} after {trained.step} steps'
    )
  return 0
