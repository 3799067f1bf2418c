# SPDX-License-Identifier: Apache-2.0
"""What the decoder refuses, before anything is compiled."""

import jax
import numpy as np
import pytest
import table_lm

from specstream_jax import config
from specstream_jax.decoding import decoder as decoder_lib
from specstream_jax.drafters import none, streams


def _decoder(drafter=None, **kwargs):
  cfg = config.DecodeConfig(max_new_tokens=7, prompt_bucket=5, **kwargs)
  return decoder_lib.Decoder(table_lm.MODEL, drafter or none.NoDraft(), cfg)


@pytest.mark.parametrize(
  ('prompts', 'max_new', 'message'),
  [
    ([], None, 'no prompts; give every row at least one token'),
    ([[1], []], None, 'prompt 1 is empty; give every row'),
    ([[1]], 0, 'max_new is 0; accepted: 1 to .* which is 7'),
    ([[1], [2]], [3, 8], 'max_new is 8; accepted: 1 to'),
    ([[1], [2]], [3], 'max_new has 1 limits for 2 prompts; give one'),
  ],
)
def test_bad_requests(prompts, max_new, message):
  decoder = _decoder()
  with pytest.raises(ValueError, match=message):
    decoder.generate({}, prompts, max_new)
  assert decoder.num_compilations == 0


@pytest.mark.parametrize(
  ('sampling', 'message'),
  [
    ([config.SamplingConfig()], 'sampling has 1 settings for 2 prompts; give'),
    (
      config.SamplingConfig(min_new_tokens=5),
      'min_new_tokens is 5 but at most 4 new tokens are asked for; use min',
    ),
  ],
)
def test_bad_sampling(sampling, message):
  decoder = _decoder()
  with pytest.raises(ValueError, match=message):
    decoder.generate({}, [[1], [2]], [5, 4], sampling=sampling)
  assert decoder.num_compilations == 0


def test_settings_of_a_call_go_before_those_of_the_decoder():
  params, prompts = table_lm.make_params(0), [[1, 2], [3]]
  warm = config.SamplingConfig(temperature=1.5)
  cfg = config.DecodeConfig(max_new_tokens=7, prompt_bucket=5)
  own = decoder_lib.Decoder(table_lm.MODEL, none.NoDraft(), cfg, warm)
  other, run = (
    _decoder(),
    lambda d, **named: d.generate(params, prompts, seed=1, **named).tokens,
  )
  greedy = config.SamplingConfig()
  assert run(own) == run(other, sampling=warm) != run(other)
  assert run(own, sampling=greedy) == run(other) == run(other, sampling=greedy)
  mixed = run(own, sampling=[greedy, warm])
  assert mixed == [run(other)[0], run(own)[1]]
  # A greedy batch, and all that is not.
  assert own.num_compilations == other.num_compilations == 4


def test_accounts_by_hand():
  result = decoder_lib.DecodeResult(
    [[7] * 6, [7] * 2, [7]],
    np.array([2, 1, 0]),
    [[2, 1], [0], []],
    ['length', 'eos', 'eos'],
    0.25,
    0.5,
  )
  # Three calls emit 3, 2 and 1 tokens.
  assert result.tokens_per_call() == 2.0
  assert result.accept_histogram(4).tolist() == [1, 1, 1, 0]
  nothing = result._replace(calls=np.array([0]), accept_lengths=[[]])
  assert nothing.tokens_per_call() == 0.0
  assert nothing.accept_histogram(2).tolist() == [0, 0]


def test_prompt_longer_than_the_cache():
  drafter = streams.Streams(config.TreeConfig('chain', depth=3), 3)
  decoder = _decoder(drafter, cache_length=13)
  message = (
    'prompt 1 has 10 tokens and the draft tree 4 nodes but the cache has 13 '
    'slots; use prompts <= 9 tokens or cache_length >= 14'
  )
  with pytest.raises(ValueError, match=message):
    decoder.generate({}, [[1], [1] * 10])


def test_the_longest_row_must_fit_into_the_positions():
  cfg = config.DecodeConfig(max_new_tokens=7, prompt_bucket=5)
  decoder = decoder_lib.Decoder(
    table_lm.MODEL, none.NoDraft(), cfg, most_positions=9
  )
  with pytest.raises(ValueError, match=r'come to 10 positions, but .* only 9'):
    decoder.generate({}, [[1], [1] * 5, [1]], [7, 5, 1])
  assert decoder.num_compilations == 0


def test_memory_is_asked_for_once_for_each_size(monkeypatch):
  asked = []
  spy = lambda what, num_bytes, *_, **named: asked.append((what, num_bytes))
  monkeypatch.setattr(decoder_lib.memory, 'check', spy)
  decoder = _decoder()
  for lengths in ([1, 5], [3, 3], [6, 1], [2, 2]):
    decoder._sizes(lengths)
  names = 'the keys and values of 2 rows of {} positions'
  # Prompts of 5 and of 10, 7 new tokens, the root.
  assert [what for what, _ in asked] == [names.format(n) for n in (13, 18)]
  cache = table_lm.MODEL.init_cache(2, 13)
  assert asked[0][1] == sum(x.nbytes for x in jax.tree.leaves(cache))


def test_tree_deeper_than_the_streams():
  with pytest.raises(ValueError, match='depth 4 but the adapter has 3'):
    streams.Streams(config.TreeConfig('chain', depth=4), 3)


def test_sizes_are_padded_to_the_bucket():
  drafter = streams.Streams(config.TreeConfig('chain', depth=3), 3)
  assert _decoder(drafter)._sizes([1, 6]) == (10, 10 + 7 + 4)
  assert _decoder(drafter, cache_length=13)._sizes([6]) == (10, 13)
  assert _decoder(drafter, cache_length=9)._sizes([5]) == (5, 9)


def test_the_state_that_goes_on_is_consumed():
  """Two caches at once would be twice the memory, or a copy with every step."""
  decoder, params = _decoder(), table_lm.make_params(0)
  state = decoder.start(params, [[1, 2], [3]])
  advanced = decoder.advance(params, state, 1)
  assert state.tokens.is_deleted() and not advanced.tokens.is_deleted()
  assert all(x.is_deleted() for x in jax.tree.leaves(state.cache))
