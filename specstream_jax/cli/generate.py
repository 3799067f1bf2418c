# SPDX-License-Identifier: Apache-2.0
"""Completes prompts given on the command line, in a file, or on stdin."""

from collections.abc import Sequence
import sys

from absl import flags

from specstream_jax import config_drafting
from specstream_jax.cli import decoding_flags
from specstream_jax.workflows import generate as workflow


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define()
  flags.DEFINE_multi_string('prompt', [], 'A prompt; may be repeated.')
  flags.DEFINE_string('prompt_file', None, 'One prompt a line; - is stdin.')
  flags.DEFINE_string(
    'drafter',
    None,
    "NAME or NAME:setting=value,…; 'none' is plain decoding, default 'streams' "
    'if there is an adapter.',
  )
  flags.DEFINE_multi_string(
    'stop',
    [],
    'Text that ends a completion as soon as it is there; it is printed as well.',
  )
  flags.DEFINE_bool('stream', False, 'Print tokens as they are accepted.')


def main(argv: Sequence[str]) -> int:
  """Prints the completion of every prompt."""
  del argv
  args = flags.FLAGS
  prompts = _prompts()
  model = decoding_flags.load_model()
  decode = decoding_flags.decode()
  tree = decoding_flags.tree(model.tree)
  options = workflow.Options(
    max_new_tokens=decode.max_new_tokens,
    drafter=args.drafter and config_drafting.parse(args.drafter, tree),
    tree=tree,
    schedule=decode.schedule,
    sampling=decoding_flags.sampling(),
    stop=tuple(args.stop),
    seed=args.seed,
  )
  if args.stream:
    for prompt in prompts:
      _print_stream(model, prompt, options)
    return 0
  for prompt, row in zip(prompts, workflow.generate(model, prompts, options)):
    print(prompt + row.text)
    print(
      f'[{len(row.tokens)} tokens, {row.calls} calls, '
      f'{row.tokens_per_call:.2f} tokens per call, {row.finish_reason}'
      + ('' if row.output == 'lossless' else f', {row.output} output')
      + ']'
    )
  return 0


def _prompts() -> list[str]:
  args = flags.FLAGS
  # A shell passes \n as two characters; a prompt means the line break.
  prompts = [text.replace('\\n', '\n') for text in args.prompt]
  if args.prompt_file == '-':
    prompts += sys.stdin.read().splitlines()
  elif args.prompt_file:
    text = decoding_flags.read_text(args.prompt_file, 'prompt_file')
    prompts += text.splitlines()
  if not prompts:
    raise ValueError('no prompt; pass --prompt=TEXT or --prompt_file=FILE')
  return prompts


def _print_stream(model, prompt, options):
  """Prints accepted runs as they come."""
  print(prompt, end='', flush=True)
  for _, text in workflow.stream_text(model, [prompt], options):
    print(text, end='', flush=True)
  print()
  rule = workflow.output(model, options)
  if rule != 'lossless':
    print(f'[{rule} output]')
