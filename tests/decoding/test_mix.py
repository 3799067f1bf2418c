# SPDX-License-Identifier: Apache-2.0
"""Streams and copies in one tree: its nodes, and that they change no token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table_lm

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  copies,
  decoder as decoder_lib,
  grafts,
  interface,
  tree as tree_lib,
)
from specstream_jax.drafters import mix, none, streams

BATCH, MAX_NEW, LENGTH = 3, 19, 5
TREE = config.TreeConfig('best_first', depth=3, branching=3, num_nodes=6)
OPTIONS = config_drafting.DrafterConfig('mix')
# What the rows of a batch ask for; the first kind has a program of its own.
GREEDY = config.SamplingConfig()
SAMPLING = {
  'greedy': [GREEDY] * BATCH,
  'each its own': [
    config.SamplingConfig(temperature=1.0),
    GREEDY,
    config.SamplingConfig(0.8, presence_penalty=0.5),
  ],
}


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none.

  Texts repeat themselves, as the next token depends on the last one alone.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  factors, table_lm.FACTORS = table_lm.FACTORS, (7, 0, 0)
  yield
  table_lm.FACTORS = factors
  jax.config.update('jax_disable_most_optimizations', False)


def paths(tree, scores=None):
  """Tokens from the root down to each node in use -> its score."""
  tokens, parents = np.array(tree.tokens), np.array(tree.parents)
  found = []
  for row in range(len(tokens)):
    of_node: dict[int, tuple[int, ...]] = {0: ()}
    own: dict[tuple[int, ...], float] = {}
    for node in range(1, tokens.shape[1]):
      if tokens[row, node] < 0:
        assert (tokens[row, node], parents[row, node]) == (-1, 0)
        assert tree.depths[row, node] == 1
        continue
      path = (*of_node[int(parents[row, node])], int(tokens[row, node]))
      assert path not in own and tree.depths[row, node] == len(path)
      of_node[node] = path
      own[path] = 0.0 if scores is None else float(scores[row, node])
    found.append(own)
  return found


@functools.cache
def _mixed():
  def both(logits, root, chain, log_probs, sizes):
    grown = tree_lib.best_first(logits, root, TREE)
    whole = grafts.graft(grown, chain, log_probs)
    return grown, whole, grafts.best(whole, TREE.size, sizes)

  return jax.jit(both)


def _case(seed):
  """Streams of few tokens, so that a chain goes along with them or not."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(BATCH, 3, 4)).astype(np.float32) * 2
  chain = rng.integers(0, 4, (BATCH, LENGTH))
  chain[0] = np.argmax(logits[0], axis=-1)[[0, 1, 2, 2, 2]]
  chain[1, int(rng.integers(0, LENGTH)) :] = -1
  log_probs = np.cumsum(np.log(rng.uniform(0.2, 1.0, chain.shape)), axis=1)
  return logits, np.arange(BATCH), chain, log_probs.astype(np.float32)


@pytest.mark.parametrize('seed', range(6))
def test_a_mix_is_the_likeliest_paths_of_both(seed):
  logits, root, chain, log_probs = _case(seed)
  sizes = np.array([6, 6, 4])
  grown, whole, best = _mixed()(logits, root, chain, log_probs, sizes)
  for row, want in enumerate(paths(grown, grown.scores)):
    for end in range(1, LENGTH + 1):
      if chain[row, end - 1] >= 0:
        path, own = tuple(chain[row, :end].tolist()), log_probs[row, end - 1]
        want[path] = max(float(own), want.get(path, -np.inf))
    assert paths(whole, whole.scores)[row] == pytest.approx(want)
    order = sorted(want, key=want.get, reverse=True)
    assert set(paths(best)[row]) == set(order[: sizes[row] - 1])


def test_without_a_copy_the_tree_is_the_streams_bit_for_bit():
  logits, root, chain, log_probs = _case(0)
  nothing = np.full_like(chain, -1)
  sizes = np.full(BATCH, TREE.size)
  grown, _, best = _mixed()(logits, root, nothing, log_probs, sizes)
  for got, want in zip(jax.tree.leaves(best), jax.tree.leaves(grown)):
    np.testing.assert_array_equal(got, want)


@functools.cache
def _decoder(name):
  drafter = none.NoDraft()
  if name == 'mix':
    own = streams.Streams(TREE, table_lm.NUM_STREAMS, OPTIONS)
    drafter = mix.Mix(own, OPTIONS)
  cfg = config.DecodeConfig(
    max_new_tokens=MAX_NEW, prompt_bucket=11, eos_ids=(12, 99)
  )
  return decoder_lib.Decoder(table_lm.MODEL, drafter, cfg)


@pytest.mark.parametrize(
  'how', ['greedy', pytest.param('each its own', marks=pytest.mark.slow)]
)
def test_tokens_are_those_of_plain_decoding(how):
  longest = 0
  for seed, quality in enumerate((0.0, 0.0, 0.5, 1.0)):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 13, n).tolist() for n in (11, 4, 1)]
    params = table_lm.make_params(seed, quality=quality, scale=5.0)
    got, want = (
      _decoder(name).generate(
        params, prompts, seed=seed, sampling=SAMPLING[how]
      )
      for name in ('mix', 'none')
    )
    assert got.tokens == want.tokens
    assert got.finish_reasons == want.finish_reasons
    longest = max(longest, *map(max, filter(None, got.accept_lengths)))
  # A copy is longer than the streams' tree is deep.
  assert longest > TREE.max_depth
  # Prompt pass and loop, of either kind.
  assert _decoder('mix').num_compilations in (2, 4)


def _context(tokens, num_tokens, last_tree=None):
  root = jnp.asarray(tokens)[:, 0]  # nobody looks there
  filler: Any = jnp.zeros(len(root))
  return interface.DraftContext(
    root=jnp.asarray(root),
    hidden=filler,
    stream_state=(),
    cache=filler,
    leaf_positions=filler,
    tokens=jnp.asarray(tokens),
    num_tokens=jnp.asarray(num_tokens),
    row_keys=filler,
    last_tree=last_tree,
  )


def test_rates_follow_what_copies_come_to():
  drafter = mix.Mix(streams.Streams(TREE, 3, OPTIONS), OPTIONS)
  prompts = jnp.array([[5, 6, 7, 8, 9]])
  state = drafter.init(None, prompts, jnp.array([5]))
  tokens = np.array([[5, 6, 7, 1, 0, 0]])
  copy = jax.jit(
    lambda count, state: drafter._copy(_context(tokens, count), state)
  )
  state = copy(np.array([1]), state)
  assert state.copies.last.chains.tolist() == [[[6, 7, 8, 9, 5]]]
  before = np.asarray(state.right), np.asarray(state.tried)
  state = copy(np.array([4]), state)
  # 6 and 7 were right after a match of 1 and 2, 8 was wrong, 9 not tried.
  right, tried = np.asarray(state.right), np.asarray(state.tried)
  assert (right - before[0])[0].tolist() == [1, 1, *[0] * 14]
  assert (tried - before[1])[0].tolist() == [1, 1, 1, *[0] * 13]


def test_a_guess_is_what_comes_next():
  prompts, lengths = jnp.array([[5, 6, 0], [4, 9, 4]]), jnp.array([2, 3])
  state = copies.begin(prompts, lengths, num_chains=1, chain_length=3)
  guesses = jnp.array([[7, 8, 2, 1, 7], [8, 9, -1, -1, -1]])
  state = copies.foresee(state, guesses, ngram=3)
  tokens = np.array([[7, 8, 2, 1], [8, 8, 3, 0]])
  propose = jax.jit(
    lambda state, count, tree=None: copies.propose(
      state, _context(tokens, count, tree), ngram=3
    )[0]
  )
  state = propose(state, np.array([1, 1]))
  assert state.last.chains.tolist() == [[[8, 2, 1]], [[9, -1, -1]]]
  assert state.last.matched.tolist() == [[3], [3]]
  assert state.last.is_guess.all()
  # Three tokens of a call: two were accepted, one was drawn.
  ones = jnp.ones((2, 2), jnp.int32)
  tree = tree_lib.DraftTree(ones, ones, ones)
  after = np.array([4, 2])
  assert propose(state, after, tree).accepted.tolist() == [2, 0]
  undrafted = tree_lib.without_drafts(tree, jnp.array([True, True]))
  assert propose(state, after, undrafted).accepted.tolist() == [0, 0]


def test_nothing_is_copied_at_first():
  state = copies.begin(
    jnp.ones((2, 3), jnp.int32), jnp.array([3, 1]), num_chains=2, chain_length=4
  )
  assert state.last.chains.tolist() == [[[-1] * 4] * 2] * 2
  assert not state.last.matched.any() and not state.last.is_guess.any()
  assert state.num_tokens.tolist() == state.accepted.tolist() == [0, 0]
  assert state.source.guesses.shape == (2, 0)


@pytest.mark.parametrize(
  ('text', 'chains', 'matched', 'is_guess'),
  [
    ([9, 5, 8, 5, 7, 5], [[8, 5], [7, 5]], [1, 1], [True, False]),
    # The first token behind the guess is none of it.
    ([9, 9, 5, 6, 5, 7, 5], [[7, 5], [6, 5]], [1, 1], [False, False]),
    # More tokens that match go before a guess.
    ([5, 8, 4, 5, 6, 4, 5], [[6, 4], [8, 4]], [2, 1], [False, True]),
    ([5, -1, 4, 6, 8, 7, 5], [[-1, -1], [-1, -1]], [0, 0], [False, False]),
    ([5, 1, 2, 3], [[-1, -1], [-1, -1]], [0, 0], [False, False]),
  ],
)
def test_copies_of_a_guess_go_before_others(text, chains, matched, is_guess):
  padded = jnp.array([text + [0] * (8 - len(text))])
  found = _look_up_guessed()(padded, jnp.array([len(text)]))
  assert found.chains.tolist() == [chains]
  assert found.matched.tolist() == [matched]
  assert found.is_guess.tolist() == [is_guess]


@functools.cache
def _look_up_guessed():
  sizes = {'ngram': 2, 'num_chains': 2, 'chain_length': 2, 'num_guessed': 2}
  return jax.jit(functools.partial(copies.look_up, **sizes))


def test_what_the_last_copies_came_to():
  begun = copies.begin(
    jnp.ones((2, 1), jnp.int32), jnp.ones(2, int), num_chains=2, chain_length=3
  )
  chains = [[[0, 6, 7], [0, 1, -1]], [[4, -1, -1], [9, 8, 5]]]
  last = begun.last._replace(chains=jnp.array(chains))
  state = begun._replace(last=last, num_tokens=jnp.array([1, 2]))
  # The output goes on with 0 6 2, and with 9 8.
  context = _context([[3, 0, 6, 2, 0], [3, 3, 9, 8, 5]], [4, 4])
  found = jax.jit(lambda: copies._follow(state, context))()
  assert found.is_known.tolist() == [
    [[True, True, True], [True, True, False]],
    [[True, False, False], [True, True, False]],
  ]
  assert found.is_right.tolist() == [
    [[True, True, False], [True, False, False]],
    [[False, False, False], [True, True, False]],
  ]


def test_what_a_call_accepted_of_a_guess():
  begun = copies.begin(
    jnp.ones((5, 1), jnp.int32), jnp.ones(5, int), num_chains=2, chain_length=4
  )
  last = begun.last._replace(is_guess=jnp.array([[True, False]] * 5))
  state = begun._replace(last=last, num_tokens=jnp.full(5, 2))
  # Right ones of the guess and of another copy, by row.
  right = jnp.array([[2, 3], [2, 0], [1, 0], [4, 4], [2, 2]])
  is_right = jnp.arange(4)[None, None] < right[..., None]
  outcome = copies.Outcome(is_right, is_right)
  tokens = jnp.array([[5, 0]] * 4 + [[5, -1]])
  tree = tree_lib.DraftTree(tokens, tokens, tokens)
  accepted = jax.jit(
    lambda count, tree: copies._accepted(
      state, _context(np.zeros((5, 9), int), count, tree), outcome
    )
  )
  # A call that ended early, one that was made when all was over, one of three
  # drafts, one without drafts.
  count = jnp.array([6, 3, 2, 6, 6])
  assert accepted(count, tree).tolist() == [2, 0, 0, 3, 0]
  assert accepted(count, None).tolist() == [0] * 5


def test_what_a_mix_cannot_do_is_refused():
  drawn = config_drafting.DrafterConfig('mix', drafting='independent')
  with pytest.raises(ValueError, match="a mix cannot draft with 'independent'"):
    mix.Mix(streams.Streams(config.TreeConfig('chain', depth=2), 3), drawn)
  chain = streams.Streams(config.TreeConfig('chain', depth=2), 3)
  with pytest.raises(ValueError, match="kind 'chain'; use kind=best_first"):
    mix.Mix(chain, OPTIONS)
  with pytest.raises(
    ValueError, match=r'skip_streams is 2.0; accepted: 0 to 1'
  ):
    config_drafting.DrafterConfig('mix', skip_streams=2.0)
