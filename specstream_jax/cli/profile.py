# SPDX-License-Identifier: Apache-2.0
"""Shows where the time of a decode step goes on this machine.

  specstream profile --drafter=streams:num_nodes=8,vocabulary=adapter

The same steps are compiled once as they are and once for every part (lower
layers, LM head, draft tree, …) with that part done twice, and timed in turns;
what a step takes longer is what the part costs. Beside them stand the step's
matrix products by themselves: what is left is what one could save.

Up to eleven programs compile first, which takes minutes on a CPU.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax import runtime
from specstream_jax.cli import decoding_flags, task_flags
from specstream_jax.report import profile_report
from specstream_jax.workflows import profile as workflow

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  made = workflow.Options()
  decoding_flags.define_model()
  decoding_flags.define_adapter()
  decoding_flags.define_dtype()
  flags.DEFINE_string(
    'drafter',
    made.drafter,
    'none, or streams with settings, such as streams:num_nodes=8; streams if '
    'there is an adapter, and its own tree, if not given.',
  )
  decoding_flags.define_schedule(made.schedule)
  flags.DEFINE_integer('batch', made.batch, 'Prompts decoded together.')
  flags.DEFINE_string(
    'task',
    made.task,
    'Prompts to decode, as name/split@DIR; split and @DIR may be left out.',
  )
  task_flags.define_module()
  flags.DEFINE_integer(
    'max_new_tokens',
    made.max_new_tokens,
    'New tokens that the cache has room for, as attention looks at all of it.',
  )
  flags.DEFINE_integer('steps', made.steps, 'Steps of a timing.')
  flags.DEFINE_integer('rounds', made.rounds, 'How often each part is timed.')
  flags.DEFINE_string(
    'output_dir', 'results/profile', 'Folder for profile.json and profile.svg.'
  )


def main(argv: Sequence[str]) -> int:
  """Measures, and prints the parts of a step."""
  del argv
  args = flags.FLAGS
  model = runtime.load(
    args.model, args.adapter or None, dtype=args.dtype, fuse=True
  )
  options = workflow.Options(
    task=args.task,
    drafter=args.drafter,
    schedule=args.schedule,
    batch=args.batch,
    max_new_tokens=args.max_new_tokens,
    steps=args.steps,
    rounds=args.rounds,
  )
  found = workflow.profile(
    model, options, args.output_dir, command=shlex.join(sys.argv)
  )
  print(profile_report.table(found))
  print(f'plot: {args.output_dir}/profile.svg')
  return 0
