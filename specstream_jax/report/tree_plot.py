# SPDX-License-Identifier: Apache-2.0
"""Picture of a draft tree with its accepted path (paper, figure 3)."""

from collections.abc import Sequence
from typing import Any

from specstream_jax.report import svg

_LONGEST = 14


def draft_tree(
  tokens: Sequence[str], parents: Sequence[int], path: Sequence[int]
) -> svg.Svg:
  """One tree from left to right, accepted nodes filled.

  Args:
    tokens: text of each of the M nodes; node 0 is the root, the token emitted
      last.
    parents: [M] node index of each parent, parents before children; that of
      the root is not looked at.
    path: accepted nodes; the root may be among them.

  Returns:
    SVG text.

  Raises:
    ValueError: lengths differ, a parent follows its child, or the path leaves
      the tree.
  """
  tokens, parents = list(tokens), [0, *map(int, parents[1:])]
  accepted = {0, *map(int, path)}
  _check(tokens, parents, accepted)
  depths, heights = layout(parents)

  def paint(axes):
    ax = axes[0, 0]
    for node in range(1, len(tokens)):
      _edge(ax, depths, heights, parents[node], node, node in accepted)
    for node, token in enumerate(tokens):
      _box(ax, depths[node], heights[node], token, node in accepted)
    ax.set_axis_off()
    ax.invert_yaxis()
    ax.set_xlim(-0.5, max(depths) + 0.5)
    ax.margins(y=0.1)

  size = (1.7 * (max(depths) + 1), 0.8 + 0.34 * (1 + max(heights)))
  title = 'Draft tree; accepted: ' + ' | '.join(
    visible(tokens[node]) for node in sorted(accepted - {0})
  )
  return svg.draw(paint, title=title, size=size)


def visible(token: str) -> str:
  """A token with white space and control characters to be seen."""
  shown = token.replace(' ', '·').replace('\n', '⏎').replace('\t', '⇥')
  shown = ''.join(c if c.isprintable() else '�' for c in shown)
  return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + '…'


def _check(tokens: list[str], parents: list[int], accepted: set[int]) -> None:
  if not tokens or len(tokens) != len(parents):
    raise ValueError(
      f'the tree has {len(tokens)} tokens and {len(parents)} parents; give one '
      'of each per node, the root included'
    )
  for node, parent in enumerate(parents[1:], 1):
    if not 0 <= parent < node:
      raise ValueError(
        f'parents[{node}] is {parent}; accepted: 0 to {node - 1}, as parents '
        'precede children'
      )
  for node in sorted(accepted):
    if not (0 <= node < len(tokens) and parents[node] in accepted):
      raise ValueError(
        f'path has node {node}; accepted: nodes 0 to {len(tokens) - 1} whose '
        'parent is on the path too'
      )


def layout(parents: list[int]) -> tuple[list[int], list[float]]:
  """Depth and height of each node: leaves in rows, parents centred."""
  children = [[] for _ in parents]
  depths = [0] * len(parents)
  for node, parent in enumerate(parents[1:], 1):
    children[parent].append(node)
    depths[node] = depths[parent] + 1
  heights = [0.0] * len(parents)
  num_leaves, stack = 0, [0]
  while stack:
    node = stack.pop()
    if not children[node]:
      heights[node], num_leaves = float(num_leaves), num_leaves + 1
    stack.extend(reversed(children[node]))
  for node in reversed(range(len(parents))):
    if children[node]:
      ends = heights[children[node][0]], heights[children[node][-1]]
      heights[node] = sum(ends) / 2
  return depths, heights


def _edge(ax: Any, depths, heights, parent, child, is_accepted) -> None:
  ax.plot(
    [depths[parent], depths[parent] + 0.5, depths[child]],
    [heights[parent], heights[child], heights[child]],
    color=svg.COLOURS[0] if is_accepted else svg.MUTED,
    linewidth=2.4 if is_accepted else 0.9,
    zorder=1,
  )


def _box(ax: Any, depth, height, token, is_accepted) -> None:
  ax.text(
    depth,
    height,
    visible(token),
    ha='center',
    va='center',
    fontsize=9,
    fontweight='bold' if is_accepted else 'normal',
    color='#ffffff' if is_accepted else '#1d2329',
    bbox={
      'boxstyle': 'round,pad=0.3',
      'facecolor': '#1f5f99' if is_accepted else '#e6e9ec',
      'edgecolor': svg.COLOURS[0] if is_accepted else svg.MUTED,
    },
  )
