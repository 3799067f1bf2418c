# SPDX-License-Identifier: Apache-2.0
"""Benchmark results on one terminal screen.

Speed-up, call reduction and step cost always stand together: neither of the
last two says alone what a user gains.
"""

from collections.abc import Sequence

from specstream_jax.bench import results

_FOOTNOTE = """\
speedup = wall clock against the autoregressive loop, prompt pass excluded
CR = autoregressive / speculative model calls; step = cost of a call, relative
CR/step is the speed-up these two predict; tok/call = accepted drafts + 1, mean over
calls; macro = the same, mean over prompts of each prompt's mean
equal = prompts with the same tokens on both sides"""


def columns(run: results.RunResult) -> dict[str, str]:
  """Heading -> cell, for the terminal and the report."""
  low, high = run.speedup_ci95
  return {
    'task': run.task,
    'drafter': run.label,
    'T': f'{run.temperature:g}',
    'batch': str(run.batch),
    'speedup': f'{run.speedup:.2f}x',
    '95% CI': f'{low:.2f}-{high:.2f}',
    'CR': f'{run.call_reduction_ratio:.2f}',
    'step': f'{run.step_cost_ratio:.2f}',
    'CR/step': f'{run.predicted_speedup:.2f}',
    'tok/call': f'{run.tokens_per_call_micro:.2f}',
    'macro': f'{run.tokens_per_call_macro:.2f}',
    'equal': percent(run.equal_fraction),
    'output': run.output,
  }


def percent(share: float) -> str:
  """A share as percent; short of all it never reads 100."""
  text = f'{100 * share:.1f}%'
  return '>99.9%' if text == '100.0%' and share < 1 else text


def format_table(runs: Sequence[results.RunResult]) -> str:
  """Runs as an aligned text table with quality and a legend."""
  if not runs:
    return 'no runs'
  rows = [columns(run) for run in runs]
  cells = [list(rows[0]), *(list(row.values()) for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ['  '.join(map(_pad, row, widths)).rstrip() for row in cells]
  rule = '-' * max(map(len, lines))
  body = [lines[0], rule, *lines[1:], rule]
  return '\n'.join([*body, *map(_details, runs), _FOOTNOTE])


def _pad(cell: str, width: int) -> str:
  """Numbers to the right, words to the left."""
  is_number = cell[:1].isdigit() or cell[:1] == '>'
  return cell.rjust(width) if is_number else cell.ljust(width)


def _details(run: results.RunResult) -> str:
  rate, cost = run.tokens_per_second, run.ms_per_call
  text = (
    f'{run.task}, {run.label}: {rate["autoregressive"]:.1f} -> '
    f'{rate["speculative"]:.1f} tokens/s, {cost["autoregressive"]:.2f} -> '
    f'{cost["speculative"]:.2f} ms/call, {run.dtype}, {run.device}'
  )
  compiled = run.compile_seconds
  text += (
    f'\n  compiled in {compiled["autoregressive"]:.1f} and '
    f'{compiled["speculative"]:.1f} s, prompt pass {run.prefill_ms:.1f} ms'
  )
  plain, fast = run.quality['autoregressive'], run.quality['speculative']
  scores = [
    f'{name} {plain[name]:.2f} -> {fast[name]:.2f}'
    for name in plain
    if name in fast
  ]
  return text + ''.join(
    f'\n  {score}' for score in [', '.join(scores)] if score
  )
