# SPDX-License-Identifier: Apache-2.0
"""Compares speculative with plain decoding on a task: speed and quality.

A stopped run goes on with the same command. Several machines share a run with
--shard=0/4 … --shard=3/4 and one --results_dir, which the processes of a
launched job do by themselves; the last to end writes the results.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax.cli import decoding_flags
from specstream_jax.config import drafting as config_drafting
from specstream_jax.report import page
from specstream_jax.workflows import evaluate as workflow

RESULTS = 'results_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define(generation_config='none')
  flags.DEFINE_string('task', 'e2e_sample', 'Name of the task.')
  flags.DEFINE_string('split', 'test', 'Split of the task.')
  flags.DEFINE_string('data_dir', None, "Folder of the task's files.")
  flags.DEFINE_integer(
    'num_prompts',
    64,
    'Take the first so many prompts; 0 takes all.',
    lower_bound=0,
  )
  flags.DEFINE_integer('batch', 1, 'Prompts decoded together.', lower_bound=1)
  flags.DEFINE_integer(
    'repeats', 2, 'How often everything is timed.', lower_bound=1
  )
  flags.DEFINE_string(
    'drafter',
    'streams',
    'streams:setting=value,…, such as vocabulary=adapter,ngram_table=adapter for '
    "the adapter's own files.",
  )
  decoding_flags.define_shard()
  flags.DEFINE_string(
    'results_dir', 'results', 'Folder for results.json and report.html.'
  )


def main(argv: Sequence[str]) -> int:
  """Decodes a task and prints its metrics and speed."""
  del argv
  args = flags.FLAGS
  shard, num_shards = decoding_flags.shard()
  model = decoding_flags.load_model()
  decode = decoding_flags.decode()
  tree = decoding_flags.tree(model.tree)
  options = workflow.Options(
    task=args.task,
    split=args.split,
    data_dir=args.data_dir,
    num_prompts=args.num_prompts,
    max_new_tokens=decode.max_new_tokens,
    tree=tree,
    schedule=decode.schedule,
    sampling=decoding_flags.sampling(model),
    batch=args.batch,
    repeats=args.repeats,
    seed=args.seed,
    drafter=config_drafting.parse(args.drafter, tree),
    shard=shard,
    num_shards=num_shards,
  )
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
