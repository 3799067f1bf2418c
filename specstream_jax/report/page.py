# SPDX-License-Identifier: Apache-2.0
"""A benchmark as one HTML page without outside resources.

Numbers first, then the table, plots, outputs coloured by the call that emitted
them, and how to repeat the measurement. Whatever comes from a model or a
command is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
import re
from typing import Any

from specstream_jax.bench import results
from specstream_jax.outputs import writing
from specstream_jax.report import bench_plots, plots, style, table

format_table = table.format_table

_SIDES = ('autoregressive', 'speculative')
_NUM_COLOURS = 5
_TOLERANCE = 0.1  # of measured against predicted speed-up
_TEXT_COLUMNS = ('task', 'drafter', 'output')
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write(
  path: str,
  doc: results.Document,
  *,
  metrics_path: str | None = None,
  forward_cost: Mapping[str, Sequence[tuple[int, float]]] | None = None,
  other_quality: Mapping[str, Mapping[str, float]] | None = None,
  notes: Mapping[str, str] | None = None,
) -> None:
  """Writes the page; arguments as in `render`.

  Raises:
    ValueError: the folder cannot be written.
  """
  page = render(
    doc,
    metrics_path=metrics_path,
    forward_cost=forward_cost,
    other_quality=other_quality,
    notes=notes,
  )
  writing.write_text(path, page)


def render(
  doc: results.Document,
  *,
  metrics_path: str | None = None,
  forward_cost: Mapping[str, Sequence[tuple[int, float]]] | None = None,
  other_quality: Mapping[str, Mapping[str, float]] | None = None,
  notes: Mapping[str, str] | None = None,
) -> str:
  """The page.

  Args:
    doc: what was measured, at least one run.
    metrics_path: metrics.jsonl of the adapter's training, to plot as well.
    forward_cost: see `plots.forward_cost`.
    other_quality: scores to stand beside those of the runs, by whose they are.
    notes: what a reader should know of how it came about, by name.

  Raises:
    ValueError: there are no runs, or the metrics cannot be read.
  """
  if not doc.runs:
    raise ValueError('the document has 0 runs; a report needs at least one')
  tasks = ', '.join(dict.fromkeys(run.task for run in doc.runs))
  title = f'Speculative Streaming on {tasks}'
  body = [
    '<header>',
    f'<h1>{_text(title)}</h1>',
    _header(doc),
    '</header>',
    '<main>',
    _section('How it was made', _facts(notes) if notes else ''),
    _section('Runs', _runs_table(doc.runs)),
    _section('Quality', _quality_table(doc.runs, other_quality or {})),
    _section('Plots', _plots(doc.runs, metrics_path, forward_cost)),
    _section('Sample outputs', _samples(doc.runs)),
    _section('Environment', _environment(doc)),
    _section('Command', f'<pre><code>{_text(doc.command)}</code></pre>'),
    '</main>',
  ]
  return _PAGE.format(
    title=_text(title), css=style.CSS, body='\n'.join(filter(None, body))
  )


def _header(doc: results.Document) -> str:
  """The numbers of the fastest run, of the lossless ones if there are any."""
  lossless = [run for run in doc.runs if run.output == 'lossless']
  run = max(lossless or doc.runs, key=lambda run: run.speedup)
  low, high = run.speedup_ci95
  ms = run.ms_per_call
  cards = (
    (
      'Speed-up',
      f'{run.speedup:.2f}×',
      f'95 % interval {low:.2f} – {high:.2f}',
    ),
    (
      'Call reduction (CR)',
      f'{run.call_reduction_ratio:.2f}',
      f'{run.autoregressive_calls:,} calls → {run.calls:,}',
    ),
    (
      'Step cost',
      f'{run.step_cost_ratio:.2f}',
      f'{ms["autoregressive"]:.2f} → {ms["speculative"]:.2f} ms per call',
    ),
    (
      'Tokens per call',
      f'{run.tokens_per_call_micro:.2f}',
      f'per prompt {run.tokens_per_call_macro:.2f}',
    ),
    (
      'Same output',
      table.percent(run.equal_fraction),
      f'of {run.num_prompts:,} prompts, ' + run.output,
    ),
  )
  items = ''.join(
    f'<div><dt>{name}</dt><dd class="number">{number}</dd><dd>{note}</dd></div>'
    for name, number, note in cards
  )
  which = ''
  if len(doc.runs) > 1:
    of = 'lossless ' if lossless else ''
    which = f'Fastest of {len(lossless or doc.runs)} {of}runs: '
  return (
    f'<p class="quiet">{which}{_text(run.marked_label)}, {_text(run.dtype)}, '
    f'batch {run.batch}, {_text(run.schedule)} schedule, '
    f'{_text(run.device)}</p><dl class="cards">{items}</dl>{_check(run)}'
  )


def _check(run: results.RunResult) -> str:
  """Whether the three ratios agree, and what lossy means."""
  text = (
    f'<p>CR / step cost = {run.predicted_speedup:.2f}; measured: '
    f'{run.speedup:.2f} ({100 * run.consistency:.0f} % of it).</p>'
  )
  if abs(run.consistency - 1) > _TOLERANCE:
    text += (
      '<p class="warn">Measured and predicted speed-up differ by more than '
      f'{100 * _TOLERANCE:.0f} %: rows of a batch that wait for the slowest '
      'one, work between calls, or a disturbed measurement.</p>'
    )
  if run.synthetic:
    text += (
      '<p class="warn">Synthetic acceptance: drawn, not earned. The times are '
      'real, the tokens are not.</p>'
    )
  elif run.lossy:
    text += (
      '<p class="warn">Lossy acceptance rule: the output may differ from the '
      'model’s own.</p>'
    )
  return text


def _runs_table(runs: Sequence[results.RunResult]) -> str:
  rows = [table.columns(run) for run in runs]
  note = (
    '<p class="quiet">Speed-up is wall clock against the same jitted loop '
    'without drafts, prompt pass excluded on both sides; CR is autoregressive '
    'over speculative model calls; step is the cost of a speculative call in '
    'autoregressive calls.</p>'
  )
  return (
    _table('Runs', list(rows[0]), [list(row.values()) for row in rows]) + note
  )


def _quality_table(
  runs: Sequence[results.RunResult], others: Mapping[str, Mapping[str, float]]
) -> str:
  """Scores of others and of both sides; nothing if no task was scored."""
  rows = []
  for run in runs:
    plain, fast = run.quality['autoregressive'], run.quality['speculative']
    for name in [*plain, *(name for name in fast if name not in plain)]:
      scores = [*others.values(), plain, fast]
      cells = [f'{s[name]:.2f}' if name in s else '–' for s in scores]
      rows.append([run.task, run.label, name, *cells])
  names = ['task', 'drafter', 'metric', *others, *_SIDES]
  return _table('Quality', names, rows) if rows else ''


def _table(name: str, heads: list[str], rows: list[list[str]]) -> str:
  """A table that scrolls sideways on narrow screens, by keyboard too."""
  texts = (*_TEXT_COLUMNS, 'metric')
  kinds = ['' if head in texts else ' class="number"' for head in heads]
  head = ''.join(
    f'<th scope="col"{kind}>{_text(cell)}</th>'
    for cell, kind in zip(heads, kinds, strict=True)
  )
  lines = []
  for row in rows:
    cells = zip(row[1:], kinds[1:], strict=True)
    rest = ''.join(f'<td{kind}>{_breakable(cell)}</td>' for cell, kind in cells)
    lines.append(f'<tr><th scope="row">{_breakable(row[0])}</th>{rest}</tr>')
  return (
    f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">'
    f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
    '</table></div>'
  )


def _breakable(cell: str) -> str:
  """Escaped text of a cell; settings and paths may go on in the next line."""
  return re.sub('([,:/])(?=[^ ])', r'\1<wbr>', _text(cell))


def _plots(runs, metrics_path, forward_cost) -> str:
  """Figures with captions."""
  labels = _labels(runs)
  by = lambda value: dict(zip(labels, map(value, runs), strict=True))
  figures = [
    _figure(
      plots.acceptance_by_depth(by(lambda run: run.per_depth_acceptance)),
      'Share of calls whose accepted run reaches each draft depth.',
    ),
    _figure(
      plots.acceptance_given_prefix(
        by(lambda run: run.accept_length_histogram)
      ),
      'Share of calls that accept a draft of each depth, of those that '
      'accepted all before it.',
    ),
    _figure(
      plots.tokens_per_call(by(lambda run: run.accept_length_histogram)),
      'Tokens emitted per model call: accepted drafts and one of the model’s '
      'own.',
    ),
    _figure(
      plots.time_per_call(
        by(lambda run: tuple(map(run.ms_per_call.get, _SIDES)))
      ),
      'Cost of one model call, with and without drafts.',
    ),
  ]
  if len(runs) > 1:
    figures += _beside(runs)
  # A single number needs no picture.
  if sum(len(run.by_category) for run in runs) > 1:
    picture = bench_plots.tokens_per_call_by_category(runs)
    caption = 'Tokens per model call in each category.'
    figures.append(_figure(picture, caption, 'wide'))
  if any(len(run.by_prompt_length) > 1 for run in runs):
    picture = bench_plots.tokens_per_call_by_prompt_length(runs)
    caption = 'Tokens per model call, prompts grouped by length.'
    figures.append(_figure(picture, caption, 'wide'))
  if forward_cost:
    caption = 'Time of one forward pass by the number of tokens in it.'
    figures.append(_figure(plots.forward_cost(forward_cost), caption))
  if metrics_path:
    picture = plots.training_curves(metrics_path)
    figures.append(_figure(picture, 'Training of the adapter.', 'wide'))
  return f'<div class="plots">{"".join(figures)}</div>'


def _beside(runs) -> list[str]:
  """Figures that set runs side by side."""
  figures = [
    _figure(
      bench_plots.speedup_and_calls(runs),
      'Wall clock and model calls against plain decoding, 95 % intervals.',
      'wide',
    ),
    _figure(
      bench_plots.cost_against_nodes(runs),
      'Cost of a call against the nodes it verifies.',
    ),
    _figure(
      bench_plots.predicted_against_measured(runs),
      'On the line, CR / step cost predicts the measured speed-up.',
    ),
  ]
  if len({run.tree['size'] for run in runs if run.tree.get('size')}) > 1:
    picture = bench_plots.calls_against_nodes(runs)
    caption = 'Calls saved against the nodes a call verifies, 95 % intervals.'
    figures.append(_figure(picture, caption))
  return figures


def _labels(runs: Sequence[results.RunResult]) -> list[str]:
  """A name per run, numbered where two would be the same."""
  names = bench_plots.names(runs)
  return [
    f'{name} #{1 + names[:i].count(name)}' if names.count(name) > 1 else name
    for i, name in enumerate(names)
  ]


def _figure(picture: str, caption: str, kind: str = 'plot') -> str:
  return (
    f'<figure class="{kind}">{picture}'
    f'<figcaption>{caption}</figcaption></figure>'
  )


def _samples(runs: Iterable[results.RunResult]) -> str:
  """Samples of every run; nothing if there are none."""
  articles = [
    f'<article><h3>{_text(run.task)}, {_text(run.label)}: prompt {i}</h3>'
    f'{_sample(sample)}</article>'
    for run in runs
    for i, sample in enumerate(run.samples, 1)
  ]
  legend = (
    '<p class="quiet">One colour per model call: the drafts it accepted, then, '
    'underlined, the token it drew itself. The first token, without colour, '
    'comes from the prompt pass. Hover over a run for its length.</p>'
  )
  return legend + ''.join(articles) if articles else ''


def _sample(sample: Mapping[str, Any]) -> str:
  lengths = sample['accept_lengths']
  references = ''.join(
    f'<dd>{_text(text)}</dd>' for text in sample['references']
  )
  accepted = ' '.join(map(str, lengths)) or 'none'
  parts = [
    f'<dt>Prompt</dt><dd>{_text(sample["prompt"])}</dd>',
    f'<dt>Output</dt><dd>{_coloured(sample["tokens"], lengths)}</dd>',
    f'<dt>Reference</dt>{references}' if references else '',
    f'<dt>{len(sample["tokens"])} tokens in {len(lengths)} calls; accepted '
    f'drafts per call</dt><dd>{accepted}</dd>',
  ]
  return f'<dl>{"".join(parts)}</dl>'


def _coloured(tokens: Sequence[str], lengths: Sequence[int]) -> str:
  """The prompt pass's token, then each call's run in its colour."""
  parts, start = [_text(''.join(tokens[:1]))], 1
  for call, length in enumerate(lengths, 1):
    run = tokens[start : start + length + 1]
    start += length + 1
    if run:
      drafts, own = _text(''.join(run[:-1])), _text(run[-1])
      hint = f'call {call}: {length} drafts accepted, {len(run)} tokens'
      parts.append(
        f'<span class="run run{call % _NUM_COLOURS}" title="{hint}">{drafts}'
        f'<u>{own}</u></span>'
      )
  return ''.join(parts) + _text(''.join(tokens[start:]))


def _environment(doc: results.Document) -> str:
  run = doc.runs[0]
  facts = {
    **doc.source,
    'device': run.device,
    **{f'{name} version': text for name, text in run.versions.items()},
    **doc.environment,
    'repeats': run.repeats,
    'prompt pass': f'{run.prefill_ms:.1f} ms per batch',
    'compilation': ', '.join(
      f'{name} {seconds:.1f} s' for name, seconds in run.compile_seconds.items()
    ),
  }
  return _facts(facts)


def _facts(facts: Mapping[str, Any]) -> str:
  """Names and what they stand for."""
  items = ''.join(
    f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>'
    for name, value in facts.items()
  )
  return f'<dl class="facts">{items}</dl>'


def _section(name: str, content: str) -> str:
  return f'<section><h2>{name}</h2>\n{content}</section>' if content else ''


def _text(value: Any) -> str:
  """Escaped for elements and attributes."""
  return html.escape(str(value))
