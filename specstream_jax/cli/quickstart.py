# SPDX-License-Identifier: Apache-2.0
"""Fetches SmolLM2-135M and decodes E2E prompts with and without streams.

Prints the same texts' cost both ways and writes a report with plots.
"""

from collections.abc import Sequence
import shlex
import sys

from absl import flags

from specstream_jax import runtime
from specstream_jax.checkpoints import fetch
from specstream_jax.config import drafting as config_drafting
from specstream_jax.report import page as page_lib
from specstream_jax.workflows import evaluate as workflow

MODEL = 'smollm2-135m-instruct'
ADAPTER = 'e2e_nlg'
# The adapter's tree; drafts come from the task's own tokens, see docs/bench.
DRAFTER = config_drafting.DrafterConfig(vocabulary='adapter')

RESULTS = 'results_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'results_dir', 'results', 'Folder for results.json and report.html.'
  )
  flags.DEFINE_integer(
    'num_prompts', 24, 'Test prompts that ship; 0 takes all.', lower_bound=0
  )
  flags.DEFINE_integer(
    'repeats', 2, 'How often everything is timed.', lower_bound=1
  )


def main(argv: Sequence[str]) -> int:
  """Decodes with and without streams and writes the report."""
  del argv
  args = flags.FLAGS
  print(f'1/3 fetching {MODEL}', flush=True)
  path = fetch.fetch(MODEL)
  print(f'2/3 loading {path.name} and the adapter {ADAPTER}', flush=True)
  model = runtime.load(str(path), ADAPTER)
  print('3/3 decoding both ways', flush=True)
  options = workflow.Options(
    task='e2e_sample',
    num_prompts=args.num_prompts,
    repeats=args.repeats,
    drafter=DRAFTER,
  )
  runs = list(filter(None, [workflow.evaluate(model, options)]))
  page = workflow.write(
    args.results_dir, runs, command=shlex.join(sys.argv), source=model.source
  )
  print(page_lib.format_table(runs))
  print(f'report: {page}')
  return 0
