# SPDX-License-Identifier: Apache-2.0
"""Compares drafters on tasks: one process, interleaved, same token counter.

  specstream bench --drafters=streams:num_nodes=8,depth=4;prompt_lookup \\
    --tasks=e2e_sample/test,spec_bench@DIR --results_dir=results/bench

Drafters are parted by semicolons or by repeating the flag; each is a name and
settings. Ctrl-C keeps what was measured; the same command with --resume goes on.
"""

from collections.abc import Sequence
import shlex
import sys
from typing import Any

from absl import flags

from specstream_jax import runtime
from specstream_jax.cli import (
  decoding_flags,
  drafter_help,
  task_flags,
  weights_flags,
)
from specstream_jax.report import table
from specstream_jax.workflows import bench as workflow, tune

RESULTS = 'results_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  decoding_flags.define_adapter()
  decoding_flags.define_weights()
  weights_flags.define()
  flags.DEFINE_multi_string(
    'drafters',
    None,
    '[LABEL=]NAME[:setting=value,…]; `none` is always measured. Default: streams '
    'if there is an adapter, as `specstream tune` has set them here if it has, '
    'else prompt_lookup.',
  )
  flags.DEFINE_list(
    'tasks',
    ['e2e_sample/test'],
    'Tasks, as name/split@DIR; split and @DIR may be left out. seqio:NAME/split '
    'is one that --task_module registers.',
  )
  task_flags.define_module()
  flags.DEFINE_list('temperatures', ['0'], 'Temperatures; 0 is greedy.')
  decoding_flags.define_generation_config('none')
  flags.DEFINE_list('batch_sizes', ['1'], 'Prompts decoded together.')
  flags.DEFINE_integer(
    'num_prompts',
    64,
    'Prompts of each task, evenly spread; 0 takes all.',
    lower_bound=0,
  )
  flags.DEFINE_integer('max_new_tokens', 64, 'Most new tokens per prompt.')
  flags.DEFINE_integer(
    'max_prompt_tokens', 1024, 'Longer prompts lose their beginning.'
  )
  flags.DEFINE_integer(
    'repeats', 1, 'How often everything is timed.', lower_bound=1
  )
  flags.DEFINE_integer(
    'seed', 0, 'Seed of the noise when the temperature is above 0.'
  )
  decoding_flags.define_schedule('deferred')
  flags.DEFINE_list(
    'external',
    [],
    f'References to run as well: {", ".join(workflow.EXTERNAL)}.',
  )
  flags.DEFINE_float(
    'synthetic_acceptance',
    0.0,
    'Chance that a draft is accepted, instead of verifying; 0 verifies.',
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_bool('resume', False, 'Go on with the journal that is there.')
  flags.DEFINE_bool('overwrite', False, 'Start anew where there is one.')
  flags.DEFINE_string(
    'results_dir',
    'results/bench',
    'Folder for journal.jsonl, results.json, table.md, report.html, answers/.',
  )


def more_help() -> str:
  """What `--help` says of drafters."""
  return drafter_help.text()


def main(argv: Sequence[str]) -> int:
  """Measures every drafter on every task and writes tables and plots."""
  del argv
  args = flags.FLAGS
  model = load_model(args)
  options = workflow.Options(
    drafters=_drafters(args, model),
    tasks=tuple(args.tasks),
    temperatures=decoding_flags.numbers(
      'temperatures', args.temperatures, float
    ),
    sampling=decoding_flags.own_sampling(model),
    batch_sizes=decoding_flags.numbers('batch_sizes', args.batch_sizes, int),
    num_prompts=args.num_prompts,
    max_new_tokens=args.max_new_tokens,
    max_prompt_tokens=args.max_prompt_tokens,
    repeats=args.repeats,
    seed=args.seed,
    schedule=weights_flags.schedule(args),
    external=tuple(args.external),
    synthetic_acceptance=args.synthetic_acceptance,
    resume=args.resume,
    overwrite=args.overwrite,
  )
  runs = workflow.bench(
    model, options, args.results_dir, command=shlex.join(sys.argv)
  )
  print(table.format_table(runs))
  print(f'report: {args.results_dir}/report.html')
  return 0


def _drafters(args, model) -> tuple[str, ...]:
  """Those asked for; else what the model can do without more weights."""
  if args.drafters is None:
    batch = decoding_flags.numbers('batch_sizes', args.batch_sizes, int)[0]
    found = tune.find(model, batch)
    schedule = weights_flags.schedule(args)
    if found and found.drafter != 'none' and found.schedule == schedule:
      return (f'streams, tuned={found.drafter}',)
    return ('streams' if model.stream else 'prompt_lookup',)
  texts = (text for group in args.drafters for text in group.split(';'))
  return tuple(filter(None, map(str.strip, texts)))


def load_model(args: Any) -> runtime.Model:
  """The model; streams of random weights where acceptance is synthetic."""
  model = runtime.load(
    args.model,
    args.adapter or None,
    dtype=args.dtype,
    weights_dtype=args.weights_dtype,
    streamed=weights_flags.streamed(),
    fuse=True,
  )
  if args.synthetic_acceptance and model.stream is None:
    model = runtime.with_random_streams(model)
  return model
