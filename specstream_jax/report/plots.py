# SPDX-License-Identifier: Apache-2.0
"""Plots of a benchmark and of a training run, as SVG text.

Every function returns `svg.Svg`: a string for files and pages, a picture as
the last line of a notebook cell.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
from typing import Any

import numpy as np

from specstream_jax.checkpoints import fields, files
from specstream_jax.outputs import ordering
from specstream_jax.report import svg, tree_plot

Curves = dict[str, dict[str, list[tuple[int, float]]]]

draft_tree = tree_plot.draft_tree

_PANELS = {
  'loss': 'loss (nats per token)',
  'top1': 'top-1 accuracy (%)',
  'top4': 'top-4 accuracy (%)',
  'tokens_per_call': 'expected tokens per call',
  'predicted_speedup': 'predicted speed-up',
  'tokens_per_second': 'training tokens per second',
}


def acceptance_by_depth(shares: Mapping[str, Sequence[float]]) -> svg.Svg:
  """Share of calls that accept at least 1, 2, … draft tokens.

  Args:
    shares: label -> `RunResult.per_depth_acceptance`.
  """

  return _by_depth(shares, 'calls that accept it (%)', 'Acceptance by depth')


_FEWEST = 10  # calls that a share is taken of


def acceptance_given_prefix(histograms: Mapping[str, Sequence[int]]) -> svg.Svg:
  """Share of calls that accept a draft of a depth, of those that got so far.

  Where it falls with depth, streams guess worse the farther they look ahead;
  where it does not, deeper drafts would be accepted as well. A line ends where
  fewer than ten calls come, and where the tree does.

  Args:
    histograms: label -> `RunResult.accept_length_histogram`, calls that accept
      0, 1, … drafts.
  """

  return _by_depth(
    {label: given_prefix(counts) for label, counts in histograms.items()},
    'accepted, of calls that got there (%)',
    'Acceptance given the prefix',
  )


def _by_depth(
  shares: Mapping[str, Sequence[float]], ylabel: str, title: str
) -> svg.Svg:
  """Shares of 1 at draft depths 1, 2, …, a line per label."""

  def paint(axes):
    """One line per label."""
    ax = axes[0, 0]
    for i, (label, values) in enumerate(shares.items()):
      depths = range(1, len(values) + 1)
      percents = [100 * value for value in values]
      ax.plot(depths, percents, label=label, **_line(i))
    deepest = max(map(len, shares.values()), default=1)
    ax.set(
      xlabel='draft depth (tokens)',
      ylabel=ylabel,
      ylim=(0, 105),
      xticks=range(1, deepest + 1),
    )
    _legend(ax, shares)

  return svg.draw(paint, title=title, size=(5, 3.2))


def given_prefix(counts: Sequence[int]) -> list[float]:
  """Share of calls that accept draft 1, 2, … of those that accepted all before.

  Args:
    counts: calls that accept 0, 1, … drafts.
  """
  reached = np.cumsum(counts[::-1])[::-1]
  deepest = max(np.flatnonzero(counts), default=0)
  return [
    float(reached[d] / reached[d - 1])
    for d in range(1, deepest + 1)
    if reached[d - 1] >= _FEWEST
  ]


def tokens_per_call(histograms: Mapping[str, Sequence[int]]) -> svg.Svg:
  """Share of calls by the tokens they emit, accept length + 1.

  Args:
    histograms: label -> `RunResult.accept_length_histogram`.
  """

  def paint(axes):
    """One group of bars per number of tokens."""
    ax = axes[0, 0]
    width = 0.8 / max(len(histograms), 1)
    for i, (label, counts) in enumerate(histograms.items()):
      percents = 100 * np.asarray(counts, float) / max(sum(counts), 1)
      offset = (i - (len(histograms) - 1) / 2) * width
      x = 1 + np.arange(len(counts)) + offset
      ax.bar(x, percents, width, label=label, color=_colour(i))
    longest = max(map(len, histograms.values()), default=1)
    ax.set(
      xlabel='tokens per call',
      ylabel='calls (%)',
      xticks=range(1, longest + 1),
    )
    _legend(ax, histograms)

  return svg.draw(paint, title='Tokens per call', size=(5, 3.2))


def time_per_call(milliseconds: Mapping[str, tuple[float, float]]) -> svg.Svg:
  """Cost of an autoregressive and a speculative call, side by side.

  Args:
    milliseconds: label -> (autoregressive, speculative) ms per call.
  """

  def paint(axes):
    """Two bars per label."""
    ax = axes[0, 0]
    rows = np.arange(len(milliseconds))
    sides = (('autoregressive', svg.MUTED), ('speculative', svg.COLOURS[0]))
    for side, (name, colour) in enumerate(sides):
      values = [pair[side] for pair in milliseconds.values()]
      y = rows + (side - 0.5) * 0.36
      bars = ax.barh(y, values, 0.34, label=name, color=colour)
      ax.bar_label(bars, fmt='%.2f', padding=3)
    ax.set(xlabel='time per call (ms)', yticks=rows)
    ax.set_yticklabels(milliseconds)
    ax.grid(visible=False, axis='y')
    ax.invert_yaxis()
    ax.margins(x=0.15)
    _legend(ax, [name for name, _ in sides])

  size = (
    max(5, 3.5 + svg.text_width(milliseconds)),
    1.8 + 0.7 * len(milliseconds),
  )
  return svg.draw(paint, title='Time per call', size=size)


def forward_cost(
  curves: Mapping[str, Sequence[tuple[int, float]]],
) -> svg.Svg:
  """Time of one forward pass by the tokens it processes.

  Flat where weights are read, rising where they are multiplied: it tells how
  many nodes a draft tree may have.

  Args:
    curves: label -> (tokens, milliseconds) pairs.
  """

  def paint(axes):
    ax = axes[0, 0]
    ticks = sorted({n for pairs in curves.values() for n, _ in pairs})
    for i, (label, pairs) in enumerate(curves.items()):
      ax.plot(*zip(*sorted(pairs), strict=True), label=label, **_line(i))
    ax.set_xscale('log', base=2)
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel='tokens in one forward pass', ylabel='time (ms)')
    ax.set_ylim(bottom=0)
    _legend(ax, curves)

  return svg.draw(paint, title='Cost of a forward pass', size=(5, 3.2))


def tuning(
  predicted: Mapping[str, Sequence[tuple[int, float]]],
  measured: Mapping[str, Sequence[tuple[int, float]]],
) -> svg.Svg:
  """Speed-up by the nodes of the tree: predicted as lines, measured as dots.

  Args:
    predicted: label -> (nodes, speed-up) pairs.
    measured: likewise, of some of them, and of others.
  """

  def paint(axes):
    """One line per label, and its dots."""
    ax = axes[0, 0]
    labels = list(dict.fromkeys([*predicted, *measured]))
    ticks = sorted({n for pairs in predicted.values() for n, _ in pairs})
    for i, label in enumerate(labels):
      look = _line(i)
      marker = look.pop('marker')
      if label in predicted:
        pairs = sorted(predicted[label])
        ax.plot(*zip(*pairs, strict=True), label=label, **look)
      for nodes, value in measured.get(label, ()):
        dot = {} if label in predicted else {'label': label}
        ax.plot(nodes, value, marker, color=look['color'], markersize=7, **dot)
    ax.axhline(1, color=svg.MUTED, linewidth=1)
    ax.set_xscale('log', base=2)
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel='nodes of the tree', ylabel='times faster')
    ax.set_ylim(bottom=0)
    _legend(ax, labels)

  title = 'Predicted speed-up (lines) and measured (dots)'
  return svg.draw(paint, title=title, size=(5.5, 3.4))


def training_curves(path: str | os.PathLike[str]) -> svg.Svg:
  """Loss and accuracy per stream, tokens per call, speed, over steps.

  Args:
    path: metrics.jsonl of a training run: `step`, `split`, `loss/main`,
      `loss/stream_1`, `top1/…`, `top4/…`, `tokens_per_call`,
      `tokens_per_second`; all but `step` may be absent.

  Raises:
    ValueError: the file cannot be read or holds nothing to plot.
  """
  panels = {}
  for metric in _PANELS:
    curves = _curves(read_metrics(path), metric)
    if curves:
      panels[metric] = curves
  if not panels:
    raise ValueError(
      f'{path} has no metrics to plot; accepted: lines with "step" and some of '
      f'{", ".join(_PANELS)}'
    )

  def paint(axes):
    for ax, (metric, curves) in zip(axes.flat, panels.items(), strict=False):
      _paint_curves(ax, metric, curves)
    for ax in axes.flat[len(panels) :]:
      ax.set_axis_off()

  rows = -(-len(panels) // 2)
  return svg.draw(
    paint, title='Training curves', size=(10, 3.2 * rows), grid=(rows, 2)
  )


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Lines of a metrics.jsonl; a last line cut short by a kill is left out.

  Raises:
    ValueError: the file cannot be read, or another line is not JSON.
  """
  try:
    with open(path, 'rb') as file:
      lines = file.read().split(b'\n')
  except OSError as error:
    raise ValueError(
      f'cannot read metrics from {path}: {error.strerror}; give the '
      'metrics.jsonl of a training run'
    ) from error
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = files.loads(line.decode('utf-8')) if line.strip() else None
    except ValueError as error:
      if number < len(lines):
        raise ValueError(
          f'{path} line {number} is not JSON: {error}; remove the line'
        ) from error
      break
    if record is not None:
      _check_record(record, f'{path} line {number}')
      records.append(record)
  return records


def _check_record(record: Any, place: str) -> None:
  """Raises ValueError unless it holds a step, and numbers where we plot some."""
  if not isinstance(record, dict):
    raise ValueError(f'{place} is {fields.shown(record)}; accepted: an object')
  fields.get(record, 'step', fields.COUNT, place)
  fields.get(record, 'split', fields.TEXT, place, None)
  for name in record:
    if name.partition('/')[0] in _PANELS:
      fields.get(record, name, fields.NUMBER, place)


def _curves(records: Sequence[Mapping[str, Any]], metric: str) -> Curves:
  """Series -> split -> (step, value); a step written twice counts once."""
  curves = {}
  for record in records:
    for key, value in record.items():
      name, _, series = key.partition('/')
      is_stream = series == 'main' or series.startswith('stream_')
      if name == metric and (is_stream or not series):
        split = record.get('split') or 'train'
        steps = curves.setdefault(series, {}).setdefault(split, {})
        steps[record['step']] = value
  return {
    series: {name: sorted(steps.items()) for name, steps in splits.items()}
    for series, splits in sorted(
      curves.items(), key=lambda item: ordering.natural(item[0])
    )
  }


def _paint_curves(ax: Any, metric: str, curves: Curves) -> None:
  scale = 100 if metric in ('top1', 'top4') else 1
  is_mixed = any(len(splits) > 1 for splits in curves.values())
  for i, (series, splits) in enumerate(curves.items()):
    for split, points in splits.items():
      is_faint = is_mixed and split == 'train'
      ax.plot(
        [step for step, _ in points],
        [scale * value for _, value in points],
        label='' if is_faint and len(splits) > 1 else series.replace('_', ' '),
        color=_colour(i),
        alpha=0.5 if is_faint else 1,
        linewidth=1 if is_faint else 1.8,
        marker='' if split == 'train' else 'o',
        markersize=4,
      )
  hint = ' (thin: training batches; dots: evaluation)' if is_mixed else ''
  ax.set(xlabel='step' + hint, ylabel=_PANELS[metric])
  _legend(ax, curves)


def _line(i: int) -> dict[str, Any]:
  """Look of curve `i`: the marker tells curves apart without colour."""
  return {'color': _colour(i), 'marker': 'os^Dv*'[i % 6], 'linewidth': 1.8}


def _colour(i: int) -> str:
  return svg.COLOURS[i % len(svg.COLOURS)]


def _legend(ax: Any, labels: Iterable[str]) -> None:
  """Above the axes, where it hides nothing; none for a single entry.

  The figure grows where the labels need more room than it has.
  """
  labels, fig = list(labels), ax.figure
  if len(labels) < 2:
    return
  entry = 0.6 + svg.text_width(labels, points=8.3)
  fig.set_figwidth(max(fig.get_figwidth(), entry + 1))
  columns = int(np.clip((fig.get_figwidth() - 1) / entry, 1, 3))
  rows = -(-len(labels) // columns)
  fig.set_figheight(fig.get_figheight() + 0.2 * (rows - 1))
  ax.legend(
    loc='lower center', bbox_to_anchor=(0.5, 1), ncols=columns, fontsize='small'
  )
