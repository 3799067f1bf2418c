# SPDX-License-Identifier: Apache-2.0
"""Where a row ends: EOS, stop sequences, stop texts, its length limit.

Axis letters: B rows, P tokens a call can emit, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config

RUNNING, EOS, STOP, LENGTH, CACHE, NOT_FINITE, FREE = range(7)
# A slot is free where a row may come, see `slots`.
REASONS = ('running', 'eos', 'stop', 'length', 'cache', 'not_finite', 'free')

# States of a row among its stop texts: no text yet, text that ends with no
# part of a stop, a stop is whole. The others are parts of stops.
START, ANYWHERE, FOUND = range(3)


class StopTexts(NamedTuple):
  """Stop texts as a table over tokens, see `text.stops`.

  A text is matched by what its tokens spell, so it may begin and end inside of
  them.

  Attributes:
    table: int16 [N] state after a token, at state * num_classes + its class;
      padded, so that other texts need no other compilation.
    classes: int32 [V] class of each token.
    num_classes: int32 scalar.
    is_skipped: bool [V] whether a text has nothing of a token.
  """

  table: arrays.Array
  classes: arrays.Array
  num_classes: arrays.Array
  is_skipped: arrays.Array

  def follow(self, states: arrays.Array, tokens: arrays.Array) -> arrays.Array:
    """States int32 [B, P] after each of `tokens` [B, P], from `states` [B]."""
    classes = self.classes[jnp.clip(tokens, 0, self.classes.shape[0] - 1)]
    found = []
    for place in range(tokens.shape[1]):
      states = self.table[states * self.num_classes + classes[:, place]]
      states = states.astype(jnp.int32)
      found.append(states)
    return jnp.stack(found, axis=1)

  def begin(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """States int32 [B] after prompts, in which no stop may begin; on the host.

    A tokenizer may leave the space in front of a whole text out, so what has
    come of the text before matters.
    """
    is_skipped = np.asarray(self.is_skipped)
    has_text = [not is_skipped[list(row)].all() for row in prompts]
    return np.where(has_text, ANYWHERE, START).astype(np.int32)


def truncate(
  cfg: config.DecodeConfig,
  tokens: arrays.Array,
  num_tokens: arrays.Array,
  limits: arrays.Array,
  eos_ids: arrays.Array,
  emitted: arrays.Array,
  count: arrays.Array,
  text_states: arrays.Array | None = None,
) -> tuple[arrays.Array, arrays.Array]:
  """Cuts what a call emitted after the first token that ends the row.

  Args:
    cfg: stop sequences; one may begin in an earlier call, not in the prompt.
    tokens: [B, max_new] int32 output so far.
    num_tokens: [B] int32 valid entries of `tokens`.
    limits: [B] int32 most tokens of each row.
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    emitted: [B, P] int32 new tokens.
    count: [B] int32 valid entries of `emitted`.
    text_states: [B, P] int32 of `StopTexts.follow`, if there are stop texts.

  Returns:
    The number of tokens [B] to keep, and the finish reason [B]. Where two
    reasons end a row at the same token, EOS goes before stop before length.
  """
  index = jnp.arange(emitted.shape[1])[None]
  at_limit = num_tokens[:, None] + index + 1 >= limits[:, None]
  reasons = jnp.where(at_limit, LENGTH, RUNNING)
  is_stop = _ends_stop_sequence(cfg, tokens, num_tokens, emitted)
  if text_states is not None:
    is_stop |= text_states == FOUND
  reasons = jnp.where(is_stop, STOP, reasons)
  is_eos = jnp.any(emitted[..., None] == eos_ids[:, None], axis=-1)
  reasons = jnp.where(is_eos, EOS, reasons)
  ends = (reasons != RUNNING) & (index < count[:, None])
  first = jnp.argmax(ends, axis=1)
  has_end = ends.any(axis=1)
  reason = jnp.take_along_axis(reasons, first[:, None], axis=1)[:, 0]
  return (
    jnp.where(has_end, first + 1, count),
    jnp.where(has_end, reason, RUNNING),
  )


def _ends_stop_sequence(cfg, tokens, num_tokens, emitted):
  """Whether a stop sequence ends at each emitted token, bool [B, P]."""
  is_stop = jnp.zeros(emitted.shape, bool)
  if not cfg.stop_sequences:
    return is_stop
  history = max(map(len, cfg.stop_sequences)) - 1
  index = num_tokens[:, None] + jnp.arange(-history, 0)[None]
  before = jnp.take_along_axis(tokens, jnp.maximum(index, 0), axis=1)
  before = jnp.where(index >= 0, before, -1)
  window = jnp.concatenate([before, emitted], axis=1)
  for sequence in cfg.stop_sequences:
    matches = jnp.ones(emitted.shape, bool)
    for back, token in enumerate(reversed(sequence)):
      start = history - back
      matches &= window[:, start : start + emitted.shape[1]] == token
    is_stop |= matches
  return is_stop
