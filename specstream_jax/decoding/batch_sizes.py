# SPDX-License-Identifier: Apache-2.0
"""A running batch that gets larger and smaller, and drafts or does not.

A step costs what its shape costs, however many of its rows are taken. So there
are programs for a few sizes of batch, and for steps with drafts and without;
rows go from one to the other between calls of the loop.

Axis letters: B slots, M tree nodes including the root.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import interface, loop, stopping, tree as tree_lib

SIDE_BY_SIDE = -1  # the kind of rows with weights of their own


class Shape(NamedTuple):
  """What steps are compiled for, and timed.

  Attributes:
    size: of the batch.
    kind: of `Solo.kinds`, or `SIDE_BY_SIDE`.
  """

  size: int
  kind: int = SIDE_BY_SIDE


class Solo(NamedTuple):
  """For a batch whose rows have their weights in common.

  Attributes:
    setup: as of the others, for weights without an axis of rows; None without.
    plain: the same, which drafts nothing; None without.
    kinds: of such weights when they draft; those of a kind have the same shapes.
  """

  setup: interface.DecodeSetup | None = None
  plain: interface.DecodeSetup | None = None
  kinds: tuple[int, ...] = ()


class Cost(NamedTuple):
  """Seconds of a step of a batch.

  Attributes:
    plain: without drafts.
    drafting: with them.
  """

  plain: float
  drafting: float

  @property
  def break_even(self) -> float:
    """Tokens per call from which on drafts pay."""
    return self.drafting / self.plain


def default(num_slots: int) -> tuple[int, ...]:
  """Sizes of a batch of so many slots: 1, 8, 64, … and all of them.

  Each has four programs to compile.
  """
  sizes, size = [], 1
  while size < num_slots:
    sizes.append(size)
    size *= 8
  return (*sizes, num_slots)


def empty(row: Any, num_slots: int) -> Any:
  """As many free slots, of the kind that a batch of one row takes."""
  spread = jax.tree.map(lambda x: x[jnp.zeros(num_slots, jnp.int32)], row)
  free = jnp.full(num_slots, stopping.FREE, spread.finish_reason.dtype)
  return dataclasses.replace(spread, finish_reason=free)


def insert(slots: Any, row: Any, slot: arrays.Array) -> Any:
  """The slots [B, ...] with a batch of one row, [1, ...], in one of them."""
  put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(
    all_, one[0], slot, axis=0
  )
  return jax.tree.map(put, slots, row)


def release(
  state: loop.DecodeState, is_released: arrays.Array
) -> loop.DecodeState:
  """The state with the slots `is_released` [B] bool free."""
  reason = jnp.where(is_released, stopping.FREE, state.finish_reason)
  return dataclasses.replace(state, finish_reason=reason)


def resize(state: Any, index: arrays.Array, is_free: arrays.Array) -> Any:
  """Another number of slots.

  Args:
    state: a `loop.DecodeState` of B slots.
    index: [B'] int32, the slot that each of the new ones goes on with.
    is_free: [B'] bool, those that hold nothing.
  """
  moved = jax.tree.map(lambda x: x[index], state)
  reason = jnp.where(is_free, stopping.FREE, moved.finish_reason)
  return dataclasses.replace(moved, finish_reason=reason)


def run_plain(
  setup: interface.DecodeSetup,
  params: Any,
  state: loop.DecodeState,
  max_steps: arrays.Array,
  *,
  min_running: arrays.Array,
  stops: stopping.StopTexts | None = None,
) -> loop.DecodeState:
  """As `loop.run`, without the drafts that rows had, and with none after it.

  Args:
    setup: of the same model, with a drafter that drafts nothing.
    params: weights.
    state: of rows that draft.
    max_steps: at most so many.
    min_running: wakes when fewer rows run.
    stops: stop texts.
  """
  drafts = state.tree
  root = tree_lib.root_only(drafts.tokens[:, 0])
  state = dataclasses.replace(state, tree=root)
  state = loop.run(
    setup, params, state, max_steps, stops, min_running=min_running
  )
  tokens = drafts.tokens.at[:, :1].set(state.tree.tokens)
  tree = dataclasses.replace(drafts, tokens=tokens)
  tree = tree_lib.without_drafts(tree, jnp.ones_like(state.is_done))
  return dataclasses.replace(state, tree=tree)
