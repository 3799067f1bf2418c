# SPDX-License-Identifier: Apache-2.0
"""Finds the draft tree that is fastest on this machine, and keeps it.

  specstream tune --adapter=my_adapter --task=jsonl/prompts@FOLDER

Looks once at what every tree would accept on the prompts, times a call of each,
runs the most promising against plain decoding, and writes tuning.json beside
the adapter (one that ships: in the cache). generate, evaluate, bench and serve
take it from there, on this kind of machine, where they are told no drafter.

Ctrl-C keeps what was measured; the same command goes on.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax import runtime
from specstream_jax.checkpoints import tuning
from specstream_jax.cli import decoding_flags, task_flags, weights_flags
from specstream_jax.report import tune_report
from specstream_jax.workflows import tune as workflow

RESULTS = 'results_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  made = workflow.Options()
  decoding_flags.define_model()
  decoding_flags.define_adapter()
  decoding_flags.define_weights()
  weights_flags.define()
  flags.DEFINE_string(
    'task',
    made.task,
    'Prompts to try it on, as name/split@DIR; split and @DIR may be left out. '
    'jsonl/NAME@DIR reads DIR/NAME.jsonl.',
  )
  task_flags.define_module()
  flags.DEFINE_integer(
    'num_prompts',
    made.num_prompts,
    'Prompts, evenly spread; 0 takes all.',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'max_new_tokens', made.max_new_tokens, 'Most new tokens per prompt.'
  )
  flags.DEFINE_list(
    'batch_sizes', ['1'], 'Prompts decoded together; each is tuned by itself.'
  )
  flags.DEFINE_list(
    'nodes',
    [],
    'Sizes of trees to try; some that suit the device if not given.',
  )
  flags.DEFINE_list(
    'schedules',
    [],
    'When streams run, see generate; deferred on a CPU, both elsewhere and with '
    'streamed weights, if not given.',
  )
  flags.DEFINE_integer(
    'num_verified',
    made.num_verified,
    'So many of the most promising are run against plain decoding.',
    lower_bound=1,
  )
  flags.DEFINE_float(
    'temperature', made.temperature, 'Of the tokens; 0 takes the likeliest.'
  )
  decoding_flags.define_generation_config('none')
  flags.DEFINE_integer(
    'seed', 0, 'Seed of the noise when the temperature is above 0.'
  )
  flags.DEFINE_string(
    'results_dir',
    'results/tune',
    'Folder for the measurements, tune.json and tune.svg.',
  )


def main(argv: Sequence[str]) -> int:
  """Measures, prints the candidates, and keeps the fastest."""
  del argv
  args = flags.FLAGS
  model = runtime.load(
    args.model,
    args.adapter or None,
    dtype=args.dtype,
    weights_dtype=args.weights_dtype,
    streamed=weights_flags.streamed(),
    fuse=True,
  )
  numbers = decoding_flags.numbers
  options = workflow.Options(
    task=args.task,
    num_prompts=args.num_prompts,
    max_new_tokens=args.max_new_tokens,
    batch_sizes=numbers('batch_sizes', args.batch_sizes, int),
    nodes=numbers('nodes', args.nodes, int),
    schedules=tuple(args.schedules),
    num_verified=args.num_verified,
    temperature=args.temperature,
    sampling=decoding_flags.own_sampling(model),
    seed=args.seed,
  )
  found = workflow.tune(
    model, options, args.results_dir, command=shlex.join(sys.argv)
  )
  print(tune_report.table(found))
  for batch in options.batch_sizes:
    print(tune_report.verdict(found, batch))
  print(f'plot: {args.results_dir}/tune.svg')
  print(f'kept: {tuning.path(model.adapter_dir)}')
  return 0
