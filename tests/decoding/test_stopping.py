# SPDX-License-Identifier: Apache-2.0
"""Where a row ends, against the oracle."""

import functools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import reference_decoding as reference

from specstream_jax import config
from specstream_jax.decoding import stopping

CFG = config.DecodeConfig(
  max_new_tokens=11,
  eos_ids=(4,),
  stop_sequences=((5,), (0, 0, 2), (2, 3), (1, 1, 3), (0, 1)),
)
_truncate = jax.jit(functools.partial(stopping.truncate, CFG))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncate(data):
  tokens = st.integers(0, 5)
  before = data.draw(st.lists(st.sampled_from([0, 2]), max_size=5))
  emitted = data.draw(st.lists(tokens, min_size=1, max_size=5))
  limit = data.draw(st.integers(len(before) + 1, 11))
  buffer = np.full((1, 11), 3, np.int32)
  buffer[0, : len(before)] = before
  padded = np.full((1, 5), 4, np.int32)
  padded[0, : len(emitted)] = emitted
  as_row = lambda n: jnp.array([n], jnp.int32)
  ignores_eos = data.draw(st.booleans())
  kept, reason = _truncate(
    buffer,
    as_row(len(before)),
    as_row(limit),
    jnp.array([[-1 if ignores_eos else 4, 99]]),
    padded,
    as_row(len(emitted)),
  )
  eos_ids = () if ignores_eos else CFG.eos_ids
  want, why = reference.truncate(
    before, emitted, limit, eos_ids, CFG.stop_sequences
  )
  assert len(before) + int(kept[0]) == len(want)
  assert stopping.REASONS[int(reason[0])] == why


def _ends(eos_ids, text_states=None, emitted=(0, 2, 4, 0)):
  """(kept, reason) of a row that nothing else ends."""
  kept, reason = stopping.truncate(
    config.DecodeConfig(max_new_tokens=11),
    jnp.zeros((1, 11), jnp.int32),
    jnp.array([0]),
    jnp.array([11]),
    jnp.array([eos_ids]),
    jnp.array([emitted], jnp.int32),
    jnp.array([len(emitted)]),
    None if text_states is None else jnp.array([text_states]),
  )
  return int(kept[0]), stopping.REASONS[int(reason[0])]


def test_any_of_several_eos_ids_ends_a_row():
  assert _ends([4, 2]) == (2, 'eos')
  assert _ends([4, 7]) == (3, 'eos')
  assert _ends([7, -1]) == (4, stopping.REASONS[stopping.RUNNING])


def test_a_stop_text_ends_a_row_where_it_is_whole():
  found, no = stopping.FOUND, stopping.ANYWHERE
  assert _ends([-1, -1], [no, no, found, found]) == (3, 'stop')
  assert _ends([-1, -1], [no] * 4)[0] == 4
  # EOS goes first at the same token, and a stop before it ends the row.
  assert _ends([4, 7], [no, no, found, no]) == (3, 'eos')
  assert _ends([4, 7], [no, found, no, no]) == (2, 'stop')


class _Skips:
  """What `begin` looks at: the token 9 adds no text."""

  is_skipped = np.arange(10) == 9


def test_text_begins_after_the_first_token_that_adds_some():
  states = stopping.StopTexts.begin(_Skips(), [[9], [9, 9], [9, 3], [3], []])
  first, later = stopping.START, stopping.ANYWHERE
  assert states.tolist() == [first, first, later, later, first]


def test_every_token_has_its_class():
  """A row of the table for each state, a column for each of three classes."""
  table = stopping.StopTexts(
    jnp.array([1, 3, 1, 1, 3, 1, 2, 2, 2, 1, 3, 2], jnp.int16),
    jnp.array([0, 1, 2]),
    jnp.array(3),
    jnp.array([False] * 3),
  )
  # Token 1 begins the stop, token 2, the last of the vocabulary, ends it.
  emitted = jnp.array([[1, 2, 0], [2, 1, 1], [0, 1, 2]])
  states = table.follow(jnp.array([0, 3, 1]), emitted)
  assert states.tolist() == [[3, 2, 2], [2, 2, 2], [1, 3, 2]]
