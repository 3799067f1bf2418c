# SPDX-License-Identifier: Apache-2.0
"""Where a step's time goes: a table for the terminal, profile.json, a plot."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from specstream_jax.bench import machine, results, step_profile
from specstream_jax.outputs import writing
from specstream_jax.report import svg

_REST = 'in no part'
_MOST = 1.25  # of a step that its parts may add up to


def table(found: step_profile.StepProfile) -> str:
  """The parts, their sum, what is left, and the whole."""
  total = sum(part.ms for part in found.parts)
  rows = [('part', 'ms', 'share', 'quartiles')]
  rows += [_row(found, part) for part in found.parts]
  rule = len(rows)
  for name, ms in (('all parts', total), (_REST, found.rest_ms)):
    rows.append((name, *_share(found, ms), ''))
  rows += [_row(found, found.whole), _row(found, found.products)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      cell.rjust(width) if place else cell.ljust(width)
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  line = '-' * max(map(len, lines))
  body = [lines[0], line, *lines[1:rule], line, *lines[rule:]]
  return '\n'.join([*body, verdict(found), *_doubts(found, total)])


def _doubts(found, total) -> list[str]:
  """Says that parts which do not add up are no measurement."""
  if total <= _MOST * found.whole.ms:
    return []
  return [
    f'parts that add up to {total / found.whole.ms:.1f} steps were timed beside '
    'other work, or are too short to time: stop what else runs, or take more '
    '--rounds'
  ]


def verdict(found: step_profile.StepProfile) -> str:
  """How much of the step is arithmetic that cannot be left out."""
  return (
    f'{found.other_share:.1%} of the step is something else than its matrix '
    'products with weights'
  )


def plot(found: step_profile.StepProfile) -> svg.Svg:
  """A bar for each part, and for what is in none."""
  bars = [(part.name, part.ms, part.low, part.high) for part in found.parts]
  bars.append((_REST, found.rest_ms, found.rest_ms, found.rest_ms))

  def paint(axes: Any) -> None:
    """Bars from above, quartiles as whiskers."""
    ax = axes[0, 0]
    places = range(len(bars))
    names, values, low, high = zip(*bars, strict=True)
    spread = [
      [value - end for value, end in zip(values, low, strict=True)],
      [end - value for value, end in zip(values, high, strict=True)],
    ]
    made = ax.barh(
      places,
      values,
      xerr=spread,
      color=[svg.COLOURS[0]] * len(found.parts) + [svg.MUTED],
      ecolor=svg.INK,
    )
    ax.bar_label(made, fmt='%.2f', padding=3)
    ax.set_yticks(places, names)
    ax.set(xlabel=f'ms of a step of {found.whole.ms:.2f}')
    ax.grid(visible=False, axis='y')
    ax.invert_yaxis()
    ax.margins(x=0.15)

  size = (3.5 + svg.text_width(name for name, *_ in bars), 1 + 0.35 * len(bars))
  return svg.draw(paint, title='Where the time of a step goes', size=size)


def write(
  folder: str,
  found: step_profile.StepProfile,
  seconds: Mapping[str, Sequence[float]],
  **more: Any,
) -> None:
  """profile.json and profile.svg in a folder.

  Args:
    folder: made if it is not there.
    found: what the times come to.
    seconds: all times of a step.
    **more: what was measured, for the file.

  Raises:
    WriteError: it cannot be written.
  """
  value = more | {
    'machine': machine.describe(),
    'versions': results.versions(),
    'profile': step_profile.to_json(found),
    'seconds': dict(seconds),
  }
  text = json.dumps(value, indent=2) + '\n'
  writing.write_text(os.path.join(folder, 'profile.json'), text)
  writing.write_text(os.path.join(folder, 'profile.svg'), str(plot(found)))


def _row(found, cost) -> tuple[str, ...]:
  spread = f'{cost.low:.2f}-{cost.high:.2f}'
  return (cost.name, *_share(found, cost.ms), spread)


def _share(found, ms) -> tuple[str, str]:
  return f'{ms:.2f}', f'{ms / found.whole.ms:.1%}'
