# SPDX-License-Identifier: Apache-2.0
"""Sizes of tree that a call may choose among, as text: '4:1.8/16:2.5'."""

from typing import NamedTuple

from specstream_jax.config import checks

MOST_SIZES = 3  # each is a program to compile


class Size(NamedTuple):
  """A tree that there is a program for.

  Attributes:
    nodes: the root among them, at least 2.
    cost: of a call that verifies it and drafts the next, in plain steps.
  """

  nodes: int
  cost: float


def parse(text: str, most_nodes: int) -> tuple[Size, ...]:
  """The sizes that a text names; none for ''.

  Args:
    text: `nodes:cost` of each, ascending, with `/` between them.
    most_nodes: of any tree.

  Raises:
    ValueError: the text says something else.
  """
  found = tuple(map(_size, text.split('/'))) if text else ()
  nodes, costs = [s.nodes for s in found], [s.cost for s in found]
  is_good = (
    len(found) <= MOST_SIZES
    and all(2 <= n <= most_nodes for n in nodes)
    and all(0 < c < float('inf') for c in costs)
    and nodes == sorted(set(nodes))
    and costs == sorted(costs)
  )
  checks.check(
    is_good,
    f'DrafterConfig.budgets is {text!r}; accepted: up to {MOST_SIZES} of '
    'nodes:cost with / between them, nodes from 2 to '
    f'{most_nodes} and ascending, costs (in plain steps) as well, such as '
    "'4:1.8/16:2.5'",
  )
  return found


def _size(text: str) -> Size:
  nodes, _, cost = text.partition(':')
  try:
    return Size(int(nodes), float(cost))
  except ValueError:
    return Size(0, 0.0)  # nothing that is accepted


def write(sizes: tuple[Size, ...]) -> str:
  """The text that `parse` reads."""
  return '/'.join(f'{size.nodes}:{size.cost:.2f}' for size in sizes)
