# SPDX-License-Identifier: Apache-2.0
"""Proves, or disproves, that decoding with drafts changes nothing here.

One line per property: tokens equal plain decoding in float32 for each drafter
and tree, the law of each verifier by enumeration, main logits with streams on
and off, weights before and after decoding and on disk, tokens of a lossless
adapter against the base without it, and where bfloat16 parts the ways. The exit
status is 1 when a property fails.
"""

from collections.abc import Sequence
import functools
import shlex
import sys

from absl import flags

from specstream_jax import runtime
from specstream_jax.cli import decoding_flags
from specstream_jax.workflows import check as workflow


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  decoding_flags.define_adapter()
  decoding_flags.define_weights_dtype()
  flags.DEFINE_multi_string(
    'drafters',
    None,
    'NAME:setting=value,…, parted by semicolons or repeated; default: trees of '
    "every kind, as deep as the adapter has streams, the adapter's own tree, "
    'prompt_lookup and lookahead.',
  )
  flags.DEFINE_string(
    'task',
    'e2e_sample/test',
    'Task, as name/split@DIR; split and @DIR may be left out.',
  )
  flags.DEFINE_integer(
    'num_prompts', 16, 'Prompts, evenly spread; 0 takes all.'
  )
  flags.DEFINE_integer('max_new_tokens', 64, 'Most new tokens per prompt.')
  flags.DEFINE_list(
    'temperatures', ['0', '0.8'], 'Temperatures at which tokens must be equal.'
  )
  flags.DEFINE_integer('batch', 4, 'Prompts decoded together.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
  flags.DEFINE_bool('bfloat16', True, 'Report divergence in bfloat16 too.')
  flags.DEFINE_bool('laws', True, 'Enumerate the laws of the verifiers.')
  flags.DEFINE_string('output', 'results/check.json', 'JSON file to write.')


def main(argv: Sequence[str]) -> int:
  """Prints one line per property; 1 when one fails."""
  del argv
  args = flags.FLAGS
  load = lambda dtype, streams=True: runtime.load(
    args.model,
    args.adapter or None,
    dtype=dtype,
    weights_dtype=args.weights_dtype,
    streams=streams,
  )
  options = workflow.Options(
    drafters=_drafters(args),
    task=args.task,
    num_prompts=args.num_prompts,
    max_new_tokens=args.max_new_tokens,
    temperatures=decoding_flags.numbers('temperatures', args.temperatures),
    batch=args.batch,
    seed=args.seed,
    laws=args.laws,
  )
  model = load('float32')
  drafters = options.drafters or workflow.default_drafters(model)
  low = load('bfloat16') if args.bfloat16 else None
  properties: list[workflow.Property] = []
  write = functools.partial(
    workflow.write, args.output, properties, command=shlex.join(sys.argv)
  )
  write(finished=False)
  finished = False
  try:
    for found in workflow.check(
      model, options, low, lambda given: load('float32', given)
    ):
      properties.append(found)
      print(found.line(), flush=True)
    finished = True
  finally:
    write(finished=finished)
  skipped = _skipped(drafters)
  if skipped:
    print(f'not asked for: {", ".join(skipped)} (--drafters=NAME:path=FOLDER)')
  failed = sum(p.passed is False for p in properties)
  print(f'{len(properties)} properties, {failed} failed; {args.output}')
  return 1 if failed else 0


def _skipped(texts: Sequence[str]) -> list[str]:
  """Drafters with weights of their own that are not among `texts`."""
  names = {text.partition(':')[0] for text in texts}
  return [
    name for name in ('draft_model', 'medusa', 'dart') if name not in names
  ]


def _drafters(args) -> tuple[str, ...] | None:
  """Those asked for; None leaves them to the model."""
  if args.drafters is None:
    return None
  texts = (text for group in args.drafters for text in group.split(';'))
  return tuple(filter(None, map(str.strip, texts)))
