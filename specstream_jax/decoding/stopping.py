# SPDX-License-Identifier: Apache-2.0
"""Where a row ends: EOS, stop sequences, its length limit.

Axis letters: B rows, P tokens a call can emit.
"""

import jax.numpy as jnp

from specstream_jax import config, typing

RUNNING, EOS, STOP, LENGTH, CACHE, NOT_FINITE = range(6)
REASONS = ('running', 'eos', 'stop', 'length', 'cache', 'not_finite')


def truncate(
  cfg: config.DecodeConfig,
  tokens: typing.Array,
  num_tokens: typing.Array,
  limits: typing.Array,
  eos_ids: typing.Array,
  emitted: typing.Array,
  count: typing.Array,
) -> tuple[typing.Array, typing.Array]:
  """Cuts what a call emitted after the first token that ends the row.

  Args:
    cfg: stop sequences; one may begin in an earlier call, not in the prompt.
    tokens: [B, max_new] int32 output so far.
    num_tokens: [B] int32 valid entries of `tokens`.
    limits: [B] int32 most tokens of each row.
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    emitted: [B, P] int32 new tokens.
    count: [B] int32 valid entries of `emitted`.

  Returns:
    The number of tokens [B] to keep, and the finish reason [B]. Where two
    reasons end a row at the same token, EOS goes before stop before length.
  """
  index = jnp.arange(emitted.shape[1])[None]
  at_limit = num_tokens[:, None] + index + 1 >= limits[:, None]
  reasons = jnp.where(at_limit, LENGTH, RUNNING)
  is_stop = _ends_stop_sequence(cfg, tokens, num_tokens, emitted)
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
