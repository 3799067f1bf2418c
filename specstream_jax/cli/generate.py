# SPDX-License-Identifier: Apache-2.0
"""Completes prompts given on the command line, in a file, or on stdin.

  specstream generate --prompt='What is gravity?' --adapter=
  specstream generate --input=prompts.jsonl --output=answers.jsonl

Where the model has a chat template, and its adapter, if any, was trained on
chats, a prompt is what a user says (--nochat continues it as it is). Texts are
taken as they are typed; --escapes reads \\n and the like in them. A stopped run
with --output goes on with the same command. Decoding is compiled for the next
of 64, 128, 256, … new tokens: other limits up to it share what was compiled.
"""

from collections.abc import Sequence
import sys
from typing import Any

from absl import flags

from specstream_jax.cli import decoding_flags, text_flags, weights_flags
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import prompt_rows
from specstream_jax.workflows import generate as workflow, generate_file

RESULTS = 'output'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define(generation_config='auto')
  weights_flags.define()
  text_flags.define()
  flags.DEFINE_multi_string(
    'prompt', [], 'A prompt, as it is typed; may be repeated.'
  )
  flags.DEFINE_string(
    'prompt_file', None, 'One prompt a line, blank ones left out; - is stdin.'
  )
  flags.DEFINE_string(
    'input',
    None,
    'JSONL of {"prompt": …} or {"messages": [{"role": …, "content": …}, …]}; '
    'other fields are kept.',
  )
  flags.DEFINE_string(
    'output',
    None,
    'JSONL to write instead of printing: the rows, with "completion", '
    '"finish_reason" and "num_tokens".',
  )
  flags.DEFINE_bool('overwrite', False, 'Replace --output if it is there.')
  flags.DEFINE_integer('batch_size', 8, 'Prompts per call.', lower_bound=1)
  flags.DEFINE_bool(
    'chat',
    None,
    "A prompt goes through the model's chat template as what a user says; "
    'default: where there is one, and the adapter, if any, was trained on chats.',
  )
  flags.DEFINE_string(
    'drafter',
    None,
    "NAME or NAME:setting=value,…; 'none' is plain decoding; what `specstream "
    "tune` found here if not given, else 'streams' if there is an adapter. "
    '`specstream bench --help` lists all.',
  )
  flags.DEFINE_multi_string(
    'stop',
    [],
    'Text that ends a completion as soon as it is there; it is printed as well, '
    'unless it is that of a special token, such as <|im_end|>.',
  )
  flags.DEFINE_bool('stream', False, 'Print tokens as they are accepted.')


def main(argv: Sequence[str]) -> int:
  """Prints, or writes, the completion of every prompt."""
  del argv
  args = flags.FLAGS
  if args.stream and args.output:
    raise ValueError('--stream prints, --output writes; leave one out')
  rows, stop = _rows(args), _texts(args.stop, 'stop')
  model = decoding_flags.load_model()
  decode = decoding_flags.decode()
  tree = decoding_flags.tree(model.tree)
  options = workflow.Options(
    max_new_tokens=decode.max_new_tokens,
    drafter=args.drafter and config_drafting.parse(args.drafter, tree),
    tree=tree,
    schedule=decoding_flags.schedule(),
    sampling=decoding_flags.sampling(model),
    stop=tuple(stop),
    seed=args.seed,
    chat=_is_chat(args, model),
  )
  if args.output:
    return _write(args, model, rows, options)
  for number, row in enumerate(rows if args.stream else ()):
    _print_stream(model, row, number, options)
  if not args.stream:
    _print(model, rows, options, args.batch_size)
  return 0


def _is_chat(args, model) -> bool:
  """--chat, or what fits the model, which is said on stderr."""
  if args.chat is None and model.is_chat:
    print(
      "note: prompts go through the model's chat template; --nochat continues "
      'them as they are, --chat leaves this note out',
      file=sys.stderr,
    )
  return model.is_chat if args.chat is None else args.chat


def _texts(values: Sequence[str], flag: str) -> list[str]:
  """The texts of a flag that may be repeated."""
  text_flags.note_of_escapes(values, flag)
  return [text_flags.text(value, f'--{flag}') for value in values]


def _rows(args) -> list[dict[str, Any]]:
  """Every prompt, as a row of --input."""
  rows = [{'prompt': text} for text in _texts(args.prompt, 'prompt')]
  if args.prompt_file:
    for number, line in text_flags.lines(args.prompt_file, 'prompt_file'):
      place = f'--prompt_file={args.prompt_file}:{number}'
      rows.append({'prompt': text_flags.text(line, place)})
  if args.input:
    rows += prompt_rows.read(args.input)
  if not rows:
    raise ValueError(
      'no prompt; pass --prompt=TEXT, --prompt_file=FILE or --input=FILE.jsonl'
    )
  return rows


def _write(args, model, rows, options) -> int:
  num_done = generate_file.write(
    model,
    rows,
    args.output,
    options,
    batch_size=args.batch_size,
    overwrite=args.overwrite,
  )
  print(f'{len(rows)} rows in {args.output}, {num_done} completed now')
  return 0


def _shown(row, options) -> str:
  """What is printed before a completion."""
  if 'messages' in row:
    return f'{row["messages"][-1].get("content")}\n'
  text = str(row.get('prompt', row.get('inputs')))
  return text + '\n' if options.chat else text


def _print(model, rows, options, batch_size):
  """Prints prompts and completions in order."""
  prompts = [generate_file.prompt_of(row) for row in rows]
  batches = generate_file.in_batches(
    model, prompts, options, batch_size, range(len(rows))
  )
  for numbers, made in batches:
    for number, row in zip(numbers, made, strict=True):
      print(f'{_shown(rows[number], options)}{row.text}')
      print(
        f'[{len(row.tokens)} tokens, {row.calls} calls, '
        f'{row.tokens_per_call:.2f} tokens per call, {row.finish_reason}'
        + ('' if row.output == 'lossless' else f', {row.output} output')
        + ']'
      )


def _print_stream(model, row, number, options):
  """Prints accepted runs as they come."""
  print(_shown(row, options), end='', flush=True)
  prompt = generate_file.prompt_of(row)
  for _, text in workflow.stream_text(
    model, [prompt], options, row_ids=[number]
  ):
    print(text, end='', flush=True)
  print()
  rule = workflow.output(model, options)
  if rule != 'lossless':
    print(f'[{rule} output]')
