# SPDX-License-Identifier: Apache-2.0
"""What the host sees of a running batch between two calls of the loop.

Axis letters: B slots, M tree nodes including the root.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specstream_jax.decoding import interface, loop


class Seen(NamedTuple):
  """How far the rows of all slots are, as numpy.

  Attributes:
    tokens: [B, max_new] int32.
    num_tokens: [B] int32.
    finish_reason: [B] int32, see `stopping.REASONS`.
    calls: [B] int32.
    num_foreseen: [B] int32, see `interface.Copier`; None of another drafter.
  """

  tokens: np.ndarray
  num_tokens: np.ndarray
  finish_reason: np.ndarray
  calls: np.ndarray
  num_foreseen: np.ndarray | None


class Drafts(NamedTuple):
  """The trees that a call verifies, as numpy.

  Attributes:
    tokens: [B, M] int32; -1 marks an unused node.
    parents: [B, M] int32; the root, node 0, is its own.
  """

  tokens: np.ndarray
  parents: np.ndarray

  def of_slot(self, slot: int) -> 'Tree':
    """The tree of a slot's row, without unused nodes."""
    tokens = self.tokens[slot]
    used = np.flatnonzero(tokens >= 0)
    # What is used has a parent that is, so its place among them is known.
    parents = np.searchsorted(used, self.parents[slot, used])
    return Tree(tokens[used].tolist(), parents.tolist())


class Tree(NamedTuple):
  """The tree that a call verified for one row.

  Attributes:
    tokens: of its nodes, parents before children; the first is the root, the
      row's last token before the call.
    parents: of each node, by its place; the root is its own.
  """

  tokens: list[int]
  parents: list[int]

  def path(self, tokens: Sequence[int]) -> list[int]:
    """Nodes that some tokens lead to from the root, up to the first without.

    Of equal siblings it is the first, as in `verify.verify`.
    """
    found: list[int] = []
    for token in tokens:
      above = found[-1] if found else 0
      below = (
        node
        for node in range(1, len(self.tokens))
        if (self.parents[node], self.tokens[node]) == (above, token)
      )
      node = next(below, None)
      if node is None:
        break
      found.append(node)
    return found


def look(state: loop.DecodeState, drafter: interface.Drafter) -> Seen:
  """Waits for the device, and copies what the host wants to know."""
  foreseen = None
  if isinstance(drafter, interface.Copier):
    foreseen = np.array(drafter.num_foreseen(state.drafter_state))
  # Copied, as the next call consumes the state.
  return Seen(
    np.array(state.tokens),
    np.array(state.num_tokens),
    np.array(state.finish_reason),
    np.array(state.calls),
    foreseen,
  )


def drafts(state: loop.DecodeState) -> Drafts:
  """Waits for the device, and copies the trees that the next call verifies."""
  return Drafts(np.array(state.tree.tokens), np.array(state.tree.parents))
