# SPDX-License-Identifier: Apache-2.0
"""Lookahead decoding: window, pool and tree, and that no token changes."""

import dataclasses
import functools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_drafting as reference
import table_lm
import tiny

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder as decoder_lib,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import lookahead, none

BATCH, MAX_NEW, BUCKET = 3, 19, 11
ENDS = (3, 99), ((2, 10), (7, 4, 1))
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW,
  prompt_bucket=BUCKET,
  eos_ids=ENDS[0],
  stop_sequences=ENDS[1],
)
ENDLESS = config.DecodeConfig(max_new_tokens=MAX_NEW, prompt_bucket=BUCKET)
TINY = dataclasses.replace(tiny.CONFIG, num_layers=2)
SAMPLING = {
  'greedy': config.SamplingConfig(),
  'sampled': config.SamplingConfig(temperature=1.0),
}
# n, W, pool, chains: usual; window of one; bigrams; more chains than pool.
SIZES = {
  'usual': (4, 3, 11, 2),
  'narrow': (3, 1, 7, 2),
  'bigrams': (2, 5, 8, 3),
  'crowded': (3, 4, 2, 3),
}


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make_options(name):
  ngram, window, pool_size, num_guesses = SIZES[name]
  return config_drafting.DrafterConfig(
    'lookahead',
    ngram=ngram,
    window=window,
    pool_size=pool_size,
    num_guesses=num_guesses,
  )


@functools.cache
def make_decoder(name, how, variant=None, cfg=CFG):
  """On the table model; `variant` names the one that is traced."""
  del variant
  drafter = none.NoDraft()
  if name != 'none':
    drafter = lookahead.Lookahead(make_options(name))
  return decoder_lib.Decoder(table_lm.MODEL, drafter, cfg, SAMPLING[how])


def window_of(name, prompts):
  """The first window of each row, as lists."""
  padded = np.zeros((len(prompts), BUCKET), np.int32)
  for row, prompt in enumerate(prompts):
    padded[row, : len(prompt)] = prompt
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  drafter = lookahead.Lookahead(make_options(name))
  return np.asarray(drafter.init((), padded, lengths).window).tolist()


def make_oracle(name, window):
  _, _, pool_size, num_guesses = SIZES[name]
  return reference.Lookahead(window, pool_size, num_guesses)


def test_the_first_window_is_made_of_the_prompt():
  prompts = [[5, 6, 7, 8, 9, 10], [4], [1, 2]]
  windows = window_of('usual', prompts)
  for prompt, window in zip(prompts, windows, strict=True):
    assert {token for row in window for token in row} <= set(prompt)
  assert len({token for row in windows[0] for token in row}) > 2
  assert window_of('usual', prompts[1:])[1] == windows[2]


GRAMS = st.lists(
  st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)),
  min_size=4,
  max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(GRAMS, min_size=1, max_size=4), st.integers(0, 1))
def test_the_pool_keeps_the_newest_of_distinct_ngrams(batches, root):
  pool, want = jnp.full((1, 5, 3), -1, jnp.int32), []
  for grams in batches:
    pool = _remember(pool, jnp.array([grams], jnp.int32))
    want = list(dict.fromkeys(grams + want))[:5]
  got = [tuple(gram) for gram in np.asarray(pool[0]).tolist()]
  assert got == want + [(-1, -1, -1)] * (5 - len(want))
  found = np.asarray(_guesses(pool, jnp.array([root]), 2))[0].tolist()
  hits = [list(gram[1:]) for gram in want if gram[0] == root][:2]
  assert found == hits + [[-1, -1]] * (2 - len(hits))


_remember = jax.jit(lookahead.remember)
_guesses = jax.jit(lookahead.guesses, static_argnums=2)


def paths_of(tree, row):
  """Token path of every used node but the root."""
  tokens, parents = np.asarray(tree.tokens[row]), np.asarray(tree.parents[row])
  paths = [()]
  for node in range(1, len(tokens)):
    assert parents[node] < node
    paths.append((*paths[parents[node]], int(tokens[node])))
    if tokens[node] >= 0:
      assert len(paths[node]) == tree.depths[row, node]
  return {path for path in paths[1:] if path[-1] >= 0}


@pytest.mark.parametrize(
  ('name', 'how'),
  [
    ('usual', 'sampled'),
    ('narrow', 'greedy'),
    pytest.param('bigrams', 'sampled', marks=pytest.mark.slow),
    ('crowded', 'greedy'),
  ],
)
def test_window_pool_and_tree_are_the_oracles(name, how):
  """Step by step, until the first row is done."""
  params = table_lm.make_params(1)
  decoder = make_decoder(name, how, cfg=ENDLESS)
  prompts = [[5, 6, 7, 8], [4], [1, 2, 0, 11, 12, 9]]
  state = decoder.start(params, prompts, seed=2)
  keys = sampling.row_keys(2, range(BATCH))
  oracles = [make_oracle(name, w) for w in window_of(name, prompts)]
  draw = [
    reference.table_next_token(params, SAMPLING[how], key, 48) for key in keys
  ]
  num_steps, max_depth = 0, decoder.setup.drafter.max_depth
  while not np.asarray(state.is_done).any():
    for row, prompt in enumerate(prompts):
      text = prompt + _output(state, row)
      paths = oracles[row].paths(text)
      assert paths_of(state.tree, row) == paths
      assert max(map(len, paths)) <= max_depth
      window, pool = (np.asarray(x[row]) for x in state.drafter_state)
      assert window.tolist() == oracles[row].window
      used = [tuple(gram) for gram in pool.tolist() if gram[0] >= 0]
      assert used == oracles[row].pool
      oracles[row].advance(text, draw[row])
    state, num_steps = decoder.advance(params, state, 1), num_steps + 1
  assert num_steps > 3


def _output(state, row):
  return np.asarray(state.tokens[row, : state.num_tokens[row]]).tolist()


def test_nodes_and_depth_are_as_documented():
  for name, (ngram, window, _, num_guesses) in SIZES.items():
    drafter = lookahead.Lookahead(make_options(name))
    assert drafter.size == (num_guesses + window) * (ngram - 1)
    assert drafter.max_depth == max(window + ngram - 3, ngram - 1)


TOKENS = st.integers(0, table_lm.VOCAB_SIZE - 1)
PROMPTS = st.lists(
  st.lists(TOKENS, min_size=1, max_size=BUCKET),
  min_size=BATCH,
  max_size=BATCH,
)
LIMITS = st.lists(
  st.one_of(st.just(MAX_NEW), st.integers(1, MAX_NEW)),
  min_size=BATCH,
  max_size=BATCH,
)


@pytest.mark.parametrize(
  ('name', 'how'),
  [('usual', 'greedy'), ('usual', 'sampled'), ('bigrams', 'greedy')],
)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**16), PROMPTS, LIMITS)
def test_tokens_are_those_of_plain_decoding(name, how, seed, prompts, limits):
  params = table_lm.make_params(seed)
  got, want = (
    make_decoder(drafter, how).generate(params, prompts, limits, seed=seed)
    for drafter in (name, 'none')
  )
  assert got.tokens == want.tokens
  assert got.finish_reasons == want.finish_reasons


@pytest.mark.parametrize(
  ('name', 'how'),
  [('usual', 'greedy'), ('usual', 'sampled'), ('bigrams', 'greedy')],
)
def test_accepted_is_what_the_oracle_would_accept(monkeypatch, name, how):
  """The next token depends on the last one alone, so that text repeats."""
  monkeypatch.setattr(table_lm, 'FACTORS', (7, 0, 0))
  decoder = make_decoder(name, how, 'repetitive')
  accepted, reasons = 0, set()
  for seed in range(8):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 13, n).tolist() for n in (11, 5, 1)]
    params = table_lm.make_params(seed, scale=5.0)
    limits = [MAX_NEW, 1 + seed, MAX_NEW]
    result = decoder.generate(params, prompts, limits, seed=seed)
    keys = sampling.row_keys(seed, range(BATCH))
    windows = window_of(name, prompts)
    for row, prompt in enumerate(prompts):
      want = reference.decode(
        make_oracle(name, windows[row]),
        reference.table_next_token(params, SAMPLING[how], keys[row], 48),
        prompt,
        limits[row],
        *ENDS,
      )
      got = (
        result.tokens[row],
        result.finish_reasons[row],
        result.accept_lengths[row],
      )
      assert got == want
      accepted += sum(want[2])
      reasons.add(want[1])
  assert accepted > 40
  assert {'eos', 'length'} <= reasons
  assert decoder.num_compilations == 2


def test_a_path_may_run_along_the_window():
  """Guesses of row 0 are accepted though the pool is empty."""
  options = make_options('usual')
  drafter = lookahead.Lookahead(options)
  window = jnp.array([[[9, 5, 6], [1, 2, 3], [4, 7, 8]]])
  chains = jnp.full((1, 2, 3), -1)
  tree = drafter._tree(jnp.array([9]), window, chains)
  hits = tree_lib.tree_hits(tree, jnp.array([[5, 6, 3, 8]]))
  assert hits.tolist() == [4] == [drafter.max_depth]


@functools.cache
def tiny_decoder(name, how):
  built, base, _ = tiny.model(TINY, None, None)
  drafter = none.NoDraft()
  if name == 'lookahead':
    drafter = lookahead.Lookahead(config_drafting.DrafterConfig('lookahead'))
  cfg = config.DecodeConfig(max_new_tokens=40, prompt_bucket=16, eos_ids=(5,))
  fns = transformer_fns.model_fns(built)
  made = decoder_lib.Decoder(fns, drafter, cfg, SAMPLING[how])
  return made, transformer_fns.Params(base)


@pytest.mark.slow
@pytest.mark.parametrize(
  'how', [pytest.param('greedy', marks=pytest.mark.slow), 'sampled']
)
def test_transformer_gives_the_same_tokens(how):
  prompts = [[7, 8, 9, 10, 11, 12] * 2, [1, 2, 3], [11]]
  got, want = (
    made.generate(params, prompts, [40, 23, 38], seed=3)
    for made, params in (
      tiny_decoder(name, how) for name in ('lookahead', 'none')
    )
  )
  assert got.tokens == want.tokens
  assert got.finish_reasons == want.finish_reasons
  if how == 'greedy':
    assert sum(map(sum, got.accept_lengths)) > 10


@pytest.mark.parametrize(
  'settings',
  [{'verifier': 'typical'}, {'drafting': 'independent'}],
)
def test_what_leaves_no_draws_is_refused(settings):
  options = config_drafting.DrafterConfig('lookahead', **settings)
  with pytest.raises(ValueError, match='window is made of the tokens'):
    lookahead.Lookahead(options)
