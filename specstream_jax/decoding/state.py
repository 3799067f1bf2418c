# SPDX-License-Identifier: Apache-2.0
"""What the decode loop carries, and what rows ask of it.

Axis letters: B rows.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from specstream_jax import arrays, sampling
from specstream_jax.decoding import (
  edits as edits_lib,
  stopping,
  tree as tree_lib,
)
from specstream_jax.modeling import cache as cache_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """Everything the loop carries; rows are independent of each other.

  Between steps cache.length = prompt length + num_tokens - 1: all but the last
  emitted token, the root of `tree`, is committed.

  Attributes:
    tokens: [B, max_new] int32 output; EOS and stop sequences included.
    num_tokens: [B] int32 valid entries of `tokens`.
    limits: [B] int32 most tokens each row may emit.
    finish_reason: [B] int32, an index into `stopping.REASONS`.
    cache: committed keys and values.
    tree: drafts to verify in the next step.
    drafter_state: the drafter's own pytree.
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    row_keys: [B] keys of the position-keyed noise.
    settings: how the rows' tokens are drawn; None where all are greedy and
      nothing is edited, which compiles without the rest.
    edits: what is done to the logits before; None together with `settings`.
    calls: [B] int32 steps each row took part in; the prompt pass is none.
    accept_lengths: [B, max_new] int32 accept length of each call.
    text_states: [B] int32 of `stopping.StopTexts`, None without stop texts.
    has_drafts: [B] bool, rows that draft; None where all of them do.
  """

  tokens: arrays.Array
  num_tokens: arrays.Array
  limits: arrays.Array
  finish_reason: arrays.Array
  cache: cache_lib.Cache
  tree: tree_lib.DraftTree
  drafter_state: Any
  eos_ids: arrays.Array
  row_keys: arrays.Array
  settings: sampling.RowSettings | None
  edits: edits_lib.Edits | None
  calls: arrays.Array
  accept_lengths: arrays.Array
  text_states: arrays.Array | None = None
  has_drafts: arrays.Array | None = None

  @property
  def is_done(self) -> arrays.Array:
    """[B] bool."""
    return self.finish_reason != stopping.RUNNING


class Rows(NamedTuple):
  """What the rows of a batch ask for.

  Attributes:
    limits: [B] int32 most tokens each row may emit, at least 1.
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    keys: [B] of the position-keyed noise, see `sampling.row_keys`.
    settings: how tokens are drawn; None where all are plainly greedy.
    edits: of the logits; None together with `settings`.
    has_drafts: [B] bool, rows that draft; None where all of them do.
    guesses: [B, R] int32 of the answers, padded with -1, for a drafter that is
      an `interface.Copier`; None for no room.
  """

  limits: arrays.Array
  eos_ids: arrays.Array
  keys: arrays.Array
  settings: sampling.RowSettings | None = None
  edits: edits_lib.Request | None = None
  has_drafts: arrays.Array | None = None
  guesses: arrays.Array | None = None
