# SPDX-License-Identifier: Apache-2.0
"""Drafts that do not pay are left alone for a while; tokens stay the same."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import drafting
from specstream_jax.decoding import pauses, tree as tree_lib
from specstream_jax.tpu import hlo

PROMPTS = [[5, 6, 7], [9]]
DECODE = config.DecodeConfig(max_new_tokens=40)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def generate(model, drafter, **kwargs):
  decoder = model.decoder(drafter, DECODE)
  return decoder.generate(decoder.params, PROMPTS, **kwargs)


@pytest.mark.parametrize(
  'pays_above', [1.05, pytest.param(9.0, marks=pytest.mark.slow)]
)
def test_tokens_are_those_of_plain_decoding(model, pays_above):
  plain = generate(model, 'none')
  text = f'prompt_lookup:depth=2,pays_above={pays_above}'
  paused = generate(model, text)
  assert paused.tokens == plain.tokens
  lengths = [
    1 + n + sum(row) for n, row in zip(paused.calls, paused.accept_lengths)
  ]
  assert lengths == list(map(len, plain.tokens))


def test_a_text_may_be_taken_step_by_step(model):
  text = 'prompt_lookup:depth=2,pays_above=1.05'
  decoder = model.decoder(text, DECODE)
  whole = generate(model, text)
  rows = [[] for _ in PROMPTS]
  for row, tokens in decoder.stream(decoder.params, PROMPTS, steps=1):
    rows[row] += tokens
  assert rows == whole.tokens


class Play:
  """What the gauge comes to, call after call, from what calls emit."""

  def __init__(self, pays_above):
    self.pays_above, self.gauge = pays_above, pauses.begin(pays_above)
    self.drafting = []

  def run(self, emitted):
    """One call each; an infinite text of calls that emit as told."""
    for count in emitted:
      gauge = pauses._rest(self.gauge, self.pays_above)
      is_resting = bool(gauge.resting > 0)
      self.drafting.append(not is_resting)
      if is_resting:
        self.gauge = pauses._wake(gauge, gauge.resting - 1)
      else:
        self.gauge = pauses.judge(
          gauge, jnp.float32(count), jnp.bool_(True), self.pays_above
        )
    return self.drafting


def test_what_never_pays_is_tried_ever_less():
  play = Play(2.0)
  drafting = play.run([1.0] * 1200)
  # Three calls, then a pause of 16; the pauses double up to 128.
  assert drafting[:3] == [True] * 3
  assert not any(drafting[4:19])
  assert sum(drafting) < 0.04 * len(drafting)
  assert sum(drafting[600:]) <= 0.03 * 600


@pytest.mark.parametrize('cost', [1.5, 2.0, 2.7, 3.3])
def test_a_text_that_never_pays_loses_three_percent_at_most(cost):
  @jax.jit
  def play(gauge):
    """Whether each of many calls drafts, where all emit one token."""

    def call(gauge, _):
      gauge = pauses._rest(gauge, cost)
      rested = pauses._wake(gauge, gauge.resting - 1)
      told = pauses.judge(gauge, jnp.float32(1.0), jnp.bool_(True), cost)
      is_resting = gauge.resting > 0
      pick = lambda one, other: jnp.where(is_resting, one, other)
      return jax.tree.map(pick, rested, told), ~is_resting

    return jax.lax.scan(call, gauge, length=3100)[1]

  drafting = np.asarray(play(pauses.begin(cost)))[1100:]
  time = np.where(drafting, cost, 1.0).mean()
  assert 1.0 < time <= 1.03


def test_the_longest_pause_follows_the_cost():
  found = [pauses.longest(cost) for cost in (1.0, 2.0, 2.1, 3.0, 3.3, 1000.0)]
  assert found == [128, 128, 256, 256, 512, 1024]


def test_what_pays_is_never_left_alone():
  assert all(Play(2.0).run([3.0] * 200))


def test_drafts_come_back_when_the_text_gets_easier():
  play = Play(2.0)
  play.run([1.0] * 60)
  drafting = play.run([4.0] * 400)[60:]
  first = drafting.index(True, 1)
  assert first < 140
  assert all(drafting[first + 3 :])
  # And the next pause is a short one again.
  assert int(play.gauge.pause) == 16


def _gauge(mean, tries, resting, pause):
  counts = map(jnp.int32, (tries, resting, pause))
  return pauses.Gauge(jnp.float32(mean), *counts)


def _numbers(gauge):
  mean, *counts = map(float, gauge[:4])
  return round(mean, 5), *map(int, counts)


@pytest.mark.parametrize(
  ('gauge', 'emitted', 'had_drafts', 'want'),
  [
    ((2.0, 1, 0, 64), 4.0, True, (2.6, 0, 0, 16)),  # 0.7 * 2 + 0.3 * 4
    ((2.0, 2, 0, 64), 4.0, True, (2.6, 1, 0, 64)),  # still trying
    ((2.0, 0, 0, 64), 4.0, True, (2.6, 0, 0, 16)),
    ((2.0, 0, 0, 64), 3.0, True, (2.3, 0, 0, 64)),  # pays, but not for long
    ((2.0, 3, 5, 64), 9.0, False, (2.0, 2, 5, 64)),
    ((1.3 * 1.9, 1, 0, 64), 9.0, False, (2.47, 0, 0, 16)),  # just enough
  ],
)
def test_what_a_call_tells(gauge, emitted, had_drafts, want):
  emitted, had_drafts = jnp.float32(emitted), jnp.bool_(had_drafts)
  found = pauses.judge(_gauge(*gauge), emitted, had_drafts, 1.9)
  assert _numbers(found) == want


def test_only_rows_that_had_drafts_tell_something():
  state = lambda *num_tokens: types.SimpleNamespace(
    tree=types.SimpleNamespace(
      tokens=jnp.array([[5, 0, -1], [5, -1, 6], [5, -1, -1], [5, 7, 8]])
    ),
    is_done=jnp.array([False, False, False, True]),
    num_tokens=jnp.array(num_tokens),
  )
  gauge = _gauge(2.0, 0, 0, 64)
  seen = pauses._seen(gauge, state(4, 4, 4, 4), state(5, 8, 20, 20), 1.9)
  assert _numbers(seen) == (2.15, 0, 0, 64)  # 0.7 * 2 + 0.3 * (1 + 4) / 2
  one = state(4, 4, 4, 4)
  one.is_done = jnp.array([True, False, False, True])
  seen = pauses._seen(gauge, one, state(9, 8, 20, 20), 1.9)
  assert _numbers(seen) == (2.6, 0, 0, 16)  # 0.7 * 2 + 0.3 * 4
  none = state(4, 4, 4, 4)
  none.tree.tokens = jnp.full((4, 3), -1)
  seen = pauses._seen(gauge, none, state(5, 5, 5, 5), 1.9)
  assert _numbers(seen) == (2.0, 0, 0, 64)


@pytest.mark.parametrize(
  ('gauge', 'want'),
  [
    ((1.5, 0, 0, 16), (1.75, 0, 16, 32)),  # it begins, the next is longer
    ((1.5, 0, 0, 64), (1.75, 0, 64, 128)),
    ((1.5, 0, 0, 128), (1.75, 0, 128, 128)),
    ((1.75, 0, 0, 16), (1.75, 0, 0, 16)),  # pays just enough
    ((1.5, 1, 0, 16), (1.5, 1, 0, 16)),  # a try is left
    ((1.5, 0, 1, 16), (1.5, 0, 1, 16)),  # one is on
  ],
)
def test_when_a_pause_begins(gauge, want):
  assert _numbers(pauses._rest(_gauge(*gauge), 1.75)) == want


@pytest.mark.parametrize(
  ('gauge', 'left', 'want'),
  [
    ((2.0, 0, 5, 16), 0, (2.0, 3, 0, 16)),
    ((2.0, 0, 1, 16), -1, (2.0, 3, 0, 16)),
    ((2.0, 0, 5, 16), 1, (2.0, 0, 1, 16)),
    ((2.0, 1, 0, 16), 0, (2.0, 1, 0, 16)),  # none was on
  ],
)
def test_when_a_pause_ends(gauge, left, want):
  assert _numbers(pauses._wake(_gauge(*gauge), jnp.int32(left))) == want


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
  """Rows that emit a token a call; `kinds` says how each step was made."""

  kinds: jax.Array  # [N] 0 is none, 1 with drafts, 2 plain
  limits: jax.Array  # [B]
  calls: jax.Array  # [B]
  tree: Any

  @property
  def is_done(self):
    return self.calls >= self.limits

  @property
  def num_tokens(self):
    return self.calls

  def step(self, kind, drafts):
    tokens = self.tree.tokens.at[:, 1].set(drafts)
    return Toy(
      self.kinds.at[self.kinds.argmin()].set(kind),
      self.limits,
      self.calls + ~self.is_done,
      dataclasses.replace(self.tree, tokens=tokens),
    )


def _toy_plain(setup, params, toy, steps, *, min_running, stops):
  """As `batch_sizes.run_plain`: no drafts are left, even after no step."""
  del setup, params, stops
  goes_on = lambda carry: (
    (carry[1] < steps) & ((~carry[0].is_done).sum() >= min_running)
  )
  walk = lambda carry: (carry[0].step(2, -1), carry[1] + 1)
  toy, _ = jax.lax.while_loop(goes_on, walk, (toy, jnp.int32(0)))
  tokens = toy.tree.tokens.at[:, 1].set(-1)
  return dataclasses.replace(
    toy, tree=dataclasses.replace(toy.tree, tokens=tokens)
  )


@pytest.fixture
def run_toy(monkeypatch):
  """Runs of so many steps, each of which drafts this token; -1 is none."""
  nothing: Any = None
  monkeypatch.setattr(pauses.batch_sizes, 'run_plain', _toy_plain)

  @functools.partial(jax.jit, static_argnums=(2, 3))
  def run(toy, gauge, quantum, draft):
    step = lambda setup, params, toy, stops: toy.step(1, draft)
    monkeypatch.setattr(pauses.loop, 'step', step)
    return pauses.run(
      nothing, nothing, nothing, toy, gauge, quantum, pays_above=2.0
    )

  return run


def _toy(limits):
  zeros = jnp.zeros(2, jnp.int32)
  tree = tree_lib.root_only(zeros)
  tree = dataclasses.replace(tree, tokens=jnp.array([[5, 7], [5, 7]]))
  return Toy(jnp.zeros(400, jnp.int32), jnp.array(limits), zeros, tree)


@pytest.mark.parametrize('quantum', [1, 7, 999])
def test_steps_of_a_text_that_never_pays(run_toy, quantum):
  """Three calls with drafts, a pause; whatever a run's quantum is."""
  # The second row ends in a pause, the first after all of them.
  toy, gauge, steps = _toy([330, 9]), pauses.begin(2.0), 0
  while not toy.is_done.all():
    toy, gauge = run_toy(toy, gauge, quantum, 7)
    steps = min(steps + quantum, 330)
    assert toy.calls.tolist() == [steps, min(steps, 9)]
  want = []
  for pause in (16, 32, 64, 128, 128):
    want += [1] * 3 + [2] * pause
  assert toy.kinds.tolist() == want[:330] + [0] * 70


def test_where_nothing_is_drafted_there_is_nothing_to_rest_from(run_toy):
  toy, _ = run_toy(_toy([99, 99]), _gauge(2.6, 0, 0, 16), 99, -1)
  # After its one call with drafts, which is worth 2.12.
  assert toy.kinds.tolist() == [1] * 99 + [0] * 301
  toy = dataclasses.replace(toy, limits=jnp.array([120, 120]))
  toy, _ = run_toy(toy, _gauge(2.0, 0, 0, 16), 99, -1)  # just enough
  assert toy.kinds.tolist() == [1] * 120 + [0] * 280


@pytest.mark.parametrize(
  'text, said',
  [
    ('streams:pays_above=2,drafting=beam,verifier=typical', "'walk' only"),
    ('lookahead:pays_above=2', 'does not read pays_above'),
    ('draft_model:path=x,pays_above=2', 'does not read pays_above'),
    ('streams:pays_above=-1', 'pays_above is -1'),
  ],
)
def test_where_drafts_cannot_pause_it_says_so(text, said):
  with pytest.raises(ValueError, match=said):
    drafting.parse(text)


def test_the_cache_stays_where_it_is(model):
  """As `test_compiled_step_copies_neither_cache_nor_weights`."""
  decode = dataclasses.replace(DECODE, cache_length=2048)
  decoder = model.decoder('prompt_lookup:depth=2,pays_above=1.5', decode)
  state = decoder.start(decoder.params, PROMPTS[:1])
  lowered = decoder._run_pausing.lower(
    decoder.params, state, decoder._gauge, jnp.int32(9), None
  )
  compiled, layer_bytes = lowered.compile(), state.cache.keys[0].nbytes
  lines = hlo.copies_of_size(compiled.as_text(), layer_bytes)
  # Attention weights have the slots in them, but not the width of a head.
  lines = [line for line in lines if 8 in hlo.dims(line)]
  assert not lines, '\n'.join(lines)
  # Keys and values of two layers are given, and given back, in place.
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased >= 4 * layer_bytes


@pytest.mark.slow
def test_at_the_end_of_the_cache_a_tree_has_room(model):
  """A pause may not go on to where the next tree would lie over the text."""
  decode = dataclasses.replace(DECODE, cache_length=30)
  decoder = model.decoder('prompt_lookup:depth=8,pays_above=9', decode)
  done = decoder.generate(decoder.params, PROMPTS)
  want = generate(model, 'none').tokens
  assert done.finish_reasons == ['cache'] * 2
  for made, whole in zip(done.tokens, want, strict=True):
    assert made == whole[: len(made)]
  # Of slots, the prompt's tokens and a tree's nodes; the last is not read yet.
  assert [len(made) for made in done.tokens] == [30 - 9 - 3 + 2, 30 - 9 - 1 + 2]
