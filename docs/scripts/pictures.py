# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of "How it works" from the package's own functions.

    python docs/scripts/pictures.py

What is filled in a mask, and which path of the tree is accepted, is asked of
the code that decodes. The same numbers give the same files.
"""

from collections.abc import Sequence
import functools
import pathlib
from xml.sax import saxutils

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax.decoding import tree as tree_lib, verify
from specstream_jax.modeling import attention, masks
from specstream_jax.report import tree_plot

FOLDER = pathlib.Path(__file__).parents[1] / 'how_it_works'
# A draft tree: the text so far ends in "is"; and what the model says at each
# node, which is no guess for the last of them.
TOKENS = ['is', 'a', 'the', 'pub', 'bar', 'in', 'pub']
PARENTS = [0, 0, 0, 1, 1, 3, 2]
SAID = ['a', 'pub', 'best', 'near', 'with', 'the', 'by']
NUM_STREAMS = 2

_PAPER, _INK, _LINE = '#f7f7f5', '#222222', '#888888'
_GREEN, _ORANGE, _BLUE = '#1a7f5a', '#c2571a', '#2b6ca3'
_WIDE, _HIGH, _RADIUS = 112, 62, 21


def main() -> None:
  """Writes all pictures."""
  for name, text in pictures().items():
    (FOLDER / name).write_text(text)


def pictures() -> dict[str, str]:
  """File name -> SVG."""
  return {
    'streams_mask.svg': streams_mask(),
    'tree.svg': draft_tree('A draft tree and its accepted path'),
    'tree_mask.svg': tree_mask(),
    'walk.svg': draft_tree('What the model says at each node', SAID),
  }


def streams_mask() -> str:
  """Main tokens and streams of three tokens: who sees whom."""
  text = ['the', 'pub', 'is']
  names = list(text)
  kinds = [_GREEN] * len(text)
  for token in text:
    for j in range(1, NUM_STREAMS + 1):
      names.append(f'{token}, stream {j}')
      kinds.append(_ORANGE)
  return _grid(
    'Main tokens and their streams: who sees whom',
    names,
    seen_by_streams(len(text), NUM_STREAMS),
    kinds,
  )


def seen_by_streams(num_main: int, num_streams: int) -> np.ndarray:
  """Who attends to whom, bool [T, T], main tokens first.

  Queries of zeros attend evenly to all that they may see; values of one-hot
  vectors then say which that was.

  Args:
    num_main: tokens.
    num_streams: of each.
  """
  weights = jax.jit(_weights, static_argnums=(0, 1))(num_main, num_streams)
  return np.asarray(weights)[0, :, 0, 0] > 0


def _weights(num_main, num_streams):
  """How much each query takes of each token, [1, T, 1, 1, T]."""
  total = num_main * (1 + num_streams)
  values = jnp.eye(total)[None, None]  # [B, K, S, H]
  main = attention.KeyValues(
    jnp.zeros_like(values)[:, :, :num_main], values[:, :, :num_main]
  )
  visible = masks.segment_mask(jnp.ones((1, num_main), int))
  own = values[0, 0, num_main:].reshape(1, num_main, num_streams, 1, total)
  ask = lambda count: jnp.zeros((1, count, 1, 1, total))
  of_main = attention.attend(ask(num_main), [attention.Seen(main, visible)])
  of_streams = attention.attend(
    ask(num_main * num_streams),
    [attention.Seen(main, jnp.repeat(visible, num_streams, axis=1))],
    attention.KeyValues(jnp.zeros_like(own), own),
  )
  return jnp.concatenate([of_main, of_streams], 1)


def tree_mask() -> str:
  """Which nodes each node of the tree sees."""
  names = [f'{node} {token}' for node, token in enumerate(TOKENS)]
  mask = np.asarray(jax.jit(tree_lib.ancestor_mask)(jnp.array([PARENTS])))[0]
  return _grid('Which nodes a node sees', names, mask, [_BLUE] * len(names))


@functools.cache
def accepted() -> list[int]:
  """Nodes of the path that the model agrees with, by the package's walk."""
  words = sorted({*TOKENS, *SAID})
  ids = lambda texts: jnp.array([[words.index(text) for text in texts]])
  tree = tree_lib.DraftTree(
    ids(TOKENS), jnp.array([PARENTS]), jnp.zeros((1, len(PARENTS)), int)
  )
  walk = jax.jit(verify.verify, static_argnames='path_length')
  found = walk(tree, ids(SAID), path_length=4)
  return sorted({int(node) for node in found.path[0]})


def draft_tree(title: str, said: Sequence[str] = ()) -> str:
  """The tree, its accepted path filled, and what the model says at its end.

  Args:
    title: for those who cannot see it.
    said: the model's token at each node, written beside it.
  """
  path = accepted()
  depths, heights = tree_plot.layout(PARENTS)
  at = lambda node: (
    50 + _WIDE * depths[node],
    48 + _HIGH * heights[node],
  )
  lines = []
  for node, parent in enumerate(PARENTS[1:], 1):
    is_on = node in path
    lines.append(_edge(at(parent), at(node), is_on))
  for node, token in enumerate(TOKENS):
    lines.append(_node(at(node), token, _GREEN if node in path else ''))
    if said:
      x, y = at(node)
      lines.append(_text(x, y + 37, f'says “{said[node]}”', size=12))
  last = path[-1]
  x, y = at(last)
  bonus = (x + _WIDE, y + 1.15 * _HIGH)
  lines.insert(0, _edge((x, y), bonus, False, dashed=True))
  lines.append(_node(bonus, SAID[last], _ORANGE))
  lines.append(_text(bonus[0] + 32, bonus[1] + 5, 'its own word', 'start'))
  width = 50 + _WIDE * (max(depths) + 1) + 90
  height = 96 + _HIGH * max(heights)
  return _svg(title, width, height, lines)


def _edge(start, end, is_on: bool, *, dashed: bool = False) -> str:
  colour, width = (_GREEN, 4) if is_on else (_LINE, 1.5)
  dash = ' stroke-dasharray="4 3"' if dashed else ''
  return (
    f'<path d="M{start[0]:g} {start[1]:g} L{end[0]:g} {end[1]:g}" '
    f'stroke="{colour}" stroke-width="{width}" fill="none"{dash}/>'
  )


def _node(at, token: str, fill: str) -> str:
  circle = (
    f'<circle cx="{at[0]:g}" cy="{at[1]:g}" r="{_RADIUS}" '
    f'fill="{fill or "#ffffff"}" stroke="#555555"/>'
  )
  colour = '#ffffff' if fill else _INK
  return circle + _text(at[0], at[1] + 5, token, colour=colour)


def _text(
  x: float,
  y: float,
  text: str,
  anchor: str = 'middle',
  *,
  size: int = 14,
  colour: str = _INK,
) -> str:
  return (
    f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
    f'fill="{colour}">{saxutils.escape(text)}</text>'
  )


def _grid(
  title: str, names: Sequence[str], mask: np.ndarray, kinds: Sequence[str]
) -> str:
  """A mask: a row for who looks, a column for who is seen."""
  longest = max(map(len, names))
  side, left, top = 30, 24 + 7.6 * longest, 26 + 6.2 * longest
  lines = []
  for i, name in enumerate(names):
    y, x = top + side * i, left + side * i
    lines.append(_text(left - 8, y + 20, name, 'end'))
    lines.append(
      f'<g transform="rotate(-55 {x + 18:g} {top - 8:g})">'
      f'{_text(x + 18, top - 8, name, "start")}</g>'
    )
    for j, is_seen in enumerate(mask[i]):
      fill = kinds[j] if is_seen else '#ffffff'
      lines.append(
        f'<rect x="{left + side * j:g}" y="{y:g}" width="{side - 3}" '
        f'height="{side - 3}" rx="3" fill="{fill}" stroke="#cccccc"/>'
      )
  edge = side * len(names)
  return _svg(title, left + edge + 4.4 * longest, top + edge + 14, lines)


def _svg(title: str, width: float, height: float, lines: Sequence[str]) -> str:
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} '
      f'{height:g}" width="{width:g}" font-family="sans-serif" role="img" '
      f'aria-label="{saxutils.escape(title)}">',
      f'<rect width="{width:g}" height="{height:g}" rx="10" fill="{_PAPER}"/>',
      *lines,
      '</svg>\n',
    ]
  )


if __name__ == '__main__':
  main()
