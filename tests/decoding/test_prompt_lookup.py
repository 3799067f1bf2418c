# SPDX-License-Identifier: Apache-2.0
"""Prompt look-up: the copies it proposes, and that they change no token."""

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
  chains as chains_lib,
  copies,
  decoder as decoder_lib,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import none, prompt_lookup

WIDTH, NGRAM, CHAINS, LENGTH = 17, 3, 2, 5
BATCH, MAX_NEW, BUCKET = 3, 19, 11
ENDS = (3, 99), ((2, 10), (7, 4, 1))
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW,
  prompt_bucket=BUCKET,
  eos_ids=ENDS[0],
  stop_sequences=ENDS[1],
)
TINY = dataclasses.replace(tiny.CONFIG, num_layers=2)
SAMPLING = {
  'greedy': config.SamplingConfig(),
  'sampled': config.SamplingConfig(temperature=1.0),
}
OPTIONS = config_drafting.DrafterConfig(
  'prompt_lookup', ngram=NGRAM, num_guesses=CHAINS
)


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def compiled_look_up():
  return jax.jit(
    functools.partial(
      copies.look_up,
      ngram=NGRAM,
      num_chains=CHAINS,
      chain_length=LENGTH,
    )
  )


def look_up(texts):
  """Chains of each row, those without a match left out."""
  padded = np.zeros((len(texts), WIDTH), np.int32)
  for row, text in enumerate(texts):
    padded[row, : len(text)] = text
  lengths = np.array([len(text) for text in texts], np.int32)
  chains = np.asarray(compiled_look_up()(padded, lengths).chains)
  return [[c.tolist() for c in row if c[0] >= 0] for row in chains]


TEXTS = st.lists(
  st.lists(st.integers(0, 2), min_size=1, max_size=WIDTH),
  min_size=3,
  max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_copies_are_the_oracles(texts):
  oracle = reference.PromptLookup(NGRAM, CHAINS, LENGTH)
  assert look_up(texts) == [oracle.chains(text) for text in texts]


def test_what_is_copied():
  assert look_up(
    [
      [7],  # nothing before it
      [7, 7],  # a repetition of one token goes on
      [1, 2, 3, 4, 5, 6, 7, 8],  # no match
      [8, 1, 2, 9, 4, 1, 2, 5, 3, 2, 8, 1, 2],  # three tokens, then two
      [5, 1, 5, 2, 5, 2, 5],  # the latest first; a period of two goes on
    ]
  ) == [
    [],
    [[7, 7, 7, 7, 7]],
    [],
    [[9, 4, 1, 2, 5], [5, 3, 2, 8, 1]],
    [[2, 5, 2, 5, 2], [1, 5, 2, 5, 2]],
  ]


def test_padding_is_never_matched():
  """The text ends in 0, and so does the padding."""
  assert look_up([[4, 0]]) == [[]]


def chain_tree(root, chains):
  drafts = chains_lib.from_chains(jnp.array(root), jnp.array(chains))
  depth = len(chains[0][0])
  return chains_lib.share_prefixes(drafts, max_depth=depth)


def test_chains_become_one_tree():
  tree = chain_tree([9, 9], [[[1, 2, 3], [1, 4, 5]], [[1, 2, 1], [-1] * 3]])
  assert tree.tokens.tolist() == [
    [9, 1, 2, 3, 1, 4, 5],
    [9, 1, 2, 1, -1, -1, -1],
  ]
  assert tree.parents.tolist() == [
    [0, 0, 1, 2, 0, 1, 5],  # the 4 hangs below the first 1
    [0, 0, 1, 2, 0, 0, 0],
  ]
  assert tree.depths.tolist() == [
    [0, 1, 2, 3, 1, 2, 3],
    [0, 1, 2, 3, 1, 1, 1],
  ]


@settings(max_examples=50, deadline=None)
@given(
  st.lists(
    st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=3, max_size=3
  ),
  st.lists(st.integers(0, 1), min_size=4, max_size=4),
)
def test_a_walk_reaches_whatever_a_chain_holds(chains, truth):
  tree = chain_tree([0], [chains])
  assert (np.asarray(tree.parents) <= np.arange(13)).all()
  token, parent = np.asarray(tree.tokens[0]), np.asarray(tree.parents[0])
  node, depth = 0, 0
  while depth < 4:
    children = [
      m for m in range(1, 13) if parent[m] == node and token[m] == truth[depth]
    ]
    if not children:
      break
    node, depth = children[0], depth + 1
  common = [
    next((i for i in range(4) if chain[i] != truth[i]), 4) for chain in chains
  ]
  assert depth == max(common)
  assert tree_lib.tree_hits(tree, jnp.array([truth]))[0] == depth


# Decoding


@functools.cache
def make_decoder(name, how, depth=None, factors=None):
  """On the table model; `factors` names the variant that is traced."""
  del factors
  tree = None if depth is None else config.TreeConfig('chain', depth=depth)
  options = config_drafting.DrafterConfig(
    'prompt_lookup', tree=tree, ngram=NGRAM, num_guesses=CHAINS
  )
  drafter = none.NoDraft()
  if name == 'prompt_lookup':
    drafter = prompt_lookup.PromptLookup(options)
  return decoder_lib.Decoder(table_lm.MODEL, drafter, CFG, SAMPLING[how])


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


@pytest.mark.parametrize('how', SAMPLING)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), PROMPTS, LIMITS)
def test_tokens_are_those_of_plain_decoding(how, seed, prompts, limits):
  params = table_lm.make_params(seed)
  got, want = (
    make_decoder(name, how, 4).generate(params, prompts, limits, seed=seed)
    for name in ('prompt_lookup', 'none')
  )
  assert got.tokens == want.tokens
  assert got.finish_reasons == want.finish_reasons


def repetitive(monkeypatch):
  """Makes the table's next token depend on the last one alone."""
  monkeypatch.setattr(table_lm, 'FACTORS', (7, 0, 0))


@pytest.mark.parametrize('how', SAMPLING)
def test_accepted_is_what_the_oracle_would_copy(monkeypatch, how):
  repetitive(monkeypatch)
  decoder = make_decoder('prompt_lookup', how, 5, 'repetitive')
  accepted, reasons = 0, set()
  for seed in range(12):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 13, n).tolist() for n in (11, 5, 1)]
    # Strong preferences, so that sampled text repeats itself too.
    params = table_lm.make_params(seed, scale=5.0)
    limits = [MAX_NEW, 1 + seed, MAX_NEW]
    result = decoder.generate(params, prompts, limits, seed=seed)
    keys = sampling.row_keys(seed, range(BATCH))
    for row, prompt in enumerate(prompts):
      want = reference.decode(
        reference.PromptLookup(NGRAM, CHAINS, 5),
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
  assert accepted > 100
  assert {'eos', 'length'} <= reasons
  assert decoder.num_compilations == 2


PROMPT = [7, 8, 9, 10, 11, 12] * 2


@functools.cache
def tiny_decoder(name, how):
  built, base, _ = tiny.model(TINY, None, None)
  drafter = none.NoDraft()
  if name == 'prompt_lookup':
    drafter = prompt_lookup.PromptLookup(OPTIONS)
  cfg = config.DecodeConfig(max_new_tokens=40, prompt_bucket=16, eos_ids=(5,))
  fns = transformer_fns.model_fns(built)
  made = decoder_lib.Decoder(fns, drafter, cfg, SAMPLING[how])
  return made, transformer_fns.Params(base)


@pytest.mark.slow
@pytest.mark.parametrize(
  'how', [pytest.param('greedy', marks=pytest.mark.slow), 'sampled']
)
def test_transformer_gives_the_same_tokens(how):
  prompts, limits = [PROMPT, [1, 2, 3], [11]], [40, 23, 38]
  got, want = (
    made.generate(params, prompts, limits, seed=3)
    for made, params in (
      tiny_decoder(name, how) for name in ('prompt_lookup', 'none')
    )
  )
  assert got.tokens == want.tokens
  assert got.finish_reasons == want.finish_reasons
  for row, prompt in enumerate(prompts):
    expected = reference.decode(
      reference.PromptLookup(NGRAM, CHAINS, prompt_lookup.DEFAULT_DEPTH),
      _replay(prompt, want.tokens[row]),
      prompt,
      limits[row],
      (5,),
      (),
    )
    assert got.accept_lengths[row] == expected[2]
  if how == 'greedy':
    assert sum(map(sum, got.accept_lengths)) > 20


def _replay(prompt, tokens):
  """What the target draws along the path that it took; -1 off its end."""
  tokens = [*tokens, *[-1] * 9]
  return lambda text: tokens[len(text) - len(prompt)]


def test_drawn_drafts_are_refused():
  options = config_drafting.DrafterConfig(
    'prompt_lookup', drafting='independent'
  )
  with pytest.raises(ValueError, match="cannot draft with 'independent'"):
    prompt_lookup.PromptLookup(options)
