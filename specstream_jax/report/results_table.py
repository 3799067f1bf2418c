# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as the paper prints them: task, method, speed-up, CR, metric.

Paper (arXiv 2402.11131v1), table 1, with what it leaves out: intervals, the
cost of a call, the metric of the model before any fine-tuning, and of plain
LoRA fine-tuning without streams.
"""

from collections.abc import Sequence
import re

from specstream_jax.bench import results

# Speed-up, CR and metric in v1, table 1, OPT-1.3b / Phi-1.3b / OpenLlama-7b.
_PAPER = {
  'e2e_nlg': {
    'Medusa': ('2.13 / 2.78 / 2.70', '2.95 / 3.35 / 3.22'),
    'streams': ('2.45 / 2.84 / 2.96', '3.72 / 3.69 / 3.55'),
  },
  'dialogsum': {
    'Medusa': ('1.56 / 1.89 / 1.76', '1.91 / 2.28 / 2.25'),
    'streams': ('1.94 / 1.83 / 1.87', '2.62 / 2.34 / 2.51'),
  },
  'sql_create_context': {
    'Medusa': ('2.07 / 2.58 / 3.20', '2.79 / 3.25 / 4.10'),
    'streams': ('2.39 / 2.62 / 3.14', '3.57 / 3.53 / 4.13'),
  },
}
_METRICS = (('sql_exact_match',), ('rouge1', 'rougeLsum'), ('exact_match',))
_HEAD = (
  'method',
  'speed-up (95 %)',
  'CR (95 %)',
  'step cost',
  'equal',
  'metric',
  'extra parameters',
)
_BEGIN, _END = '<!-- results: begin -->', '<!-- results: end -->'
_LEGEND = """\
Speed-up: wall clock against our own jitted loop without drafts, on the model of the
row's table; CR: calls without / with drafts; step cost: time of a call with /
without, medians, so speed-up is about CR / step cost. Intervals: bootstrap over
prompts. Equal: prompts with the tokens of plain decoding. Extra parameters: beside the
model and a LoRA folded into it; lossless streams bring a LoRA of their own, which counts.
Paper rows: OPT-1.3b / Phi-1.3b / OpenLlama-7b on one A100-80G, against a Hugging Face
loop."""


def markdown(
  rivals: Sequence[results.Document],
  base: Sequence[results.Document] = (),
  lora: Sequence[results.Document] = (),
  streams: Sequence[results.Document] = (),
) -> str:
  """One table per task, temperature and batch.

  Args:
    rivals: benchmarks of the model with streams.
    base: of the model before fine-tuning; gives its metric.
    lora: of a LoRA fine-tuning without streams; gives its metric.
    streams: of the model with streams, on as many prompts as `base` and `lora`.

  Raises:
    ValueError: there are no runs.
  """
  groups: dict[tuple, list[tuple[results.RunResult, results.Document]]] = {}
  for document in rivals:
    for run in document.runs:
      key = (run.task, run.temperature, run.batch, run.num_prompts)
      groups.setdefault(key, []).append((run, document))
  if not groups:
    raise ValueError(
      'there is no run among the results; give folders that `specstream bench` '
      'wrote'
    )
  columns = {
    'base model': base,
    'LoRA without streams': lora,
    'LoRA with streams': streams,
  }
  parts = [_group(key, pairs, columns) for key, pairs in groups.items()]
  return '\n\n'.join([*parts, _LEGEND]) + '\n'


def insert(text: str, block: str) -> str:
  """`text` with the block between its markers; they are added at the end.

  What stands around the markers, written by hand, stays.
  """
  marked = f'{_BEGIN}\n{block}{_END}'
  pattern = f'{re.escape(_BEGIN)}.*?{re.escape(_END)}'
  if re.search(pattern, text, re.DOTALL):
    return re.sub(pattern, lambda _: marked, text, count=1, flags=re.DOTALL)
  return f'{text.rstrip()}\n\n{marked}\n'.lstrip()


def _group(key, pairs, columns):
  task, temperature, batch, num_prompts = key
  runs = [run for run, _ in pairs]
  documents = {id(document): document for _, document in pairs}
  facts = '\n'.join(map(_facts, documents.values()))
  names = _metric_names(runs[0])
  rows = [
    [name, '', '', '', '', found, '']
    for name, sources in columns.items()
    if (found := _quality(sources, task, names))
  ]
  rows += _rows(runs, names)
  head: list[str] = list(_HEAD)
  if names:
    head[5] = ' / '.join(names)
  table = [head, ['---'] * len(head), *rows, *_paper_rows(task)]
  lines = '\n'.join('| ' + ' | '.join(row) + ' |' for row in table)
  title = f'{task}, temperature {temperature:g}, batch {batch}'
  return f'### {title}, {num_prompts} prompts\n\n{lines}\n\n{facts}'


def _facts(document):
  run = document.runs[0]
  environment = document.environment
  day = str(environment.get('created', 'some day'))[:10]
  return (
    f'Measured {day}, {run.device}, '
    f'{environment.get("processors", "some")} cores, {run.dtype}, jax '
    f'{run.versions["jax"]}:\n\n    {document.command}\n'
  )


def _rows(runs, names):
  """Plain decoding with the streams' LoRA, then every rival."""
  plain = _scores(runs[0].quality.get('autoregressive', {}), names)
  rows = [
    ['LoRA with streams, no drafts', '1.00', '1.00', '1.00', '', plain, '']
  ]
  return rows + [_row(run, names) for run in runs if run.drafter != 'none']


def _row(run, names):
  interval = lambda pair: '({:.2f}–{:.2f})'.format(*pair)
  return [
    run.marked_label,
    f'{run.speedup:.2f} {interval(run.speedup_ci95)}',
    f'{run.call_reduction_ratio:.2f} {interval(run.call_reduction_ci95)}',
    f'{run.step_cost_ratio:.2f}',
    f'{100 * run.equal_fraction:.1f} %',
    _scores(run.quality.get('speculative', {}), names),
    f'{run.extra_parameters:,}',
  ]


def _paper_rows(task):
  found = _PAPER.get(task.partition('/')[0], {})
  return [
    [f'*paper: {name}*', speedup, calls, '', '', '', '']
    for name, (speedup, calls) in found.items()
  ]


def _metric_names(run):
  scores = run.quality.get('autoregressive', {})
  for names in _METRICS:
    if all(name in scores for name in names):
      return names
  return ()


def _quality(documents, task, names) -> str:
  """Metric of plain decoding in the first document that has the task."""
  for document in documents:
    for run in document.runs:
      if run.task == task and names:
        prompts = f' ({run.num_prompts} prompts)'
        return _scores(run.quality.get('autoregressive', {}), names) + prompts
  return ''


def _scores(quality, names):
  return ' / '.join(
    f'{quality[name]:.2f}' if name in quality else '–' for name in names
  )
