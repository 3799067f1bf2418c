# SPDX-License-Identifier: Apache-2.0
"""What is kept of prompts, and what goes when there is no room."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from specstream_jax.decoding import prefixes
from specstream_jax.modeling import cache as cache_lib

CHUNK = 3


def _prompt(*tokens):
  return np.array(tokens, np.int32)


def _fill(made, owner, prompt):
  for number, key in enumerate(made.keys(owner, prompt)):
    made.make_room()
    made.add(key, (owner, number))


def _find(made, owner, prompt):
  return made.find(made.keys(owner, prompt), len(prompt))


def test_chunks_are_found_from_the_first_on_as_far_as_prompts_agree():
  made = prefixes.Prefixes(1000, CHUNK, 10)
  _fill(made, 0, _prompt(1, 2, 3, 4, 5, 6, 7, 8))
  # The last token is always read, and with it its chunk.
  assert len(made.keys(0, _prompt(1, 2, 3))) == 0
  assert _find(made, 0, _prompt(1, 2, 3, 9)) == [(0, 0)]
  assert _find(made, 0, _prompt(1, 2, 3, 4, 5, 6)) == [(0, 0)]
  assert _find(made, 0, _prompt(1, 2, 3, 4, 5, 6, 9)) == [(0, 0), (0, 1)]
  assert _find(made, 0, _prompt(1, 2, 4, 4, 5, 6, 9)) == []
  # The same tokens after others have other keys and values.
  assert _find(made, 0, _prompt(4, 5, 6, 9)) == []
  assert made.counts == prefixes.Counts(5, 3, 4 + 6 + 7 + 7 + 4, 3 + 3 + 6, 20)


def test_everybody_has_their_own():
  made = prefixes.Prefixes(1000, CHUNK, 10)
  _fill(made, 1, _prompt(1, 2, 3, 4))
  assert _find(made, 2, _prompt(1, 2, 3, 4)) == []
  assert _find(made, 1, _prompt(1, 2, 3, 4)) == [(1, 0)]


def test_what_was_not_used_for_longest_goes_and_ends_before_beginnings():
  made = prefixes.Prefixes(39, CHUNK, 10)
  assert made.most_bytes == 30
  long, other = _prompt(1, 2, 3, 4, 5, 6, 7), _prompt(9, 9, 9, 9)
  _fill(made, 0, long)
  _fill(made, 0, other)
  assert len(_find(made, 0, long)) == 2
  _fill(made, 0, _prompt(8, 8, 8, 8))
  assert _find(made, 0, other) == []
  assert len(_find(made, 0, long)) == 2
  _fill(made, 0, other)
  _fill(made, 0, _prompt(7, 7, 7, 7))
  assert len(_find(made, 0, long)) == 1
  assert made.counts.num_bytes == 30


def test_no_room_is_off():
  made = prefixes.Prefixes(9, CHUNK, 10)
  assert made.most_bytes == 0
  assert made.keys(0, _prompt(1, 2, 3, 4)) == []


class _Model:
  """Two layers of 2 heads of 5; half as many bytes a value."""

  @staticmethod
  def init_cache(rows: int, slots: int) -> cache_lib.Cache:
    layers = lambda dtype: (jnp.zeros((rows, 2, slots, 5), dtype),) * 2
    length = jnp.zeros(rows, jnp.int32)
    return cache_lib.Cache(layers(jnp.float32), layers(jnp.float16), length)


def test_bytes_of_a_chunk_by_hand():
  model: Any = _Model
  # 30 numbers a layer: keys of 4 bytes and values of 2.
  assert prefixes.chunk_bytes(model, CHUNK) == 2 * 30 * 4 + 2 * 30 * 2
