# SPDX-License-Identifier: Apache-2.0
"""An adapter as the rows of an engine have it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from specstream_jax.decoding import batch_sizes


class RowWeights(NamedTuple):
  """What rows have of their own; leaves have an axis of rows in front.

  Attributes:
    adapter: nested weights.
    tree: a `row_trees.RowTree`; () if all have the same tree.
  """

  adapter: Any
  tree: Any = ()


class Served(NamedTuple):
  """An adapter as rows have it.

  Attributes:
    name: of it; '' is the model as it was loaded.
    eos_ids: token ids that end its texts.
    has_drafts: whether it drafts.
    num_drafts: draft tokens that each of its calls verifies.
    weights: `RowWeights` [1, ...] on the device; () where there are none.
    owner: whose keys and values its prompts have; those of another adapter of
      the same name have another.
    kind: of `batch_sizes.Solo.kinds`, for rows that all have it.
    head: of its own tokens, for those; () is all tokens.
  """

  name: str
  eos_ids: tuple[int, ...]
  has_drafts: bool
  num_drafts: int
  weights: Any = ()
  owner: int = 0
  kind: int = batch_sizes.SIDE_BY_SIDE
  head: Any = ()


def kind(running: Sequence[Served]) -> int:
  """Of what rows decode with, one of each at least."""
  first = running[0]
  is_one = all(served is first for served in running)
  return first.kind if is_one else batch_sizes.SIDE_BY_SIDE
