# SPDX-License-Identifier: Apache-2.0
"""Matplotlib figures as SVG text that fits light and dark pages.

Text and axes are drawn in a stand-in colour that becomes `currentColor`, so
the page decides; alone, a picture falls back to a grey that both can show.
"""

from collections.abc import Callable, Iterable
import io
import re
from typing import Any
from xml.sax import saxutils
import zlib

# Mid-tones: at least 3:1 against white and against near-black.
COLOURS = ('#3b82c4', '#d9772b', '#2e9e6b', '#a678de', '#d1495b', '#8c8c3a')
MUTED = '#8a8a8a'
INK = '#010203'  # stands for currentColor

_STYLE: dict[Any, Any] = {
  'axes.edgecolor': INK,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.labelcolor': INK,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.axisbelow': True,
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 10,
  'grid.alpha': 0.35,
  'grid.color': MUTED,
  'legend.frameon': False,
  'svg.fonttype': 'none',  # text stays text: searchable, read aloud
  'svg.hashsalt': 'specstream',
  'text.color': INK,
  'text.parse_math': False,  # tokens may hold dollar signs
  'xtick.color': INK,
  'ytick.color': INK,
}
_NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))


class Svg(str):
  """SVG text that notebooks show as a picture."""

  __slots__ = ()

  def _repr_svg_(self) -> str:
    return str(self)

  def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
    """Its title where there are no pictures; else notebooks keep it twice."""
    del cycle
    found = re.search(r'aria-label=(["\'])(.*?)\1', self)
    printer.text(f'<picture: {found[2] if found else "SVG"}>')


def draw(
  paint: Callable[[Any], None],
  *,
  title: str,
  size: tuple[float, float],
  grid: tuple[int, int] = (1, 1),
) -> Svg:
  """The picture that `paint` draws.

  Args:
    paint: takes the array [rows, columns] of matplotlib axes.
    title: what the picture shows, read aloud in its place.
    size: width and height in inches.
    grid: rows and columns of axes.
  """
  import matplotlib as mpl
  from matplotlib import figure

  with mpl.rc_context(_STYLE):
    fig = figure.Figure(figsize=size, layout='constrained')
    paint(fig.subplots(*grid, squeeze=False))
    buffer = io.StringIO()
    fig.savefig(buffer, format='svg', transparent=True, metadata=_NO_METADATA)
  return _embeddable(buffer.getvalue(), title)


def text_width(texts: Iterable[str], points: float = 10) -> float:
  """Inches that the longest of the texts takes; 0 without texts."""
  from matplotlib import textpath

  paths = (textpath.TextPath((0, 0), text, size=points) for text in texts)
  return max((path.get_extents().width / 72 for path in paths), default=0.0)


def _embeddable(text: str, title: str) -> Svg:
  """Without prolog and metadata, ids its own, colours from the page."""
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  prefix = f's{zlib.crc32(text.encode()):08x}-'
  text = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{prefix}', text)
  text = text.replace(INK, 'currentColor')
  name = saxutils.quoteattr(title)
  opening = f'<svg role="img" aria-label={name} color="#808080"'
  return Svg(text.replace('<svg', opening, 1))
