# SPDX-License-Identifier: Apache-2.0
"""A benchmark as Markdown: rivals under each task, and what the words mean."""

from specstream_jax.bench import results

_HEAD = (
  'drafter',
  'speed-up (95 %)',
  'CR (95 %)',
  'step cost',
  'with prefill',
  'tokens/call micro / macro',
  'tokens/s',
  'equal',
  'extra parameters',
  'output',
)
_LEGEND = """\
Speed-up is wall clock against our own jitted loop without drafts (`none`), prompt
pass excluded; "with prefill" includes it. CR = calls without / with drafts; step
cost = time of a call with / without, medians; speed-up is about CR / step cost.
Intervals: bootstrap over prompts, each turn of a question being one; for the
speed-up over batches, as the rows of a batch share their time. `hf*` rows are
transformers `generate`, whose speed-up is also against our loop; with drafts, its
first pass verifies some already and is not counted, which flatters their CR by less
than one call a prompt. Equal: prompts with the tokens of plain decoding."""


def markdown(doc: results.Document) -> str:
  """Tables per task, temperature and batch."""
  groups: dict[tuple, list[results.RunResult]] = {}
  for run in doc.runs:
    key = (run.task, run.temperature, run.batch, run.num_prompts)
    groups.setdefault(key, []).append(run)
  parts = [f'    {doc.command}', _facts(doc)]
  for (task, temperature, batch, num_prompts), runs in groups.items():
    parts.append(
      f'### {task}, temperature {temperature:g}, batch {batch}, '
      f'{num_prompts} prompts'
    )
    parts.append(_table(runs))
    parts.append(_notes(runs))
  return '\n\n'.join(filter(None, [*parts, _LEGEND])) + '\n'


def _facts(doc):
  run = doc.runs[0]
  versions = ', '.join(f'{k} {v}' for k, v in run.versions.items())
  source = ', '.join(f'{k} {v}' for k, v in doc.source.items())
  return (
    f'{source}. {run.device}, {doc.environment["processors"]} cores, '
    f'{run.dtype}, {versions}, {doc.environment["created"]}.'
  )


def _table(runs):
  plain = runs[0].tokens_per_second['autoregressive']
  lines = [_line(_HEAD), _line(['---'] * len(_HEAD))]
  base = ['`none`', '1.00', '1.00', '1.00', '1.00', '1.00 / 1.00']
  lines.append(_line([*base, f'{plain:.1f}', '100.0%', '0', 'lossless']))
  lines += [_line(_cells(run)) for run in runs if run.drafter != 'none']
  return '\n'.join(lines)


def _cells(run):
  interval = lambda low, high: f'({low:.2f}–{high:.2f})'
  return [
    f'`{run.label}`',
    f'{run.speedup:.2f} {interval(*run.speedup_ci95)}',
    f'{run.call_reduction_ratio:.2f} {interval(*run.call_reduction_ci95)}',
    f'{run.step_cost_ratio:.2f}',
    f'{run.speedup_with_prefill:.2f}',
    f'{run.tokens_per_call_micro:.2f} / {run.tokens_per_call_macro:.2f}',
    f'{run.tokens_per_second["speculative"]:.1f}',
    f'{100 * run.equal_fraction:.1f}%',
    f'{run.extra_parameters:,}',
    run.output,
  ]


def _notes(runs):
  """Compile time, prompt pass, quality and truncation, one line each."""
  plain = runs[0]
  lines = [
    f'- `none`: compiled in {plain.compile_seconds["autoregressive"]:.0f} s, '
    f'prompt pass {plain.autoregressive_prefill_ms:.0f} ms'
  ]
  for run in runs:
    if run.drafter == 'none':
      continue
    text = (
      f'- `{run.label}`: compiled in {run.compile_seconds["speculative"]:.0f} s, '
      f'prompt pass {run.prefill_ms:.0f} ms'
    )
    scores = run.quality['speculative']
    text += ''.join(f', {name} {score:.2f}' for name, score in scores.items())
    if run.num_truncated:
      text += f', {run.num_truncated} prompts truncated'
    lines.append(text)
  lines += _breakdown(
    runs, 'category', [run.by_category for run in runs], key=str
  )
  lines += _breakdown(
    runs,
    'prompt length, tokens up to',
    [run.by_prompt_length for run in runs],
    key=int,
    counts=runs[0].prompts_by_length,
  )
  return '\n'.join(lines)


def _breakdown(runs, title, values, key, counts=None):
  """Tokens per call in each group of prompts, a row per drafter.

  Args:
    runs: the rows.
    title: of the groups.
    values: of each run, group -> tokens per call.
    key: orders the groups.
    counts: prompts of each group, if known.
  """
  groups = sorted({group for found in values for group in found}, key=key)
  if len(groups) < 2:
    return []
  lines = ['', f'Tokens per call by {title}:', '']
  lines += [_line(['drafter', *groups]), _line(['---'] * (1 + len(groups)))]
  if counts:
    numbers = [str(counts.get(group, 0)) for group in groups]
    lines.append(_line(['*prompts*', *numbers]))
  for run, found in zip(runs, values, strict=True):
    if found:
      cells = [f'{found[g]:.2f}' if g in found else '–' for g in groups]
      lines.append(_line([f'`{run.label}`', *cells]))
  return lines


def _line(cells):
  return '| ' + ' | '.join(cells) + ' |'
