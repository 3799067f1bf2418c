# SPDX-License-Identifier: Apache-2.0
"""Writes benchmarks as the paper's table: task, method, speed-up, CR, metric.

  specstream results --rivals=results/e2e,results/sql --base=results/base \\
    --lora=results/lora --output=docs/RESULTS.md

Only the block between the markers in the file is replaced; what is written
around it by hand stays. `specstream bench --drafters=none` gives the metric of
a model without streams.
"""

from collections.abc import Sequence
import os

from absl import flags

from specstream_jax.bench import results
from specstream_jax.checkpoints import files
from specstream_jax.outputs import writing
from specstream_jax.report import results_table


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_list('rivals', [], 'Folders or results.json files of `bench`.')
  flags.DEFINE_list('base', [], 'The same of the model before fine-tuning.')
  flags.DEFINE_list('lora', [], 'The same of LoRA without streams.')
  flags.DEFINE_list(
    'streams', [], 'The same of LoRA with streams, on the prompts of --lora.'
  )
  flags.DEFINE_string('output', '', 'Markdown file; empty prints the tables.')


def main(argv: Sequence[str]) -> int:
  """Writes the paper's table from benchmarks."""
  del argv
  args = flags.FLAGS
  if not args.rivals:
    raise ValueError('--rivals is empty; give the folders of benchmarks')
  read = lambda paths: [results.read(_file(path)) for path in paths]
  sources = (args.rivals, args.base, args.lora, args.streams)
  text = results_table.markdown(*map(read, sources))
  if not args.output:
    print(text, end='')
    return 0
  old = ''
  if os.path.exists(args.output):
    old = files.read_text(args.output)
  writing.write_text(args.output, results_table.insert(old, text))
  print(f'written: {args.output}')
  return 0


def _file(path: str) -> str:
  return os.path.join(path, 'results.json') if os.path.isdir(path) else path
