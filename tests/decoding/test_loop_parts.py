# SPDX-License-Identifier: Apache-2.0
"""The parts of a decode step on arrays made by hand; no model, no drafts."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config, sampling
from specstream_jax.decoding import (
  edits as edits_lib,
  emitting,
  interface,
  loop,
  stopping,
  tree as tree_lib,
  verify,
)
from specstream_jax.modeling import cache as cache_lib

VOCAB_SIZE, MAX_NEW, NUM_SLOTS, SIZE = 9, 6, 10, 4
RUNNING, EOS, STOP = stopping.RUNNING, stopping.EOS, stopping.STOP
NAN, INF = float('nan'), float('inf')


def _ids(*rows):
  return jnp.array(rows, jnp.int32)


def _state(batch, **changes) -> Any:
  """Rows that have said nothing, of a cache of ten slots."""
  zeros = jnp.zeros(batch, jnp.int32)
  nothing: Any = None
  keys = jnp.zeros((batch, 1, NUM_SLOTS, 1))
  state = loop.DecodeState(
    tokens=jnp.full((batch, MAX_NEW), 8, jnp.int32),
    num_tokens=zeros,
    limits=zeros + MAX_NEW,
    finish_reason=zeros,
    cache=cache_lib.Cache((keys,), (keys,), zeros),
    tree=nothing,
    drafter_state=(),
    eos_ids=jnp.full((batch, 1), -1, jnp.int32),
    row_keys=nothing,
    settings=None,
    edits=None,
    calls=zeros,
    accept_lengths=jnp.full((batch, MAX_NEW), 8, jnp.int32),
  )
  return dataclasses.replace(state, **changes)


def _setup(**named) -> Any:
  drafter = types.SimpleNamespace(size=SIZE)
  cfg = config.DecodeConfig(max_new_tokens=MAX_NEW)
  return types.SimpleNamespace(**({'cfg': cfg, 'drafter': drafter} | named))


def _run(fun, *args):
  """One program instead of one for each operation."""
  return jax.jit(functools.partial(fun, _setup()))(*args)


def test_kept_tokens_are_appended_and_remembered():
  asked: Any = edits_lib.request([config.SamplingConfig()] * 3)
  start = jax.jit(edits_lib.start, static_argnums=4)
  edits = start(
    asked, _ids([-1], [-1], [-1]), _ids([4], [4], [4]), _ids(1, 1, 1), 9
  )
  state = _state(3, num_tokens=_ids(2, 0, 6), edits=edits)
  emitted = _ids([7, 2, 3], [5, 5, 6], [1, 1, 1])
  kept, reason = _ids(2, 3, 0), _ids(RUNNING, STOP, RUNNING)
  after = _run(emitting.emit, state, emitted, kept, reason)
  assert after.tokens.tolist() == [
    [8, 8, 7, 2, 8, 8],
    [5, 5, 6, 8, 8, 8],
    [8] * 6,
  ]
  assert after.num_tokens.tolist() == [4, 3, 6]
  assert after.finish_reason.tolist() == [RUNNING, STOP, RUNNING]
  assert after.edits is not None
  seen = [np.flatnonzero(row).tolist() for row in after.edits.seen]
  assert seen == [[2, 4, 7], [4, 5, 6], [4]]
  assert after.edits.counts.tolist() == [
    [0, 0, 1, 0, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 2, 1, 0, 0],
    [0] * 9,
  ]


def test_a_row_ends_where_the_next_tree_does_not_fit():
  state = _state(4)
  cache = dataclasses.replace(state.cache, length=_ids(6, 7, 7, 9))
  state = dataclasses.replace(state, cache=cache)
  reason = _ids(RUNNING, RUNNING, EOS, RUNNING)
  after = _run(emitting.emit, state, _ids(*[[1]] * 4), _ids(1, 1, 1, 1), reason)
  full = stopping.CACHE
  assert after.finish_reason.tolist() == [RUNNING, full, EOS, full]


def test_calls_are_counted_in_rows_that_took_part():
  state = _state(
    4,
    finish_reason=_ids(RUNNING, EOS, RUNNING, RUNNING),
    calls=_ids(0, 2, 3, 1),
  )
  after = jax.jit(emitting.count_call)(state, _ids(3, 0, 1, 0))
  assert after.calls.tolist() == [1, 2, 4, 2]
  assert after.accept_lengths.tolist() == [
    [2, 8, 8, 8, 8, 8],
    [8] * 6,
    [8, 8, 8, 0, 8, 8],
    [8, 0, 8, 8, 8, 8],
  ]


def test_rows_end_before_what_has_no_order():
  best = [
    [1.0, NAN, 1.0],  # the first draft was wrong after all
    [1.0, NAN, NAN],
    [-INF, 1.0, 1.0],
    [1.0, 1.0, INF],  # nobody draws there
    [1.0, 1.0, 1.0],
    [1.0, NAN, 1.0],  # and EOS before that
  ]
  accept_length = _ids(2, 1, 0, 1, 2, 2)
  state = _state(6, eos_ids=_ids([-1], [-1], [-1], [-1], [-1], [3]))
  emitted = _ids(*[[3, 4, 5]] * 6)
  _, kept, reason = _run(
    emitting.truncate, state, emitted, accept_length, jnp.array(best), None
  )
  stuck = stopping.NOT_FINITE
  assert kept.tolist() == [1, 1, 0, 2, 3, 1]
  assert reason.tolist() == [stuck, stuck, stuck, RUNNING, RUNNING, EOS]


def test_stop_texts_are_followed_up_to_the_last_kept_token():
  # The state after a token is its number; 2 is a whole stop.
  table = jnp.tile(jnp.arange(VOCAB_SIZE, dtype=jnp.int16), VOCAB_SIZE)
  skipped = jnp.zeros(VOCAB_SIZE, bool)
  stops = stopping.StopTexts(
    table, jnp.arange(VOCAB_SIZE), jnp.int32(VOCAB_SIZE), skipped
  )
  state = _state(3, text_states=_ids(1, 1, 1))
  emitted = _ids([3, 4, 5], [6, 2, 7], [6, 7, 8])
  after, kept, reason = _run(
    emitting.truncate, state, emitted, _ids(1, 2, 2), jnp.ones((3, 3)), stops
  )
  assert kept.tolist() == [2, 2, 3]
  assert reason.tolist() == [RUNNING, STOP, RUNNING]
  assert after.text_states.tolist() == [4, 2, 8]


def test_the_best_logits_are_where_greedy_draws_point():
  logits = jnp.array([[[1.0, 3.0, 2.0], [4.0, NAN, 5.0]]])
  draws = _ids([2, 0])
  found = emitting.best_logits(logits, draws, None)
  assert found.tolist() == [[2.0, 4.0]]
  warm = sampling.row_settings([config.SamplingConfig(temperature=1.0)])
  for found in (
    emitting.best_logits(logits, draws, warm),
    emitting.best_logits(logits, None, None),
  ):
    np.testing.assert_array_equal(found, [[3.0, NAN]])


class _Drafter:
  """Drafts 1, 2, 3 below every root, and keeps what it was shown."""

  size = SIZE

  def propose(self, params, context, state):
    assert (params, state) == ('params', 'state')
    self.seen = context
    drafts = jnp.tile(_ids([1, 2, 3]), (len(context.root), 1))
    tokens = jnp.concatenate([context.root[:, None], drafts], axis=1)
    zeros = jnp.zeros_like(tokens)
    return tree_lib.DraftTree(tokens, zeros, zeros.at[:, 1:].set(1)), 'next'


@pytest.mark.parametrize('has_drafts', [None, (True, False, True, True)])
def test_rows_that_have_ended_or_need_not_do_not_draft(has_drafts):
  asks = None if has_drafts is None else jnp.array(has_drafts)
  state = _state(
    4,
    finish_reason=_ids(RUNNING, RUNNING, EOS, RUNNING),
    has_drafts=asks,
    drafter_state='state',
  )
  cache = dataclasses.replace(state.cache, length=_ids(3, 5, 7, 9))
  state = dataclasses.replace(state, cache=cache)
  hidden = jnp.arange(8.0).reshape(4, 2, 1)
  forward = interface.Forward(hidden, cache, {'stream': 10 * hidden})
  model: Any = types.SimpleNamespace(
    stream_logits=lambda *said: said, coupling_logits=None
  )
  drafter = _Drafter()
  leaf = loop._leaf(forward, _ids(0, 1, 0, 1), _ids(5, 6, 7, 8))
  setup = _setup(model=model, drafter=drafter)
  after = loop.draft(setup, 'params', state, leaf)
  drafts = [True, has_drafts is None, False, True]
  assert drafter.seen.is_drafting is not None
  assert drafter.seen.is_drafting.tolist() == drafts
  assert after.tree.tokens.tolist() == [
    [root, *([1, 2, 3] if is_drafting else [-1] * 3)]
    for root, is_drafting in zip((5, 6, 7, 8), drafts, strict=True)
  ]
  assert after.drafter_state == 'next'
  assert drafter.seen.leaf_positions.tolist() == [2, 4, 6, 8]
  assert drafter.seen.hidden.tolist() == [[0.0], [3.0], [4.0], [7.0]]
  said: Any = drafter.seen.stream_logits()
  assert said[1]['stream'].tolist() == [[0.0], [30.0], [40.0], [70.0]]
  assert said[3].tolist() == [2, 4, 6, 8] and said[2] is cache


@pytest.mark.parametrize(
  ('max_steps', 'min_running', 'want'),
  [(3, 1, 3), (99, 1, 7), (99, 2, 5), (99, 3, 2), (0, 1, 0)],
)
def test_how_many_steps_a_run_takes(monkeypatch, max_steps, min_running, want):
  """Of rows that end after 2, 5 and 7 steps."""
  nothing: Any = None

  def step(setup, params, state, stops):
    del setup, params, stops
    num_tokens = state.num_tokens + 1
    ends = num_tokens >= state.limits
    reason = jnp.where(ends, stopping.LENGTH, RUNNING)
    return dataclasses.replace(
      state, num_tokens=num_tokens, finish_reason=reason
    )

  monkeypatch.setattr(loop, 'step', step)
  state = _state(3, limits=_ids(2, 5, 7))
  most = {} if min_running == 1 else {'min_running': min_running}
  after = loop.run(nothing, nothing, state, jnp.int32(max_steps), **most)
  assert after.num_tokens.tolist() == [want] * 3


def test_prompts_see_themselves_and_what_came_before():
  seen = []
  model: Any = types.SimpleNamespace(
    init_cache=lambda *sizes: sizes,
    forward=lambda *args, **named: seen.append((args, named)),
  )
  drafter = types.SimpleNamespace(with_streams=True)
  setup = _setup(prompt_model=model, drafter=drafter)
  loop._forward_prompts(setup, 'params', _ids([5, 6, 7], [8, 9, 0]), 17)
  ((_, _, positions, mask, cache), named) = seen[0]
  assert positions.tolist() == [[0, 1, 2]] * 2
  assert jnp.array_equal(mask, jnp.tile(jnp.tri(3, dtype=bool), (2, 1, 1)))
  assert cache == (2, 17) and named == {'with_streams': True}


def test_the_first_token_follows_the_last_of_the_prompt(monkeypatch):
  seen = []
  monkeypatch.setattr(loop, '_forward_prompts', lambda *args: args[-1])
  monkeypatch.setattr(loop, 'begin', lambda *args, **named: seen.append(args))
  nothing: Any = None
  loop.prefill(nothing, nothing, nothing, _ids(1, 3), nothing, cache_length=17)
  assert seen[0][2] == 17 and seen[0][3].tolist() == [0, 2]


def test_unused_nodes_are_read_as_a_token_that_there_is():
  seen = []
  model: Any = types.SimpleNamespace(
    forward=lambda *args, **named: seen.append((args, named))
  )
  drafter = types.SimpleNamespace(with_streams=False)
  tree = tree_lib.DraftTree(
    _ids([5, 0, -1]), _ids([0, 0, 0]), _ids([0, 1, 1]), scores=jnp.ones((1, 3))
  )
  state = _state(1, tree=tree)
  cache = dataclasses.replace(state.cache, length=_ids(4))
  state = dataclasses.replace(state, cache=cache)
  loop._forward_tree(_setup(model=model, drafter=drafter), 'params', state)
  ((_, tokens, positions, mask, _), named) = seen[0]
  assert tokens.tolist() == [[5, 0, 0]]
  assert positions.tolist() == [[4, 5, 5]]
  assert mask.tolist() == [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]
  assert named['with_streams'] is False and named['scores'] is tree.scores


def test_the_path_as_the_layers_before_pruning_number_it():
  forward: Any = types.SimpleNamespace(pruned=None)
  assert loop._early_path(forward, _ids([0, 1])) is None
  forward.pruned = interface.Pruned(_ids([0, 3, 4], [0, 1, 5]), 2)
  found = loop._early_path(forward, _ids([0, 2, 2], [0, 1, 2]))
  assert found is not None and found[0] == 2
  assert found[1].tolist() == [[0, 4, 4], [0, 1, 5]]


def test_a_state_is_done_unless_it_runs():
  state = _state(3, finish_reason=_ids(RUNNING, EOS, stopping.FREE))
  assert state.is_done.tolist() == [False, True, True]


def test_rows_begin_with_the_token_behind_their_prompt():
  warm = config.SamplingConfig(temperature=1.0)
  wanted = config.SamplingConfig(temperature=1.0, logit_bias={8: 99.0})
  settings = sampling.row_settings([wanted, *[warm] * 4])
  hidden = np.random.default_rng(3).normal(size=(5, 3, VOCAB_SIZE))
  hidden = hidden.astype(np.float32)
  lengths, last = _ids(3, 1, 2, 3, 2), _ids(2, 0, 1, 2, 1)
  hidden[3, 2] = NAN
  logits = jnp.asarray(hidden)[jnp.arange(5), last][:, None]
  keys = sampling.row_keys(7, range(5))
  first = sampling.draw(logits, keys, lengths[:, None], settings)[:, 0]
  first = first.at[0].set(8)
  eos_ids = _ids([-1, -1], [-1, -1], [0, 0], [-1, -1], [-1, -1])
  eos_ids = eos_ids.at[2, 1].set(first[2])
  limits = _ids(6, 1, 6, 6, 6)
  asks = jnp.array([True, True, True, True, False])
  edits: Any = edits_lib.request([wanted, *[warm] * 4])
  rows = loop.Rows(limits, eos_ids, keys, settings, edits, asks)
  model: Any = types.SimpleNamespace(
    logits=lambda params, hidden: hidden,
    stream_logits=lambda *said: said,
    coupling_logits=None,
  )
  drafter: Any = _Drafter()
  drafter.init = lambda params, prompts, lengths: ()
  drafter.propose = lambda params, context, own: (
    _Drafter.propose(drafter, params, context, 'state')[0],
    own,
  )
  other, cfg = Any, config.DecodeConfig(max_new_tokens=MAX_NEW)
  setup: Any = interface.DecodeSetup(other, model, drafter, cfg, other)
  cache = _state(5).cache
  forward = interface.Forward(jnp.asarray(hidden), cache, jnp.asarray(hidden))
  prompts = _ids(*[[3, 4, 5]] * 5)
  begin = jax.jit(functools.partial(loop.begin, setup, 'params'))
  made = begin(forward, last, prompts, lengths, rows)
  assert made.num_tokens.tolist() == [1, 1, 1, 0, 1]
  found = [row[:n] for row, n in zip(made.tokens.tolist(), made.num_tokens)]
  said = first.tolist()
  assert found == [said[:1], said[1:2], said[2:3], [], said[4:]]
  reasons = [RUNNING, stopping.LENGTH, EOS, stopping.NOT_FINITE, RUNNING]
  assert made.finish_reason.tolist() == reasons
  assert made.cache.length.tolist() == lengths.tolist()
  assert not made.calls.any() and not made.accept_lengths.any()
  assert made.accept_lengths.shape == made.tokens.shape == (5, MAX_NEW)
  drafts = np.asarray(made.tree.tokens)[:, 1:].max(axis=1) >= 0
  assert drafts.tolist() == [True, False, False, False, False]
  assert made.tree.tokens[:3, 0].tolist() == said[:3]
  assert made.edits is not None and made.edits.bias.shape == (5, VOCAB_SIZE)
  seen = [set(np.flatnonzero(row)) for row in made.edits.seen[:3]]
  assert seen == [{3, 4, 5, 8}, {3, said[1]}, {3, 4, said[2]}]


def test_a_step_commits_what_it_emits():
  """Rows that take a path of two drafts, one, and none; one that has ended."""
  logits = np.zeros((4, 4, VOCAB_SIZE), np.float32)
  # Nodes are 1, 2 below the root and 3 below 2; draws by row and node.
  for row, draws in enumerate([[2, 8, 3, 7], [2, 8, 3, 7], [6] * 4, [2] * 4]):
    logits[row, range(4), draws] = 1
  slots = jnp.arange(NUM_SLOTS, dtype=jnp.float32)
  keys = jnp.tile(slots[None, None, :, None], (4, 1, 1, 1))
  cache = cache_lib.Cache((keys,), (-keys,), _ids(2, 3, 4, 5))
  tree = tree_lib.DraftTree(
    _ids(*[[5, 1, 2, 3]] * 4),
    _ids(*[[0, 0, 0, 2]] * 4),
    _ids(*[[0, 1, 1, 2]] * 4),
  )
  state = _state(
    4,
    cache=cache,
    tree=tree,
    finish_reason=_ids(RUNNING, RUNNING, RUNNING, EOS),
    num_tokens=_ids(1, 1, 1, 1),
    limits=_ids(6, 3, 6, 6),  # the second may say two more
    row_keys=sampling.row_keys(0, range(4)),
  )
  model: Any = types.SimpleNamespace(
    forward=lambda *args, **named: interface.Forward(
      jnp.asarray(logits), cache, jnp.asarray(logits)
    ),
    logits=lambda params, hidden: hidden,
    stream_logits=lambda *said: said,
    coupling_logits=None,
  )
  drafter: Any = _Drafter()
  drafter.with_streams, drafter.max_depth = True, 2
  cfg = config.DecodeConfig(max_new_tokens=MAX_NEW)
  setup = interface.DecodeSetup(model, model, drafter, cfg, verify.walk)
  drafter.propose = lambda params, context, own: (
    _Drafter.propose(drafter, 'params', context, 'state')[0],
    (context.root, context.draws, context.hidden, context.last_tree.tokens),
  )
  after = jax.jit(functools.partial(loop.step, setup, 'params'))(state)
  assert after.tokens.tolist() == [
    [8, 2, 3, 7, 8, 8],
    [8, 2, 3, 8, 8, 8],
    [8, 6, 8, 8, 8, 8],
    [8] * 6,
  ]
  assert after.num_tokens.tolist() == [4, 3, 2, 1]
  assert after.calls.tolist() == [1, 1, 1, 0]
  assert after.accept_lengths[:, 0].tolist() == [2, 1, 0, 8]
  assert after.cache.length.tolist() == [5, 5, 5, 5]
  running, length = RUNNING, stopping.LENGTH
  assert after.finish_reason.tolist() == [running, length, running, EOS]
  # The root lies in its slot, then nodes 2 and 3 of the path.
  kept = after.cache.keys[0][..., 0][:, 0]
  assert kept[0, :5].tolist() == [0, 1, 2, 4, 5]
  assert kept[1, :5].tolist() == [0, 1, 2, 3, 5]
  assert kept[2, :5].tolist() == [0, 1, 2, 3, 4]
  assert kept[3, :5].tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(after.cache.values[0], -after.cache.keys[0])
  assert after.tree.tokens[:, 1:].tolist() == [
    [1, 2, 3], [-1] * 3, [1, 2, 3], [-1] * 3
  ]  # fmt: skip
  root, draws, hidden, last = after.drafter_state
  assert root[:3].tolist() == [7, 7, 6]
  assert draws[0].tolist() == [2, 8, 3, 7]
  assert last.tolist() == tree.tokens.tolist()
  assert hidden[2].tolist() == logits[2, 0].tolist()


def test_logits_of_nodes_are_edited_by_where_they_are():
  asked: Any = edits_lib.request(
    [config.SamplingConfig(min_new_tokens=3, presence_penalty=1.0)]
  )
  # Prompts of 4 tokens: EOS may lie at position 7, the fourth token, or later.
  start = jax.jit(edits_lib.start, static_argnums=4)
  text = _ids([4, 4, 4, 4]), _ids(4)
  edits = start(asked, _ids([0]), *text, VOCAB_SIZE)
  tree = tree_lib.DraftTree(_ids([5, 1, 2]), _ids([0, 0, 1]), _ids([0, 1, 2]))
  state = _state(1, tree=tree, edits=edits)
  cache = dataclasses.replace(state.cache, length=_ids(5))  # the root's slot
  state = dataclasses.replace(state, cache=cache)
  ones = jnp.ones((1, 3, VOCAB_SIZE))
  model: Any = types.SimpleNamespace(logits=lambda params, hidden: hidden)
  drafter: Any = types.SimpleNamespace(max_depth=2)
  setup = interface.DecodeSetup(model, model, drafter, Any, verify.walk)
  forward = interface.Forward(ones, cache, ones)
  found = loop._verification(setup, 'params', state, forward)
  assert found.root_positions.tolist() == [6] and found.survivors is None
  want = np.ones((3, VOCAB_SIZE))
  want[0, 0] = -INF
  want[1, 1] = want[2, 1] = want[2, 2] = 0.0
  np.testing.assert_array_equal(found.logits[0], want)
  plain = dataclasses.replace(state, edits=None)
  found = loop._verification(setup, 'params', plain, forward)
  assert found.logits is ones
