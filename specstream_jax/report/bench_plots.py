# SPDX-License-Identifier: Apache-2.0
"""Plots that set rivals side by side, as SVG text; see `plots`."""

from collections.abc import Sequence
import re

import numpy as np

from specstream_jax.bench import results
from specstream_jax.report import svg

Runs = Sequence[results.RunResult]


def speedup_and_calls(runs: Runs) -> svg.Svg:
  """Speed-up and CR of every run with 95 % intervals."""

  def paint(axes):
    """Bars with intervals, speed-up left, CR right."""
    rows = np.arange(len(runs))
    panels = (
      ('speed-up (wall clock)', 'speedup', 'speedup_ci95'),
      ('call reduction (CR)', 'call_reduction_ratio', 'call_reduction_ci95'),
    )
    for i, (ax, (label, value, interval)) in enumerate(
      zip(axes[0], panels, strict=True)
    ):
      values = np.array([getattr(run, value) for run in runs])
      bounds = np.array([getattr(run, interval) for run in runs]).T
      errors = np.clip(np.abs(bounds - values), 0, None)
      ax.barh(rows, values, 0.6, xerr=errors, color=svg.COLOURS[i])
      ax.axvline(1, color=svg.MUTED, linewidth=1)
      ax.set(xlabel=label, yticks=rows)
      ax.set_yticklabels([names(runs)[r] for r in rows] if not i else [])
      ax.grid(visible=False, axis='y')
      ax.invert_yaxis()

  return svg.draw(
    paint,
    title='Speed-up and call reduction',
    size=(7 + _label_width(runs), 1.4 + 0.35 * len(runs)),
    grid=(1, 2),
  )


def tokens_per_call_by_category(runs: Runs) -> svg.Svg:
  """Tokens per call of every run in every category, as a heat map."""
  categories = sorted({name for run in runs for name in run.by_category})

  def paint(axes):
    ax = axes[0, 0]
    grid = np.array(
      [[run.by_category.get(c, np.nan) for c in categories] for run in runs]
    )
    ax.imshow(grid, cmap='Blues', vmin=1, aspect='auto', alpha=0.8)
    ax.set(xticks=range(len(categories)), yticks=range(len(runs)))
    ax.set_xticklabels(categories, rotation=40, ha='right')
    ax.set_yticklabels(names(runs))
    ax.grid(visible=False)
    for y, x in np.argwhere(np.isfinite(grid)):
      ax.text(x, y, f'{grid[y, x]:.2f}', ha='center', va='center', fontsize=8)

  return svg.draw(
    paint,
    title='Tokens per call by category',
    size=(
      2 + 0.6 * len(categories) + _label_width(runs),
      2.4 + 0.35 * len(runs),
    ),
  )


def tokens_per_call_by_prompt_length(runs: Runs) -> svg.Svg:
  """Tokens per call of every run against the prompt's length in tokens."""

  def paint(axes):
    """One line per run, a point in the middle of each group of lengths."""
    ax = axes[0, 0]
    for i, run in enumerate(runs):
      pairs = sorted((int(n), v) for n, v in run.by_prompt_length.items())
      lengths, values = zip(*pairs, strict=True)
      _point(ax, lengths, values, i, names(runs)[i], linestyle='-')
    ax.set(
      xlabel='prompt tokens, at most',
      ylabel='tokens per call',
      ylim=(1, None),
    )
    _legend_beside(ax, len(runs))

  runs = [run for run in runs if run.by_prompt_length]
  return svg.draw(
    paint,
    title='Tokens per call against prompt length',
    size=(5 + _label_width(runs), 3.4),
  )


def cost_against_nodes(runs: Runs) -> svg.Svg:
  """Step cost against the nodes a call verifies."""
  own = [run for run in runs if run.tree.get('size')]

  def paint(axes):
    ax = axes[0, 0]
    for i, run in enumerate(own):
      _point(ax, run.tree['size'], run.step_cost_ratio, i, names(own)[i])
    ax.set(
      xlabel='nodes verified per call and row',
      ylabel='step cost (plain calls)',
      ylim=(0, None),
    )
    _legend_beside(ax, len(own))

  return svg.draw(
    paint, title='Step cost against nodes', size=(4.5 + _label_width(own), 3.4)
  )


def calls_against_nodes(runs: Runs) -> svg.Svg:
  """CR with its interval against the nodes a call verifies, a line per task."""
  lines: dict[str, dict[int, results.RunResult]] = {}
  for run in runs:
    if size := run.tree.get('size'):
      lines.setdefault(run.task, {})[size] = run
  return _calls_against(
    dict(sorted(lines.items())),
    'nodes verified per call and row',
    title='Calls saved against nodes',
  )


def calls_against_numbers(runs: Runs, label: str) -> svg.Svg:
  """CR with its interval against the number in each run's name.

  Args:
    runs: named like `own 400`; those of one word are a line.
    label: what the number counts.

  Raises:
    ValueError: a name has none, or more than one.
  """
  lines: dict[str, dict[int, results.RunResult]] = {}
  for run in runs:
    parts = re.fullmatch(r'(\D*)(\d+)(\D*)', run.label)
    if not parts:
      raise ValueError(f'{run.label!r} should hold one number, as in own 400')
    before, number, after = parts.groups()
    lines.setdefault(f'{before}{after}'.strip(), {})[int(number)] = run
  title = f'Calls saved against {label}'
  return _calls_against(lines, label, title=title)


def _calls_against(
  lines: dict[str, dict[int, results.RunResult]], label: str, *, title: str
) -> svg.Svg:
  """CR against numbers, a line per name; they double from tick to tick."""

  def paint(axes):
    """Points with intervals, a line through those of a name."""
    ax = axes[0, 0]
    for i, (name, by_number) in enumerate(lines.items()):
      numbers = sorted(by_number)
      found = [by_number[number] for number in numbers]
      values = np.array([run.call_reduction_ratio for run in found])
      bounds = np.array([run.call_reduction_ci95 for run in found]).T
      _point(ax, numbers, values, i, name, linestyle='-')
      errors = np.clip(np.abs(bounds - values), 0, None)
      ax.errorbar(numbers, values, errors, fmt='none', color=_colour(i))
    ax.set_xscale('log', base=2)
    ticks = sorted({number for line in lines.values() for number in line})
    ax.set(xlabel=label, ylabel='call reduction (CR)', ylim=(1, None))
    ax.set_xticks(ticks, labels=map(str, ticks))
    _legend_beside(ax, len(lines))

  size = (4.5 + svg.text_width(list(lines)), 3.4)
  return svg.draw(paint, title=title, size=size)


def predicted_against_measured(runs: Runs) -> svg.Svg:
  """CR / step cost against measured speed-up; on the line they agree."""

  def paint(axes):
    ax = axes[0, 0]
    for i, run in enumerate(runs):
      _point(ax, run.predicted_speedup, run.speedup, i, names(runs)[i])
    values = [v for r in runs for v in (r.predicted_speedup, r.speedup)]
    top = 1.1 * max([*values, 1])
    ax.plot([0, top], [0, top], color=svg.MUTED, linewidth=1)
    ax.set(
      xlabel='CR / step cost', ylabel='measured speed-up', xlim=(0, top),
      ylim=(0, top),
    )  # fmt: skip
    _legend_beside(ax, len(runs))

  return svg.draw(
    paint,
    title='Predicted against measured speed-up',
    size=(5 + _label_width(runs), 4),
  )


def names(runs: Runs) -> list[str]:
  """Label of each run, with what sets it apart from one of the same label."""
  facts = {
    'task': [run.task for run in runs],
    'T': [f'T={run.temperature:g}' for run in runs],
    'batch': [f'batch {run.batch}' for run in runs],
  }
  varying = [column for column in facts.values() if len(set(column)) > 1]
  return [
    ', '.join([run.marked_label, *(column[i] for column in varying)])
    for i, run in enumerate(runs)
  ]


def _label_width(runs):
  """Inches that the longest name takes."""
  return svg.text_width(names(runs))


def _point(ax, x, y, i, label, linestyle=''):
  marker = 'os^Dv'[i // len(svg.COLOURS) % 5]
  ax.plot(
    x, y, marker=marker, linestyle=linestyle, color=_colour(i), label=label
  )


def _colour(i):
  return svg.COLOURS[i % len(svg.COLOURS)]


def _legend_beside(ax, count):
  if count:
    ax.legend(loc='upper left', bbox_to_anchor=(1.02, 1), fontsize=8)
