# SPDX-License-Identifier: Apache-2.0
"""Compares speculative with plain decoding on a task: speed and quality.

A stopped run goes on with the same command. Several machines share a run with
--shard=0/4 … --shard=3/4 and one --results_dir, which the processes of a
launched job do by themselves; the last to end writes the results.

  specstream evaluate --gin_file=configs/eval/e2e.gin --data_dir=DIR
  specstream evaluate --task=seqio:NAME --task_module=my.tasks --split=validation

A seqio task is scored by its own metric_fns.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax import config, runtime
from specstream_jax.bench import grid
from specstream_jax.cli import decoding_flags, task_flags, weights_flags
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import registry
from specstream_jax.report import page
from specstream_jax.workflows import evaluate as workflow

RESULTS = 'results_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define(generation_config='none')
  weights_flags.define()
  task_flags.define(default='e2e_sample')
  flags.DEFINE_string(
    'split', None, 'Split of the task; TaskConfig.test_split, test.'
  )
  flags.DEFINE_string('data_dir', None, "Folder of the task's files.")
  flags.DEFINE_integer(
    'num_prompts',
    None,
    'Take the first so many prompts; 0 takes all. EvalConfig.num_prompts, 64.',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'batch',
    None,
    'Prompts decoded together; EvalConfig.batch, 1.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'repeats',
    None,
    'How often everything is timed; EvalConfig.repeats, 2.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'drafter',
    None,
    'EvalConfig.drafter, streams:setting=value,…, such as vocabulary=adapter,ngram_table=adapter for '
    "the adapter's own files; plain streams are those of `specstream tune`, if "
    'it was run here.',
  )
  decoding_flags.define_shard()
  flags.DEFINE_string(
    'results_dir', 'results', 'Folder for results.json and report.html.'
  )


def main(argv: Sequence[str]) -> int:
  """Decodes a task and prints its metrics and speed."""
  del argv
  args = flags.FLAGS
  options, model = _options()
  run = workflow.evaluate(model, options, folder=args.results_dir)
  if run is None:
    print('batches are still missing from other shards; the last one writes')
    return 0
  path = workflow.write(
    args.results_dir, [run], command=shlex.join(sys.argv), source=model.source
  )
  workflow.forget(args.results_dir, options)
  print(page.format_table([run]))
  print(f'report: {path}')
  return 0


def _options() -> tuple[workflow.Options, runtime.Model]:
  """What to do, flags before gin, and the model to do it with."""
  args, made = flags.FLAGS, config.EvalConfig()
  shard, num_shards = decoding_flags.shard()
  task = task_flags.name(default='e2e_sample')
  registry.get(task)  # an unknown one is refused before the model is loaded
  model = decoding_flags.load_model(adapter=made.adapter)
  decode = decoding_flags.decode()
  tree = decoding_flags.tree(model.tree)
  given = lambda name: getattr(made if args[name].value is None else args, name)
  drafter, schedule = given('drafter'), decode.schedule
  if model.streamed is not None:
    schedule = decoding_flags.schedule() or weights_flags.SCHEDULE
  if drafter == config.EvalConfig.drafter:
    found = decoding_flags.tuned(model, given('batch'))
    if found is not None and found.drafter != grid.BASELINE:
      drafter, schedule = found.drafter, found.schedule
  options = workflow.Options(
    task=task,
    split=args.split or config.TaskConfig().test_split,
    data_dir=args.data_dir,
    num_prompts=given('num_prompts'),
    max_new_tokens=decode.max_new_tokens,
    tree=tree,
    schedule=schedule,
    sampling=decoding_flags.sampling(model),
    batch=given('batch'),
    repeats=given('repeats'),
    seed=args.seed,
    drafter=config_drafting.parse(drafter, tree),
    shard=shard,
    num_shards=num_shards,
  )
  return options, model
