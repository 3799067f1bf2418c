# SPDX-License-Identifier: Apache-2.0
"""Same tokens: speculative equals autoregressive equals the numpy oracle.

The model is a table behind a real cache (`table_lm`), so masks, slots, commits
and leaves are all exercised. Every decoder runs one shape bucket and compiles
once; prompts, lengths, limits, weights and trees vary.
"""

import dataclasses
import functools

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import reference_decoding as reference
import table_lm

from specstream_jax import config, sampling
from specstream_jax.decoding import decoder as decoder_lib, stopping
from specstream_jax.drafters import none, streams

BATCH, MAX_NEW, BUCKET = 3, 17, 11
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW,
  prompt_bucket=BUCKET,
  eos_ids=(3, 99),
  stop_sequences=((5,), (2, 10), (7, 4, 1)),
)
SAMPLING = {
  'greedy': config.SamplingConfig(),
  'sampled': config.SamplingConfig(temperature=0.8, top_k=6, top_p=0.9),
}
CHOICES = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
TREES = {
  'full': config.TreeConfig('full', depth=2, branching=3),
  'chain': config.TreeConfig('chain', depth=3),
  'fixed': config.TreeConfig('fixed', choices=CHOICES),
  'best_first': config.TreeConfig(
    'best_first', depth=3, branching=3, num_nodes=7
  ),
}


@functools.cache
def make_decoder(drafter, how, cfg=CFG):
  """One decoder per kind, so that each compiles once for the whole file."""
  if drafter in TREES:
    drafts = streams.Streams(TREES[drafter], table_lm.NUM_STREAMS)
  else:
    drafts = {'none': none.NoDraft, 'random': table_lm.RandomDrafter}[drafter]()
  return decoder_lib.Decoder(table_lm.MODEL, drafts, cfg, SAMPLING[how])


TOKENS = st.integers(0, table_lm.VOCAB_SIZE - 1)
PROMPTS = st.lists(
  st.lists(TOKENS, min_size=1, max_size=BUCKET),
  min_size=BATCH,
  max_size=BATCH,
)
PARAMS = st.builds(
  table_lm.make_params,
  st.integers(0, 2**16),
  quality=st.sampled_from([0.0, 0.6, 1.0]),
)
LIMITS = st.lists(
  st.one_of(st.just(MAX_NEW), st.integers(1, MAX_NEW)),
  min_size=BATCH,
  max_size=BATCH,
)


def check_accounts(result):
  for row, tokens in enumerate(result.tokens):
    lengths = result.accept_lengths[row]
    assert len(lengths) == result.calls[row]
    assert len(tokens) == 1 + len(lengths) + sum(lengths)
    assert min(lengths, default=0) >= 0


@pytest.mark.parametrize('how', SAMPLING)
@settings(max_examples=12, deadline=None)
@given(PARAMS, PROMPTS, LIMITS, st.integers(0, 2**16))
def test_autoregressive_is_the_oracle(how, params, prompts, limits, seed):
  result = make_decoder('none', how).generate(
    params, prompts, limits, seed=seed
  )
  cfg, keys = SAMPLING[how], sampling.row_keys(seed, range(BATCH))
  for row, prompt in enumerate(prompts):

    def next_token(tokens, key=keys[row]):
      logits = table_lm.next_logits(params, tokens)
      if cfg.temperature:
        logits = reference.process_logits(
          logits, cfg.temperature, cfg.top_k, cfg.top_p
        )
        key = jax.random.fold_in(key, len(tokens))
        logits = logits + jax.random.gumbel(key, logits.shape)
      return int(np.argmax(logits))

    want = reference.autoregressive(
      next_token, prompt, limits[row], CFG.eos_ids, CFG.stop_sequences
    )
    assert (result.tokens[row], result.finish_reasons[row]) == want
  check_accounts(result)


@pytest.mark.parametrize(
  ('drafter', 'how'),
  [
    ('full', 'greedy'),
    ('chain', 'greedy'),
    ('fixed', 'greedy'),
    ('best_first', 'greedy'),
    ('best_first', 'sampled'),
    ('random', 'sampled'),
  ],
)
@settings(max_examples=15, deadline=None)
@given(PARAMS, PROMPTS, LIMITS, st.integers(0, 2**16))
def test_speculative_is_autoregressive(
  drafter, how, params, prompts, limits, seed
):
  speculative, plain = make_decoder(drafter, how), make_decoder('none', how)
  got = speculative.generate(params, prompts, limits, seed=seed)
  want = plain.generate(params, prompts, limits, seed=seed)
  assert got.tokens == want.tokens
  assert got.finish_reasons == want.finish_reasons
  check_accounts(got)
  histogram = got.accept_histogram(speculative.setup.path_length)
  assert len(histogram) == speculative.setup.path_length
  assert histogram.sum() == got.calls.sum()


def _prompts(seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 13, size=n).tolist() for n in (2, 11, 5)]


def test_good_drafts_are_accepted():
  """Streams that know the greedy continuation fill every call but the last."""
  num_calls = num_accepted = 0
  for seed in range(5):
    params = table_lm.make_params(seed, quality=1.0)
    result = make_decoder('chain', 'greedy').generate(params, _prompts(seed))
    assert all(n == 3 for row in result.accept_lengths for n in row[:-1])
    num_calls += result.calls.sum()
    num_accepted += sum(map(sum, result.accept_lengths))
    assert make_decoder('none', 'greedy').generate(
      params, _prompts(seed)
    ).tokens_per_call() in (0.0, 1.0)
  assert num_accepted > 1.5 * num_calls


def test_one_compilation_for_every_prompt_limit_and_tree():
  for drafter, how in [('best_first', 'sampled'), ('random', 'sampled')]:
    decoder = make_decoder(drafter, how)
    for seed in range(3):
      params = table_lm.make_params(seed, quality=0.7)
      decoder.generate(params, _prompts(seed), 1 + seed, seed=seed)
      list(decoder.stream(params, _prompts(seed), steps=1 + seed))
    assert decoder.num_compilations == 2  # prompt pass and loop


def test_rows_do_not_depend_on_their_batch():
  params = table_lm.make_params(2, quality=0.8)
  decoder = make_decoder('best_first', 'sampled')
  prompts = _prompts(3)
  together = decoder.generate(params, prompts, seed=7, row_ids=[4, 8, 6])
  shuffled = decoder.generate(
    params, [prompts[2], prompts[0], [1]], seed=7, row_ids=[6, 4, 0]
  )
  assert shuffled.tokens[:2] == [together.tokens[2], together.tokens[0]]
  assert shuffled.accept_lengths[:2] == [
    together.accept_lengths[2],
    together.accept_lengths[0],
  ]
  alone = decoder_lib.Decoder(
    table_lm.MODEL, decoder.setup.drafter, CFG, SAMPLING['sampled']
  )
  for row, row_id in enumerate([4, 8, 6]):
    single = alone.generate(params, [prompts[row]], seed=7, row_ids=[row_id])
    assert single.tokens == [together.tokens[row]]
  assert alone.num_compilations == 2


DEEP = config.TreeConfig('best_first', depth=16, branching=2, num_nodes=20)


@pytest.mark.slow
@pytest.mark.parametrize(
  'tree',
  [
    DEEP,
    dataclasses.replace(DEEP, depth=8, num_nodes=12),
    config.TreeConfig('chain', depth=16),
  ],
  ids=['few nodes', 'shallower', 'chain'],
)
def test_sixteen_streams_are_accepted_as_deep_as_the_tree_goes(tree):
  cfg = config.DecodeConfig(max_new_tokens=60, prompt_bucket=BUCKET)
  decoder = decoder_lib.Decoder(
    table_lm.MODEL, streams.Streams(tree, 16), cfg, SAMPLING['greedy']
  )
  plain = decoder_lib.Decoder(
    table_lm.MODEL, none.NoDraft(), cfg, SAMPLING['greedy']
  )
  assert decoder.setup.path_length == 1 + tree.max_depth
  prompts, deepest = [[1, 2, 3], [4], [5, 6]], []
  for quality in (0.0, 0.7, 1.0):
    params = table_lm.make_params(
      3, quality=quality, num_streams=16, scale=30.0
    )
    got = decoder.generate(params, prompts)
    assert got.tokens == plain.generate(params, prompts).tokens
    check_accounts(got)
    histogram = got.accept_histogram(decoder.setup.path_length)
    assert sum(histogram) == sum(got.calls)
    deepest.append(np.flatnonzero(histogram).max())
  assert deepest[0] < deepest[2] == tree.max_depth


@pytest.mark.parametrize('steps', [1, 3])
def test_stream_yields_what_generate_returns(steps):
  params = table_lm.make_params(5, quality=0.9)
  decoder = make_decoder('best_first', 'greedy')
  want = decoder.generate(params, _prompts(2), [17, 1, 9])
  rows, longest = [[] for _ in range(BATCH)], 0
  for row, tokens in decoder.stream(
    params, _prompts(2), [17, 1, 9], steps=steps
  ):
    assert tokens
    longest = max(longest, len(tokens))
    rows[row] += tokens
  assert rows == want.tokens
  assert 1 < longest <= steps * decoder.setup.path_length


def test_committed_cache_is_the_cache_of_the_tokens():
  """All but the last token is committed, whatever was drafted and rejected."""
  params = table_lm.make_params(6, quality=0.6)
  decoder, prompts = make_decoder('random', 'sampled'), _prompts(4)
  state = decoder.start(params, prompts)
  for _ in range(5):
    _check_cache(jax.device_get(_without_keys(state)), prompts)
    state = decoder.advance(params, state, 2)
  assert np.array(state.num_tokens).max() > 5


def _without_keys(state):
  return state.cache, state.tokens, state.num_tokens


def _check_cache(state, prompts):
  cache, tokens, num_tokens = state
  for row, prompt in enumerate(prompts):
    text = prompt + tokens[row, : num_tokens[row]].tolist()
    length = cache.length[row]
    assert length == len(text) - 1
    want = np.stack([text[:-1], np.arange(length)], axis=1)
    np.testing.assert_array_equal(cache.keys[0][row, 0, :length], want)
    np.testing.assert_array_equal(cache.values[0][row, 0, :length], -want)


def test_a_full_cache_ends_the_row_only():
  cfg = config.DecodeConfig(
    max_new_tokens=MAX_NEW, prompt_bucket=BUCKET, cache_length=18
  )
  params = table_lm.make_params(7, quality=0.8)
  prompts = _prompts(5)
  result = make_decoder('chain', 'greedy', cfg).generate(params, prompts)
  for row, prompt in enumerate(prompts):

    def next_token(tokens):
      return int(np.argmax(table_lm.next_logits(params, tokens)))

    want, _ = reference.autoregressive(next_token, prompt, MAX_NEW, (), ())
    got = result.tokens[row]
    assert got == want[: len(got)]
    # A call needs a slot per node; the row stops when they no longer fit.
    num_committed = len(prompt) + len(got) - 1
    assert (num_committed + 4 > 18) == (result.finish_reasons[row] == 'cache')
    assert result.finish_reasons[row] in ('cache', 'length')
  assert 'cache' in result.finish_reasons


@pytest.mark.parametrize(
  ('drafter', 'how'),
  [('best_first', 'greedy'), ('best_first', 'sampled'), ('full', 'greedy')],
)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_broken_streams_break_no_token(drafter, how, value):
  params = table_lm.make_params(3, quality=0.5)
  params['noise'] = params['noise'].at[:, ::2, 1::3].set(value)
  run = lambda name: make_decoder(name, how).generate(params, _prompts(1))
  assert run(drafter).tokens == run('none').tokens


@pytest.mark.parametrize('how', SAMPLING)
def test_rows_end_before_logits_without_an_order(how):
  """Accepted tokens stand; nothing is drawn from NaN, inf or -inf alone."""
  plain, fast = make_decoder('none', how), make_decoder('best_first', how)
  endings = []
  for seed, value in enumerate((np.nan, np.inf, -np.inf)):
    params = table_lm.make_params(seed, quality=0.9)
    broken = (
      params['table']
      .at[seed::7]
      .set(params['table'][seed::7].at[:, :: 1 if value < 0 else 5].set(value))
    )
    params = params | {'table': broken}
    states = [
      made.advance(params, made.start(params, _prompts(seed), seed=seed))
      for made in (plain, fast)
    ]
    want, got = jax.device_get([
      (s.tokens, s.num_tokens, s.finish_reason) for s in states
    ])  # fmt: skip
    for one, other in zip(got, want, strict=True):
      np.testing.assert_array_equal(one, other)
    endings += [stopping.REASONS[i] for i in want[2]]
    if 'not_finite' in endings[-BATCH:]:
      row = endings[-BATCH:].index('not_finite')
      count = want[1][row]
      with pytest.raises(ValueError, match=f'prompt {row} after {count} new'):
        fast.generate(params, _prompts(seed), seed=seed)
  assert endings.count('not_finite') > 4 and want[1].max() > 1
