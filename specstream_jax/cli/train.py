# SPDX-License-Identifier: Apache-2.0
"""Trains speculative streams (and LoRA) on the records of `prepare`.

With --task=NAME it writes the records of the task itself, to OUTPUT_DIR/records;
--task=seqio:NAME --task_module=my.tasks trains on a task or mixture of seqio.

With --draft_model_layers=4 it distils a draft model of four layers instead, for
--drafter=draft_model:path=FOLDER; any records do, best are the target's own
texts as JSONL, prepared with `specstream prepare --task=jsonl`.

Running the same command again resumes from the last checkpoint.
"""

from collections.abc import Sequence
import dataclasses

from absl import flags
import gin

from specstream_jax import config
from specstream_jax.checkpoints import shipped
from specstream_jax.cli import decoding_flags, task_flags, train_flags
from specstream_jax.data import mixtures
from specstream_jax.modeling import blocks
from specstream_jax.training import goodput
from specstream_jax.workflows import (
  dry_run,
  task_records,
  train as workflow,
  train_draft_model,
)

RESULTS = 'output_dir'
TRAINS = True


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'data_dir',
    None,
    'Token records to train on; FOLDER=RATE,FOLDER=RATE mixes several. With '
    "--task, folder of the task's files.",
  )
  task_flags.define(default='', about='Task to train on instead of records')
  flags.DEFINE_string('eval_data_dir', None, 'Token records to evaluate on.')
  flags.DEFINE_string(
    'init_adapter',
    None,
    'Adapter to start from, a folder or one that ships; its stream and LoRA '
    'settings hold. --gin.OptimizerConfig.trainable=coupling/ trains a part.',
  )
  flags.DEFINE_string(
    'fold_adapter',
    None,
    'Fine-tuned adapter or PEFT LoRA that is folded into the base, under lossless '
    'streams (--gin.StreamConfig.mode=lossless): answers stay those of that LoRA.',
  )
  flags.DEFINE_string(
    'output_dir', None, 'Folder of the run; the same one goes on with it.'
  )
  train_flags.define()
  decoding_flags.define_dtype()
  flags.DEFINE_enum(
    'remat',
    'none',
    list(blocks.REMAT),
    'What the backward pass computes again, to save memory: nothing, all but '
    'the products with weights, or whole layers.',
  )
  flags.DEFINE_bool(
    'scan_layers',
    False,
    'Compile one layer and scan over all: large models compile in a fraction '
    'of the time.',
  )
  flags.DEFINE_string(
    'profile_steps',
    '',
    'FIRST:LAST writes a trace of these steps for XProf, in profile/.',
  )
  flags.DEFINE_enum(
    'export', 'best', ['best', 'last'], 'Checkpoint that becomes the adapter.'
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Check settings and records, estimate memory, exit.'
  )
  _define_draft_model()
  flags.mark_flags_as_required(['output_dir'])


def _define_draft_model() -> None:
  flags.DEFINE_integer(
    'draft_model_layers',
    0,
    'Distil a draft model of so many layers instead of training streams; its '
    'target is --model with --adapter.',
    lower_bound=0,
  )
  flags.DEFINE_string(
    'adapter', '', 'Adapter of the target to distil; empty is the bare model.'
  )


def main(argv: Sequence[str]) -> int:
  """Trains an adapter or a draft model; --dry_run describes the run."""
  del argv
  args = flags.FLAGS
  if args.adapter and not args.draft_model_layers:
    raise ValueError(
      f'--adapter={args.adapter} names the target of a draft model; add '
      '--draft_model_layers=4, or leave it out'
    )
  found = _records(args)
  mixtures.parse(found.train)  # a bad one ends a dry run, too
  if args.draft_model_layers:
    return _train_draft_model(args, found)
  recipe = train_flags.apply(workflow.Recipe(), found.train)
  train_flags.announce(recipe, found.train)
  if args.dry_run:
    _check_records(args, found, recipe)
    print(
      dry_run.describe(args.model, recipe, dtype=args.dtype, remat=args.remat)
    )
    print(gin.operative_config_str())
    return 0
  dry_run.warn_if_large(args.model, recipe, dtype=args.dtype, remat=args.remat)
  return _report(_train(args, found, recipe))


def _records(args) -> task_records.Records:
  """Records of the flags, or of a task."""
  task = task_flags.name()
  if not task:
    if not args.data_dir:
      raise ValueError(
        'there is nothing to train on; give --data_dir, a folder of records '
        '(specstream prepare), or --task=NAME'
      )
    return task_records.Records(args.data_dir, args.eval_data_dir)
  made = task_records.prepare(
    dataclasses.replace(config.TaskConfig(), name=task),
    args.model,
    args.output_dir,
    data_dir=args.data_dir,
    max_length=config.DataConfig().sequence_length + 1,
  )
  return dataclasses.replace(made, dev=args.eval_data_dir or made.dev)


def _train(args, found, recipe):
  return workflow.train(
    args.model,
    found.train,
    args.output_dir,
    eval_data_dir=found.dev,
    init_adapter=args.init_adapter
    and shipped.adapter_folder(args.init_adapter),
    fold_adapter=args.fold_adapter
    and shipped.adapter_folder(args.fold_adapter),
    recipe=recipe,
    dtype=args.dtype,
    execution=workflow.Execution(
      remat=args.remat,
      scan_layers=args.scan_layers,
      profile_steps=goodput.parse_steps(args.profile_steps),
    ),
    export=args.export,
  )


def _report(trained) -> int:
  """Says how it ended; the exit status."""
  print(f'time: {goodput.line(trained.shares)}')
  if trained.interrupted:
    return train_flags.stopped(trained)
  print(f'adapter written to {trained.adapter_dir} after {trained.step} steps')
  return 0


def _check_records(args, found, recipe) -> None:
  """What a dry run refuses, as the run itself would."""
  dry_run.check_records(args.model, found.train, found.dev, recipe)


def _train_draft_model(args, found) -> int:
  if args.scan_layers:
    raise ValueError('--scan_layers does not go with --draft_model_layers')
  if args.profile_steps:
    raise ValueError('--profile_steps does not go with --draft_model_layers')
  recipe = train_flags.apply(
    train_draft_model.DraftRecipe(num_layers=args.draft_model_layers),
    found.train,
  )
  train_flags.announce(recipe, found.train)
  if args.dry_run:
    _check_records(args, found, recipe)
    print(train_draft_model.describe(args.model, recipe, dtype=args.dtype))
    print(gin.operative_config_str())
    return 0
  trained = train_draft_model.train(
    args.model,
    found.train,
    args.output_dir,
    adapter=args.adapter or None,
    eval_data_dir=found.dev,
    recipe=recipe,
    dtype=args.dtype,
    remat=args.remat,
    export=args.export,
  )
  if trained.interrupted:
    return train_flags.stopped(trained)
  print(
    f'draft model written to {trained.folder} after {trained.step} steps; '
    f'decode with --drafter=draft_model:path={trained.folder}'
  )
  return 0
