# SPDX-License-Identifier: Apache-2.0
"""What a call emits: how many of the accepted tokens, and why a row ends.

Axis letters: B rows, M tree nodes, P path length, V vocabulary.
"""

import dataclasses

import jax.numpy as jnp

from specstream_jax import arrays, sampling
from specstream_jax.decoding import (
  edits as edits_lib,
  interface,
  state as state_lib,
  stopping,
)


def best_logits(
  logits: arrays.Array,
  draws: arrays.Array | None,
  settings: sampling.RowSettings | None,
) -> arrays.Array:
  """The largest of logits [B, M, V]; NaN if one is NaN, float32 [B, M].

  Greedy draws [B, M] point at it, which saves a pass over all of them.
  """
  if settings is None and draws is not None:
    return jnp.take_along_axis(logits, draws[..., None], axis=-1)[..., 0]
  return logits.max(axis=-1)


def truncate(
  setup: interface.DecodeSetup,
  state: state_lib.DecodeState,
  emitted: arrays.Array,
  accept_length: arrays.Array,
  best: arrays.Array,
  stops: stopping.StopTexts | None,
) -> tuple[state_lib.DecodeState, arrays.Array, arrays.Array]:
  """How many of `emitted` [B, P] to keep, and why the row ends there.

  Args:
    setup: stop sequences.
    state: the output so far.
    emitted: the accepted tokens, then the one that was drawn.
    accept_length: [B] int32.
    best: [B, P] largest logit where each of them was drawn.
    stops: stop texts, or None.

  Returns:
    The state, with stop texts followed, the number [B] and the reason [B].
  """
  # From NaN, infinity, or nothing but minus infinity no token can be drawn, nor
  # is a draft right there; what was accepted before stands.
  count = jnp.cumprod(jnp.isfinite(best), axis=1).sum(axis=1)
  is_finite = count > accept_length
  followed = None
  if stops is not None:
    assert state.text_states is not None
    followed = stops.follow(state.text_states, emitted)
  kept, reason = stopping.truncate(
    setup.cfg,
    state.tokens,
    state.num_tokens,
    state.limits,
    state.eos_ids,
    emitted,
    jnp.minimum(count, accept_length + 1),
    followed,
  )
  if followed is not None:
    # Rows that are done emit nothing, so where they stand does not matter.
    state = dataclasses.replace(
      state, text_states=followed[jnp.arange(len(kept)), kept - 1]
    )
  is_stuck = ~is_finite & (reason == stopping.RUNNING)
  return state, kept, jnp.where(is_stuck, stopping.NOT_FINITE, reason)


def count_call(
  state: state_lib.DecodeState, kept: arrays.Array
) -> state_lib.DecodeState:
  """Counts the call in the rows that took part, with its accept length."""
  took_part = ~state.is_done
  rows = jnp.arange(kept.shape[0])
  index = jnp.where(took_part, state.calls, state.accept_lengths.shape[1])
  return dataclasses.replace(
    state,
    calls=state.calls + took_part,
    accept_lengths=state.accept_lengths.at[rows, index].set(
      jnp.maximum(kept - 1, 0), mode='drop'
    ),
  )


def emit(
  setup: interface.DecodeSetup,
  state: state_lib.DecodeState,
  emitted: arrays.Array,
  kept: arrays.Array,
  reason: arrays.Array,
) -> state_lib.DecodeState:
  """Appends the first `kept` [B] of `emitted` [B, P]; ends full rows."""
  offset = jnp.arange(emitted.shape[1])[None]
  is_kept = offset < kept[:, None]
  index = jnp.where(
    is_kept, state.num_tokens[:, None] + offset, state.tokens.shape[1]
  )
  rows = jnp.arange(kept.shape[0])[:, None]
  needed = state.cache.length + setup.drafter.size
  is_full = (needed > state.cache.num_slots) & (reason == stopping.RUNNING)
  return dataclasses.replace(
    state,
    tokens=state.tokens.at[rows, index].set(emitted, mode='drop'),
    num_tokens=state.num_tokens + kept,
    finish_reason=jnp.where(is_full, stopping.CACHE, reason),
    edits=edits_lib.remember(state.edits, jnp.where(is_kept, emitted, -1)),
  )
