# SPDX-License-Identifier: Apache-2.0
"""A second model as the drafter: same tokens, and an own cache that is right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder,
  transformer_fns,
  verifiers,
)
from specstream_jax.drafters import draft_model, none
from specstream_jax.modeling import params as params_lib

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
LIMITS = [23, 9, 17]
TREES = {
  'chain': config.TreeConfig('chain', depth=3),
  'full': config.TreeConfig('full', depth=3, branching=2),
  'fixed': config.TreeConfig(
    'fixed', choices=((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0))
  ),
  'best_first': config.TreeConfig('best_first', 3, 3, 8),
  'chain_beam': config.TreeConfig('best_first', 3, 3, 4),
}
DECODE = config.DecodeConfig(
  max_new_tokens=23, prompt_bucket=8, eos_ids=(5,), stop_sequences=((7, 7),)
)
ENDLESS = config.DecodeConfig(max_new_tokens=23, prompt_bucket=8)
GREEDY = config.SamplingConfig()
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)
TARGET_CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=2)
DRAFT_CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=1)


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def draft_weights(kind):
  """(built, weights): the target itself, or its first layer."""
  built, base, _ = tiny.model(TARGET_CONFIG, None, None)
  if kind == 'same':
    return built, base
  flat = {
    path: leaf
    for path, leaf in params_lib.flatten(base).items()
    if not path.startswith('layers/1')
  }
  return tiny.model(DRAFT_CONFIG, None, None)[0], params_lib.unflatten(flat)


@functools.cache
def make(tree, how=GREEDY, kind='small', decode=DECODE, **options):
  """A decoder on the tiny model with a draft model, and the weights."""
  built, base, _ = tiny.model(TARGET_CONFIG, None, None)
  fns = transformer_fns.model_fns(built)
  draft_built, weights = draft_weights(kind)
  cfg = config_drafting.DrafterConfig('draft_model', **options)
  drafter = draft_model.DraftModel(
    transformer_fns.model_fns(draft_built), tree, decode, cfg
  )
  made = decoder.Decoder(
    fns, drafter, decode, how, verifier=verifiers.make(cfg)
  )
  return made, transformer_fns.Params(base, drafter=weights)


@functools.cache
def plain(how=GREEDY, decode=DECODE):
  built, base, _ = tiny.model(TARGET_CONFIG, None, None)
  fns = transformer_fns.model_fns(built)
  made = decoder.Decoder(fns, none.NoDraft(), decode, how)
  weights = transformer_fns.Params(base)
  return made.generate(weights, PROMPTS, LIMITS, seed=3)


@pytest.mark.parametrize(
  ('name', 'how'),
  [
    pytest.param('chain', SAMPLED, marks=pytest.mark.slow),
    pytest.param('fixed', GREEDY, marks=pytest.mark.slow),
    pytest.param('best_first', GREEDY, marks=pytest.mark.slow),
    pytest.param('best_first', SAMPLED, marks=pytest.mark.slow),
  ],
)
def test_tokens_equal_plain_decoding(name, how):
  made, weights = make(TREES[name], how)
  result = made.generate(weights, PROMPTS, LIMITS, seed=3)
  assert result.tokens == plain(how).tokens
  assert result.finish_reasons == plain(how).finish_reasons
  assert sum(map(sum, result.accept_lengths)) > 0
  before = made.num_compilations
  made.generate(weights, PROMPTS[::-1], LIMITS[::-1], seed=4)
  assert made.num_compilations == before


def test_the_cases_above_end_in_different_ways():
  reasons = plain().finish_reasons + plain(SAMPLED).finish_reasons
  assert {'eos', 'length'} <= set(reasons)
  assert len({len(row) for row in plain().tokens}) == 3


@pytest.mark.parametrize(
  ('name', 'how'),
  [pytest.param('chain', SAMPLED, marks=pytest.mark.slow), ('full', GREEDY)],
)
def test_the_target_as_its_own_drafter_is_always_right(name, how):
  """Any slip in cache, mask, slot or position would cost a draft."""
  made, weights = make(TREES[name], how, 'same', ENDLESS)
  result = made.generate(weights, PROMPTS, LIMITS, seed=3)
  assert result.tokens == plain(how, ENDLESS).tokens
  for row, limit in enumerate(LIMITS):
    *calls, last = result.accept_lengths[row]
    assert calls == [3] * len(calls)
    assert last == limit - 1 - 4 * len(calls) - 1


@pytest.mark.slow
def test_without_the_targets_noise_fewer_drafts_are_right():
  coupled, weights = make(TREES['chain'], SAMPLED, 'same', ENDLESS)
  alone, _ = make(TREES['chain'], SAMPLED, 'same', ENDLESS, couple_noise=False)
  found = [made.generate(weights, PROMPTS, seed=3) for made in (coupled, alone)]
  assert found[0].tokens == found[1].tokens
  assert found[0].calls.sum() < found[1].calls.sum()


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch():
  made, weights = make(TREES['best_first'], SAMPLED)
  together = made.generate(weights, PROMPTS, LIMITS, seed=3)
  for row, prompt in enumerate(PROMPTS):
    single = made.generate(
      weights, [prompt], LIMITS[row], seed=3, row_ids=[row]
    )
    assert single.tokens == [together.tokens[row]]
    assert single.accept_lengths == [together.accept_lengths[row]]


def test_committed_draft_cache_equals_a_fresh_pass():
  """Also of rows that are done, while the others go on."""
  made, weights = make(TREES['best_first'])
  state = made.start(weights, PROMPTS, [23, 2, 17])
  state = made.advance(weights, state, 4)
  assert bool(state.is_done[1]) and not bool(state.is_done.all())
  texts = [
    prompt + np.asarray(tokens[:num]).tolist()
    for prompt, tokens, num in zip(PROMPTS, state.tokens, state.num_tokens)
  ]
  cache = state.drafter_state
  assert cache.length.tolist() == list(map(len, texts))
  fresh = made.start(weights, texts).drafter_state
  pairs = zip(cache.keys + cache.values, fresh.keys + fresh.values)
  for got, want in pairs:
    for row, text in enumerate(texts):
      np.testing.assert_allclose(
        got[row, :, : len(text)], want[row, :, : len(text)], atol=3e-5
      )


def test_a_full_target_cache_ends_the_row_only():
  decode = dataclasses.replace(ENDLESS, cache_length=18)
  made, weights = make(TREES['best_first'], decode=decode)
  result = made.generate(weights, PROMPTS)
  whole = plain_endless()
  for got, want in zip(result.tokens, whole, strict=True):
    assert got == want[: len(got)]
  assert 'cache' in result.finish_reasons


@functools.cache
def plain_endless():
  built, base, _ = tiny.model(TARGET_CONFIG, None, None)
  fns = transformer_fns.model_fns(built)
  made = decoder.Decoder(fns, none.NoDraft(), ENDLESS)
  return made.generate(transformer_fns.Params(base), PROMPTS).tokens


# What is proposed


def propose(tree, how=GREEDY, seed=3, **options):
  """The first tree for `PROMPTS`, and the text up to each root."""
  # A row that has ended has no drafts.
  made, weights = make(tree, how, decode=ENDLESS, **options)
  state = made.start(weights, PROMPTS, seed=seed)
  first = np.asarray(state.tokens[:, 0]).tolist()
  texts = [[*p, t] for p, t in zip(PROMPTS, first, strict=True)]
  return jax.device_get(state.tree), texts


@functools.cache
def _whole_pass():
  """(weights, text [1, T]) -> the draft model's logits [1, T, V]."""
  fns = transformer_fns.model_fns(draft_weights('small')[0])

  def run(weights, tokens):
    length = tokens.shape[1]
    forward = fns.forward(
      transformer_fns.Params(weights),
      tokens,
      jnp.arange(length)[None],
      jnp.tri(length, dtype=bool)[None],
      fns.init_cache(1, length),
      with_streams=False,
    )
    return fns.logits(transformer_fns.Params(weights), forward.hidden)

  return jax.jit(run)


@functools.cache
def next_logits(text):
  """Draft model's logits [V] after `text`, from a pass over all of it."""
  padded = np.zeros((1, 16), np.int32)
  padded[0, : len(text)] = text
  logits = _whole_pass()(draft_weights('small')[1], padded)
  return np.asarray(logits)[0, len(text) - 1]


def log_softmax(logits):
  logits = np.float64(logits)
  return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def path_of(tree, row, node):
  """Tokens from below the root to `node`."""
  path = []
  while node:
    path.append(int(tree.tokens[row, node]))
    node = tree.parents[row, node]
  return path[::-1]


def test_a_full_tree_holds_the_best_tokens_under_every_node():
  tree, texts = propose(TREES['full'])
  for row, text in enumerate(texts):
    for node in range(7):  # the nodes that have children
      children = np.flatnonzero(tree.parents[row] == node)
      children = children[children > 0]
      logits = next_logits(tuple(text + path_of(tree, row, node)))
      assert tree.tokens[row, children].tolist() == (
        np.argsort(-logits)[:2].tolist()
      )


def best_first(text, depth, k, num_drafts):
  """Paths by joint probability; the k best of each level are extended."""
  level, candidates = [((), 0.0)], []
  for _ in range(depth):
    children = []
    for path, score in level:
      log_probs = log_softmax(next_logits(tuple(text + list(path))))
      for token in np.argsort(-log_probs)[:k]:
        children.append(((*path, int(token)), score + log_probs[token]))
    candidates += children
    level = sorted(children, key=lambda child: -child[1])[:k]
  best = sorted(candidates, key=lambda child: -child[1])[:num_drafts]
  return {path for path, _ in best}


def test_a_best_first_tree_holds_the_most_probable_paths():
  tree, texts = propose(TREES['best_first'])
  for row, text in enumerate(texts):
    found = {tuple(path_of(tree, row, node)) for node in range(1, 8)}
    assert found == best_first(text, 3, 3, 7)
    np.testing.assert_array_equal(
      [len(path_of(tree, row, node)) for node in range(8)], tree.depths[row]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  'drafting',
  [
    'gumbel_top_k',
    pytest.param('independent', marks=pytest.mark.slow),
    pytest.param('beam', marks=pytest.mark.slow),
  ],
)
def test_the_law_is_the_draft_models_at_every_node(drafting):
  verifier = 'multi_step' if drafting == 'independent' else 'walk'
  options = {'drafting': drafting, 'verifier': verifier}
  name = 'best_first' if drafting == 'beam' else 'full'
  tree, texts = propose(TREES[name], SAMPLED, **options)
  settings = sampling.row_settings([SAMPLED])
  for row, text in enumerate(texts):
    # Of 7 drafts, a beam has 3, 2 and 2; a full tree 2, 4 and 8.
    for node in range(6 if drafting == 'beam' else 7):
      logits = next_logits(tuple(text + path_of(tree, row, node)))
      want = log_softmax(sampling.process_logits(jnp.asarray(logits), settings))
      got = tree.law.log_probs[row, tree.law.index[row, node]]
      np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
      kept = np.isfinite(want)
      np.testing.assert_allclose(got[kept], want[kept], atol=1e-4)
      children = np.flatnonzero(tree.parents[row] == node)
      drawn = tree.tokens[row, children[children > 0]]
      assert kept[drawn].all()
      if drafting == 'gumbel_top_k':
        assert len(set(drawn.tolist())) == 2
      if drafting == 'beam':
        assert len(set(drawn.tolist())) == len(drawn)
    assert tree.depths[row].max() == 3
  other, _ = propose(TREES[name], SAMPLED, seed=4, **options)
  assert (other.tokens[:, 1:] != tree.tokens[:, 1:]).any()


@pytest.mark.parametrize(
  ('name', 'drafting', 'verifier'),
  [
    pytest.param(
      'full', 'gumbel_top_k', 'recursive_rejection', marks=pytest.mark.slow
    ),
    ('full', 'independent', 'multi_step'),
    pytest.param(
      'best_first', 'beam', 'recursive_rejection', marks=pytest.mark.slow
    ),
  ],
)
def test_drawn_drafts_of_a_greedy_target_give_its_tokens(
  name, drafting, verifier
):
  made, weights = make(TREES[name], drafting=drafting, verifier=verifier)
  result = made.generate(weights, PROMPTS, LIMITS, seed=3)
  assert result.tokens == plain().tokens


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'drafting'),
  [
    pytest.param('full', 'gumbel_top_k', marks=pytest.mark.slow),
    ('chain_beam', 'beam'),
  ],
)
def test_the_target_accepts_what_it_drew_itself(name, drafting):
  """Equal laws: the first sibling always passes its test.

  A wide beam may end early under its first node, a beam of one cannot.
  """
  made, weights = make(
    TREES[name],
    config.SamplingConfig(temperature=1.0),
    'same',
    ENDLESS,
    drafting=drafting,
    verifier='recursive_rejection',
  )
  result = made.generate(weights, PROMPTS, seed=3)
  assert all(n == 3 for row in result.accept_lengths for n in row[:-1])


def test_no_more_nodes_than_there_are_candidates():
  tree = config.TreeConfig('best_first', depth=2, branching=1, num_nodes=9)
  made, _ = make(tree)
  assert made.setup.drafter.size == 3


def test_draws_that_do_not_fit_the_tree_are_refused():
  with pytest.raises(ValueError, match="'beam' cannot grow a tree of kind 'f"):
    make(TREES['full'], drafting='beam')
  with pytest.raises(ValueError, match="cannot grow a tree of kind 'best_fir"):
    make(TREES['best_first'], drafting='gumbel_top_k')
