# SPDX-License-Identifier: Apache-2.0
"""Makes a model faster on your own rows: one command, one report.

  specstream adapt ROWS.jsonl --output_dir=my_adapter

ROWS is a file (.jsonl, .json, .csv, .tsv, .parquet), a folder of such files or
of a saved data set, or the hub id of one. Columns are found by name: prompt and
completion, question and answer, instruction, input and output, or messages (a
chat); --prompt_column and --answer_column name others.

--task=NAME takes the rows of a task instead, seqio:NAME one that --task_module
registers, and measures with the task's own metrics.

A part of the rows is held out; the rest is learned, the draft tree chosen, and
the result measured on what was held out. A stopped run goes on with the same
command. --dry_run says what would be done.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax.cli import decoding_flags, task_flags
from specstream_jax.data import row_shapes
from specstream_jax.report import page
from specstream_jax.workflows import adapt as workflow, adapt_run

TAKES_NAMES = True
RESULTS = 'output_dir'
TRAINS = True


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'output_dir',
    None,
    'Folder of the run; gets adapter/, report.html and all stages.',
  )
  flags.DEFINE_enum(
    'mode',
    'auto',
    list(adapt_run.MODES),
    "fine_tuned learns the rows' answers and to draft them; lossless leaves the "
    "model's answers as they are and learns to draft those; auto is fine_tuned "
    'where all rows have answers.',
  )
  flags.DEFINE_string(
    'on_adapter',
    '',
    'Fine-tuned adapter or PEFT LoRA whose answers stay as they are.',
  )
  flags.DEFINE_float(
    'time_limit', 15.0, 'Minutes for all of it, on this machine; a guide.'
  )
  flags.DEFINE_string(
    'prompt_column', '', 'Column of the prompts, or of the messages.'
  )
  flags.DEFINE_string('answer_column', '', 'Column of the answers.')
  flags.DEFINE_enum(
    'chat',
    'auto',
    list(row_shapes.CHAT),
    "Whether prompts go through the model's chat template, if it has one: auto "
    'does so with questions, instructions and named columns, and takes prompt '
    'and completion as they are.',
  )
  flags.DEFINE_string(
    'split', 'train', 'Which split to read, of a data set that has several.'
  )
  flags.DEFINE_bool(
    'skip_bad_rows', False, 'Leave bad rows out, name and count them, go on.'
  )
  decoding_flags.define_dtype()
  flags.DEFINE_integer(
    'max_new_tokens',
    0,
    'Most tokens of an answer; 0 takes as many as the rows need.',
    lower_bound=0,
  )
  task_flags.define(default='', about='Task whose rows are taken')
  flags.DEFINE_string('data_dir', '', "Folder of the task's files.")
  flags.DEFINE_bool(
    'compare_lora',
    False,
    'Train a LoRA without drafts as well, and show its quality in the report. '
    'May be asked for later, too, of a run that is done.',
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Read the rows, say what would be done, and exit.'
  )


def main(argv: Sequence[str]) -> int:
  """Adapts, and says what to type next."""
  args = flags.FLAGS
  task = task_flags.name()
  rows = '' if task else (argv[1:] or [''])[0]
  if len(argv) - 1 + bool(task) != 1:
    raise ValueError(
      f'got {len(argv) - 1 + bool(task)} sources of rows; give one, such as: '
      'specstream adapt rows.jsonl --output_dir=my_adapter, or --task=NAME'
    )
  options = workflow.Options(
    mode=args.mode,
    on_adapter=args.on_adapter,
    time_limit=args.time_limit,
    prompt_column=args.prompt_column,
    answer_column=args.answer_column,
    chat=args.chat,
    split=args.split,
    skip_bad_rows=args.skip_bad_rows,
    dtype=args.dtype,
    max_new_tokens=args.max_new_tokens,
    task=task,
    data_dir=args.data_dir,
    compare_lora=args.compare_lora,
  )
  if args.dry_run:
    print(workflow.describe(rows, args.model, options))
    return 0
  if not args.output_dir:
    raise ValueError(
      '--output_dir is missing; give a new folder, such as '
      '--output_dir=my_adapter'
    )
  try:
    done = workflow.adapt(
      rows,
      args.model,
      args.output_dir,
      options,
      command=shlex.join(sys.argv),
      say=lambda line: print(line, flush=True),
    )
  except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
    print('what is done stays; run the same command to go on')
    raise
  if done.run is None:
    print('stopped; run the same command to go on')
    return 128 + done.signal
  print(page.format_table([done.run]))
  if done.run.speedup < 1:
    print(
      'drafts save calls here, but a call costs more than they save: they pay '
      'on another device, or after longer training (--time_limit)'
    )
  print(f'adapter: {done.adapter}\nreport: {done.report}\nnext:')
  print(f'  {workflow.next_command(args.model, done)}')
  return 0
