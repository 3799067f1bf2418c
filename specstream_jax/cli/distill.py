# SPDX-License-Identifier: Apache-2.0
"""Writes the model's own answers as training data for lossless streams.

  specstream distill --task=e2e_nlg --split=train --data_dir=DIR \\
    --output_dir=distilled
  specstream prepare --task=jsonl --split=train --data_dir=distilled …

A stopped run goes on with the same command. Several machines share a run with
--shard=0/4 … --shard=3/4 and one --output_dir, which the processes of a
launched job do by themselves; the last to end merges.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax import runtime
from specstream_jax.cli import decoding_flags, task_flags
from specstream_jax.outputs import names
from specstream_jax.workflows import distill as workflow

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'adapter',
    '',
    'Folder of an adapter, or the name of one that ships; empty answers as '
    'the base.',
  )
  decoding_flags.define_weights()
  task_flags.define(default='', about='Task whose prompts are answered')
  flags.DEFINE_string(
    'prompts', None, 'JSONL of {"prompt": …} instead of a task.'
  )
  flags.DEFINE_string(
    'split', 'train', 'Split of the task, and name of the file.'
  )
  flags.DEFINE_string('data_dir', None, "Folder of the task's files.")
  flags.DEFINE_integer(
    'num_prompts',
    0,
    'Take the first so many prompts; 0 takes all.',
    lower_bound=0,
  )
  flags.DEFINE_bool(
    'skip_bad_rows', False, 'Leave malformed rows out, count them, go on.'
  )
  flags.DEFINE_bool('chat', False, 'Prompts are turns of a user in a chat.')
  flags.DEFINE_string(
    'drafter',
    'none',
    "Who drafts: 'streams' goes where there is an adapter; the answers are the "
    'same.',
  )
  flags.DEFINE_integer('max_new_tokens', 128, 'Most tokens of an answer.')
  flags.DEFINE_integer(
    'max_prompt_tokens', 1024, 'Longer prompts are left out.'
  )
  flags.DEFINE_integer('batch_size', 8, 'Prompts decoded together.')
  flags.DEFINE_integer(
    'prompt_bucket',
    64,
    'Prompts are padded to a multiple of so many tokens; each such length '
    'compiles once.',
  )
  decoding_flags.define_sampling(generation_config='none')
  decoding_flags.define_shard()
  flags.DEFINE_string('output_dir', 'distilled', 'Folder for SPLIT.jsonl.')


def main(argv: Sequence[str]) -> int:
  """Writes the model's own answers."""
  del argv
  args = flags.FLAGS
  prompts = _prompts(args)
  shard, num_shards = decoding_flags.shard()
  model = runtime.load(
    args.model,
    args.adapter or None,
    dtype=args.dtype,
    weights_dtype=args.weights_dtype,
  )
  options = workflow.Options(
    max_new_tokens=args.max_new_tokens,
    max_prompt_tokens=args.max_prompt_tokens,
    batch_size=args.batch_size,
    prompt_bucket=args.prompt_bucket,
    sampling=decoding_flags.sampling(model),
    seed=args.seed,
    is_chat=args.chat,
    drafter=args.drafter,
    shard=shard,
    num_shards=num_shards,
  )
  done = workflow.distill(
    model, prompts, args.output_dir, options, split=args.split
  )
  print(
    f'{done.num_rows} answers, {done.num_decoded} decoded now, '
    f'{done.num_unfinished} cut at {args.max_new_tokens} tokens, '
    f'{done.num_too_long} prompts too long'
  )
  if done.path:
    print(f'{done.path} is whole: {done.counts}')
  else:
    print(f'of this shard: {done.counts}')
    print(f'{done.missing} rows are still missing from other shards')
  return 0


def _prompts(args) -> list[str]:
  names.check('--split', args.split)  # before the model is loaded
  task = args.task or ('' if args.prompts else task_flags.name())
  if bool(task) == bool(args.prompts):
    raise ValueError('pass either --task=NAME or --prompts=FILE')
  prompts = (
    workflow.read_prompts(args.prompts, skip_bad_rows=args.skip_bad_rows)
    if args.prompts
    else workflow.task_prompts(
      task, args.split, args.data_dir, skip_bad_rows=args.skip_bad_rows
    )
  )
  return prompts[: args.num_prompts or None]
