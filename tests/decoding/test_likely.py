# SPDX-License-Identifier: Apache-2.0
"""Streams at the likeliest leaves alone: which they are, and what follows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax import config
from specstream_jax.config import drafting
from specstream_jax.decoding import (
  decoder,
  likely,
  loop,
  row_trees,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import none, streams

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
TREES = {
  'best_first': config.TreeConfig('best_first', 3, 3, 7),
  'full': config.TreeConfig('full', depth=2, branching=2),
  'pruned': config.TreeConfig('best_first', 3, 3, 11, keep_nodes=5),
}
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)
DECODE = config.DecodeConfig(max_new_tokens=19, prompt_bucket=8, eos_ids=(5,))


def _by_enumeration(parents, chances):
  """Chance of each node to end a walk that takes each child by its chance."""
  ends = np.zeros(len(parents))

  def walk(node, chance):
    children = [c for c in range(1, len(parents)) if parents[c] == node]
    ends[node] += chance * (1 - sum(chances[c] for c in children))
    for child in children:
      walk(child, chance * chances[child])

  walk(0, 1.0)
  return ends


@pytest.mark.parametrize('seed', range(5))
def test_leaf_probabilities_equal_those_of_all_walks(seed):
  rng = np.random.default_rng(seed)
  parents = np.array([0, *(rng.integers(0, node) for node in range(1, 11))])
  chances = rng.random(11)
  for node in range(11):
    children = np.flatnonzero((parents == node) & (np.arange(11) > 0))
    chances[children] *= rng.random() / max(chances[children].sum(), 1e-9)
  depths, scores = np.zeros(11, int), np.zeros(11)
  for node in range(1, 11):
    depths[node] = depths[parents[node]] + 1
    scores[node] = scores[parents[node]] + np.log(chances[node])
  scores[10] = -np.inf  # a node that is not used
  chances[10] = 0.0
  mask = tree_lib.ancestor_mask(jnp.asarray(parents)[None])
  found = likely.leaf_probabilities(
    jnp.asarray(scores)[None], mask, 7 + jnp.asarray(depths)[None]
  )
  want = _by_enumeration(parents, chances)
  np.testing.assert_allclose(found[0], want, atol=1e-6)
  best = likely.choose(found, 3)[0]
  np.testing.assert_array_equal(best, np.argsort(-want, kind='stable')[:3])


def test_no_number_does_not_choose():
  chances = jnp.array([[0.1, jnp.nan, 0.3]])
  assert likely.choose(chances, 2).tolist() == [[2, 0]]
  assert likely.choose(chances, 4).shape == (1, 3)


def test_of_equally_likely_nodes_the_first():
  assert likely.choose(jnp.ones((1, 64)), 50).tolist() == [list(range(50))]


def test_carried_streams_lie_at_their_nodes():
  rng = np.random.default_rng(0)
  nodes = np.array([[4, 0, 2], [1, 3, 0]])
  streams, insertion = rng.random((2, 3, 2, 1)), rng.random((2, 5, 1))
  carried = likely.spread(insertion, streams, jnp.asarray(nodes))
  np.testing.assert_array_equal(carried.insertion, insertion)
  for row in range(2):
    for node in range(5):
      assert bool(carried.is_known[row, node]) == (node in nodes[row])
    by_node = np.asarray(carried.streams)[row, nodes[row]]
    np.testing.assert_array_equal(by_node, np.float32(streams[row]))


def test_carriers_are_numbered_as_the_survivors_are():
  parents = jnp.array([[0, 0, 0, 1, 1, 2, 3], [0, 0, 1, 2, 0, 4, 4]])
  chances = [
    [1, 0.5, 0.25, 0.32, 0.11, 0.22, 0.05],
    [1, 0.6, 0.5, 0.19, 0.3, 0.05, 0.02],
  ]
  scores, mask = jnp.log(jnp.array(chances)), tree_lib.ancestor_mask(parents)
  positions = 4 + mask.sum(axis=-1)
  choose = jax.jit(transformer_fns._carriers, static_argnums=0)
  # What is left of each: 0.25, 0.07, 0.03, 0.27, 0.11, 0.22, 0.05 and
  # 0.1, 0.1, 0.31, 0.19, 0.23, 0.05, 0.02.
  whole = choose(3, scores, mask, positions, None)
  assert whole.tolist() == [[3, 0, 5], [2, 4, 3]]
  # Of these nodes alone 0.5, 0.18, 0.27, 0.05 and 0.7, 0.23, 0.05, 0.02.
  survivors = jnp.array([[0, 1, 3, 6], [0, 4, 5, 6]])
  kept = choose(3, scores, mask, positions, survivors)
  assert kept.tolist() == [[0, 2, 1], [0, 1, 2]]


@pytest.mark.parametrize(
  'cfg',
  [
    config.TreeConfig('best_first', 3, 3, 9),
    pytest.param(config.TreeConfig('chain', depth=3), marks=pytest.mark.slow),
    pytest.param(
      config.TreeConfig('full', depth=2, branching=3), marks=pytest.mark.slow
    ),
  ],
)
def test_a_tree_knows_the_chance_of_its_paths(cfg):
  logits = jax.random.normal(jax.random.key(0), (2, 3, 11))
  log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
  made = tree_lib.from_stream_logits(logits, jnp.array([3, 4]), cfg)
  room = row_trees.room([cfg])
  rows = row_trees.as_arrays(row_trees.fit(cfg, room), room)
  rows = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), rows)
  mixed = row_trees.from_stream_logits(logits, jnp.array([3, 4]), rows, room)
  for tree in (made, mixed):
    tokens, parents, depths, scores = map(
      np.asarray, (tree.tokens, tree.parents, tree.depths, tree.scores)
    )
    for row, node in np.ndindex(tokens.shape):
      if tokens[row, node] < 0:
        assert scores[row, node] == -np.inf
        continue
      want, at = 0.0, node
      while at:
        want += log_probs[row, depths[row, at] - 1, tokens[row, at]]
        at = parents[row, at]
      assert scores[row, node] == pytest.approx(want, abs=1e-5)
  gone = tree_lib.without_drafts(made, jnp.array([True, False]))
  assert gone.scores is not None and made.scores is not None
  assert gone.scores[0].tolist() == [0.0] + [-np.inf] * (cfg.size - 1)
  assert gone.scores[1].tolist() == made.scores[1].tolist()


@functools.cache
def _made(name, schedule, likely_nodes=2, sampling=None):
  """A decoder on the tiny model, and its weights."""
  built, base, adapter = tiny.model(
    tiny.CONFIG, dataclasses.replace(tiny.STREAMS, coupling_rank=2)
  )
  tree = TREES.get(name)
  fns = functools.partial(transformer_fns.model_fns, built)
  made = decoder.Decoder(
    fns(schedule, tree.keep_nodes if tree else 0, likely_nodes=likely_nodes),
    streams.Streams(tree, 3) if tree else none.NoDraft(),
    dataclasses.replace(DECODE, schedule=schedule),
    sampling or config.SamplingConfig(),
    prompt_model=fns(),
  )
  return made, transformer_fns.Params(base, adapter)


def _decode(*args, **asked):
  made, weights = _made(*args, **asked)
  return made.generate(weights, PROMPTS, seed=3)


@pytest.mark.parametrize(
  ('name', 'likely_nodes', 'sampling'),
  [
    ('best_first', 1, None),
    pytest.param('best_first', 3, SAMPLED, marks=pytest.mark.slow),
    pytest.param('full', 2, None, marks=pytest.mark.slow),
    pytest.param('pruned', 2, SAMPLED, marks=pytest.mark.slow),
  ],
)
def test_tokens_and_calls_equal_those_of_deferred(name, likely_nodes, sampling):
  found = _decode(name, 'likely', likely_nodes, sampling=sampling)
  deferred = _decode(name, 'deferred', sampling=sampling)
  assert found.tokens == deferred.tokens
  assert found.accept_lengths == deferred.accept_lengths
  assert found.finish_reasons == deferred.finish_reasons
  plain = _decode('', 'deferred', sampling=sampling)
  assert found.tokens == plain.tokens
  assert max(max(row, default=0) for row in deferred.accept_lengths) > 0


def _states(made, weights, prompts, steps):
  """What each step leaves to the streams, and whether rows had ended before."""
  state = made.start(weights, prompts)

  @jax.jit
  def step(state):
    forward = loop._forward_tree(made.setup, weights, state)
    known = forward.stream_state.is_known
    return loop.step(made.setup, weights, state), known, state.is_done

  for _ in range(steps):
    state, known, has_ended = step(state)
    yield state, np.asarray(known), np.asarray(has_ended)


@pytest.mark.slow
def test_so_many_nodes_carry_streams_and_the_root_of_rows_that_have_ended():
  made, weights = _made('best_first', 'likely')
  seen = 0
  for _, known, has_ended in _states(made, weights, PROMPTS, 19):
    assert (known.sum(axis=1) == 2).all()
    assert known[has_ended, 0].all()
    seen += has_ended.any() and not has_ended.all()
  assert seen


@pytest.mark.parametrize('is_known', [True, False])
def test_the_second_pass_runs_where_a_row_needs_it(is_known):
  """Streams that were carried are taken as they are, row by row."""
  built, base, adapter = tiny.model()
  fns = transformer_fns.model_fns(built, 'likely', likely_nodes=2)
  weights = transformer_fns.Params(base, adapter)
  cache = dataclasses.replace(fns.init_cache(2, 8), length=jnp.array([3, 3]))
  carried = likely.Carried(
    jnp.ones((2, 22)), jnp.full((2, 3, 22), 7.0), jnp.array([True, is_known])
  )
  said = fns.stream_logits(weights, carried, cache, jnp.array([2, 2])).hidden
  assert said is not None
  assert (np.asarray(said[0]) == 7.0).all()
  assert (np.asarray(said[1]) == 7.0).all() == is_known
  text = str(
    jax.make_jaxpr(fns.stream_logits)(
      weights, carried, cache, jnp.array([2, 2])
    )
  )
  assert text.count('cond[') == 1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'schedule': 'x'}, "schedule is 'x'; accepted"),
    ({'likely_nodes': 0}, 'likely_nodes is 0; accepted: 1 to 4'),
    ({'likely_nodes': 5}, 'likely_nodes is 5; accepted: 1 to 4'),
    (
      {'schedule': 'likely', 'drafting': 'beam'},
      "drafting is 'beam'; use drafting='top_k' or schedule='deferred'",
    ),
  ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    drafting.DrafterConfig(**change)


def test_the_drafters_schedule_goes_before_the_decoders():
  asked = drafting.parse('streams:schedule=likely,likely_nodes=3')
  assert (asked.schedule, asked.likely_nodes) == ('likely', 3)
  decode = config.DecodeConfig(schedule='parallel')
  assert asked.used_schedule(decode) == asked
  assert drafting.parse('streams').used_schedule(decode).schedule == 'parallel'
  random = drafting.parse('streams:drafting=beam')
  with pytest.raises(ValueError, match="schedule is 'likely', which goes by"):
    random.used_schedule(config.DecodeConfig(schedule='likely'))
