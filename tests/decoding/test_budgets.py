# SPDX-License-Identifier: Apache-2.0
"""How much of a tree is verified follows the drafts; tokens stay the same."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import budgets as config_budgets, drafting
from specstream_jax.decoding import (
  budgets,
  decoder as decoder_lib,
  loop,
  pauses,
  plain,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import streams
from specstream_jax.tpu import hlo

PROMPTS = [[5, 6, 7], [9]]
DECODE = config.DecodeConfig(max_new_tokens=40)
GREEDY = config.SamplingConfig()
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)
SIZES = config_budgets.parse('2:1.5/4:2', 64)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def text(costs):
  tree = 'kind=best_first,depth=2,branching=3,num_nodes=6'
  return f'streams:{tree},budgets={costs}'


@pytest.fixture(scope='module')
def plain_tokens(model):
  decoder = model.decoder('none', DECODE)
  return lambda sampling: (
    decoder.generate(decoder.params, PROMPTS, sampling=sampling).tokens
  )


# Some calls of each size and some pauses; no pause; nothing that pays.
COSTS = '3:0.9/6:1.02', '3:0.5/6:0.9', '2:3/4:3.5/6:4'
SLOW = [(costs, SAMPLED) for costs in COSTS]
SLOW += [(costs, GREEDY) for costs in COSTS[1:]]


@pytest.mark.parametrize(
  ('costs', 'sampling'),
  [
    (COSTS[0], GREEDY),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW),
  ],
)
def test_tokens_are_those_of_plain_decoding(
  model, plain_tokens, costs, sampling
):
  decoder, want = model.decoder(text(costs), DECODE), plain_tokens(sampling)
  before = decoder.num_compilations
  for _ in range(2):  # the second goes on with what the first has learned
    made = decoder.generate(decoder.params, PROMPTS, sampling=sampling)
    assert made.tokens == want
    lengths = [
      1 + n + sum(row) for n, row in zip(made.calls, made.accept_lengths)
    ]
    assert lengths == list(map(len, want))
  assert decoder.num_compilations == before + 2  # the prompts and the loop
  # Programs of other placements are not traced anew, but compiled.
  assert decoder._run_pausing._cache_size() == (2 if before else 1)


@pytest.mark.slow
def test_a_text_may_be_taken_step_by_step(model, plain_tokens):
  decoder = model.decoder(text('3:0.9/6:1.02'), DECODE)
  rows = [[] for _ in PROMPTS]
  for row, tokens in decoder.stream(decoder.params, PROMPTS, steps=1):
    rows[row] += tokens
  assert rows == plain_tokens(GREEDY)


@pytest.mark.slow
@pytest.mark.parametrize('sampling', [GREEDY, SAMPLED])
@pytest.mark.parametrize(
  'settings', ['schedule=parallel', 'schedule=likely,likely_nodes=3', 'mix']
)
def test_tokens_stay_with_every_schedule_and_with_copies(
  model, plain_tokens, settings, sampling
):
  asked = f'{text("2:0.8/4:0.9/6:1.02")},{settings}'
  if settings == 'mix':
    asked = text('2:0.8/4:0.9/6:1.02').replace('streams', 'mix')
  decoder = model.decoder(asked, DECODE)
  made = decoder.generate(decoder.params, PROMPTS, sampling=sampling)
  assert made.tokens == plain_tokens(sampling)
  assert max(map(max, made.accept_lengths)) > 0


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['deferred', 'parallel', 'likely'])
def test_tokens_stay_where_nodes_are_pruned_on_the_way(schedule):
  """Smaller trees keep all of their nodes, or as many as the larger ones."""
  built, base, adapter = tiny.model()
  tree = config.TreeConfig('best_first', 3, 3, 11, keep_nodes=5)
  fns = functools.partial(transformer_fns.model_fns, built)
  make = functools.partial(decoder_lib.Decoder, cfg=DECODE, prompt_model=fns())
  weights = transformer_fns.Params(base, adapter)
  prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
  want = make(fns(), plain.NoDraft()).generate(weights, prompts).tokens
  sizes = config_budgets.parse('3:0.8/7:0.9/11:1.0', 64)
  made = make(
    fns(schedule, 5, likely_nodes=2), streams.Streams(tree, 3), budgets=sizes
  ).generate(weights, prompts)
  assert made.tokens == want
  assert max(map(max, made.accept_lengths)) > 0


def _state(chances, done=(False,), num_tokens=(1,)):
  """Of rows whose trees' nodes have these chances, the root's left out."""
  scores = jnp.log(jnp.array(chances, jnp.float32))
  scores = jnp.pad(scores, ((0, 0), (1, 0)))
  return types.SimpleNamespace(
    tree=types.SimpleNamespace(scores=scores),
    is_done=jnp.array(done),
    num_tokens=jnp.array(num_tokens),
  )


def test_what_a_tree_promises():
  # The docstring's example; nodes lie in no order of their chances.
  one = _state([[0.2, 0.5, 0.4]])
  sizes = config_budgets.parse('2:1/3:1/4:1', 64)
  np.testing.assert_allclose(budgets.promises(one, sizes), [0.5, 0.9, 1.1])
  # Rows that are done promise nothing, unused nodes neither, nor what is NaN.
  rows = _state(
    [[0.2, 0.5, 0.4], [0.0, 0.3, jnp.nan], [0.9, 0.9, 0.9]],
    done=[False, False, True],
  )
  found = budgets.promises(rows, sizes)
  np.testing.assert_allclose(found, [0.4, 0.6, 0.7], rtol=1e-6)
  over = _state([[0.9, 0.9, 0.9]], done=[True])
  assert budgets.promises(over, sizes).tolist() == [0, 0, 0]


def _trust(promised, right, level):
  return budgets.Trust(
    jnp.float32(promised), jnp.float32(right), jnp.int32(level)
  )


@pytest.mark.parametrize(
  ('trust', 'promised', 'level', 'worth'),
  [
    ((0, 0, 0), (0.8, 2.0), 1, 1.5),  # 1.8 / 1.5 against 3 / 2
    ((0, 0, 1), (0.8, 1.2), 0, 1.2),  # 1.8 / 1.5 against 2.2 / 2
    # 1.8 / 1.5 against 2.45 / 2, 2 % more: it stays, whichever it is.
    ((0, 0, 0), (0.8, 1.45), 0, 1.2),
    ((0, 0, 1), (0.8, 1.45), 1, 1.225),
    ((4, 0, 0), (0.8, 2.0), 1, 1.0),  # half right: 1.4 / 1.5, 2 / 2
    ((4, 0, 1), (0.8, 1.2), 0, 1.4 / 1.5),  # against 1.6 / 2
    ((4, 12, 1), (0.8, 1.2), 1, 1.7),  # too modest: 2.6 / 1.5, 3.4 / 2
    ((0, 0, 1), (0.0, 0.0), 0, 1 / 1.5),  # nothing to verify
  ],
)
def test_the_size_that_promises_most_for_its_cost(
  trust, promised, level, worth
):
  before = _trust(*trust)
  after, found = budgets.choose(before, jnp.array(promised), SIZES)
  assert (int(after.level), after[:2]) == (level, before[:2])
  np.testing.assert_allclose(found, worth, rtol=1e-6)


def test_to_choose_again_changes_nothing():
  for promised in ((0.8, 2.0), (0.8, 1.45), (0.8, 1.2)):
    for level in (0, 1):
      once, _ = budgets.choose(_trust(3, 2, level), jnp.array(promised), SIZES)
      twice, _ = budgets.choose(once, jnp.array(promised), SIZES)
      assert int(once.level) == int(twice.level)


def test_what_a_call_tells_of_promises():
  before = _state([[0.5]] * 3, [False, False, True], [4, 4, 4])
  after = _state([[0.5]] * 3, [False, True, True], [5, 8, 9])
  found = budgets._learn(_trust(5, 10, 1), jnp.array([0.8, 2.0]), before, after)
  # 0.8 * 5 + 2; 0.8 * 10 + (0 + 3) / 2.
  np.testing.assert_allclose(found, (6, 9.5, 1), rtol=1e-6)


N = 60  # calls of a toy at most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
  """A row that emits as its script says, from trees of its script's chances."""

  chances: jax.Array  # [N, M - 1] of the nodes that each call verifies
  emitted: jax.Array  # [N] by each call
  verified: jax.Array  # [N] nodes that it took, 1 of a plain step
  num_calls: jax.Array
  num_tokens: jax.Array
  tree: tree_lib.DraftTree

  @property
  def is_done(self):
    return self.num_calls[None] >= N

  @property
  def calls(self):
    return self.num_calls[None]

  def step(self, nodes, has_drafts):
    now = self.num_calls
    scores = jnp.log(self.chances[jnp.minimum(now + 1, N - 1)])
    scores = jnp.where(has_drafts, scores, -jnp.inf)
    tree = _chain()
    scores = tree.scores.at[0, 1:].set(scores)
    return dataclasses.replace(
      self,
      verified=self.verified.at[now].set(nodes),
      num_calls=now + 1,
      num_tokens=self.num_tokens + self.emitted[now],
      tree=dataclasses.replace(tree, scores=scores),
    )


def _chain():
  return tree_lib.DraftTree(
    jnp.array([[5, 6, 7, 8]]),
    jnp.array([[0, 0, 1, 2]]),
    jnp.array([[0, 1, 2, 3]]),
    scores=jnp.zeros((1, 4)),
  )


def _toy_plain(setup, params, toy, steps, *, min_running, stops):
  """As `batch_sizes.run_plain`."""
  del setup, params, stops, min_running
  goes_on = lambda carry: (carry[1] < steps) & ~carry[0].is_done[0]
  walk = lambda carry: (carry[0].step(1, False), carry[1] + 1)
  return jax.lax.while_loop(goes_on, walk, (toy, jnp.int32(0)))[0]


@pytest.fixture
def play(monkeypatch):
  """(chances of each call's drafts, tokens of each) -> nodes of each."""
  monkeypatch.setattr(pauses.batch_sizes, 'run_plain', _toy_plain)
  monkeypatch.setattr(
    loop, 'step', lambda s, p, toy, stops: toy.step(toy.tree.tokens.shape[1], 1)
  )
  setup = types.SimpleNamespace(drafter=types.SimpleNamespace(size=4))
  nothing: Any = None

  @functools.partial(jax.jit, static_argnums=2)
  def run(toy, gauge, quantum):
    return budgets.run(
      setup, nothing, nothing, toy, gauge, quantum, sizes=SIZES
    )

  def play(chances, emitted, quantum=N):
    chances = jnp.cumprod(jnp.array(chances, jnp.float32), axis=1)
    tree = _chain()
    scores = tree.scores.at[0, 1:].set(jnp.log(chances[0]))
    toy, gauge = (
      Toy(
        chances,
        jnp.array(emitted),
        jnp.zeros(N, jnp.int32),
        jnp.int32(0),
        jnp.zeros(1, jnp.int32),
        dataclasses.replace(tree, scores=scores),
      ),
      budgets.begin(),
    )
    while not toy.is_done[0]:
      toy, gauge = run(toy, gauge, quantum)
    return toy.verified.tolist()

  return play


SURE, UNSURE, LOST = [0.9] * 3, [0.8, 0.1, 0.1], [0.01] * 3


@pytest.mark.parametrize('quantum', [N, 1])
def test_calls_of_a_text(play, quantum):
  """Worth 1.72 (or 1.27), 1.2 (0.95) and 0.67 (0.51) with two nodes (four)."""
  chances = [SURE] * 3 + [UNSURE] * 2 + [SURE] * 4 + [LOST] * 51
  emitted = [3] * 3 + [2] * 2 + [3] * 4 + [1] * 51
  verified = play(chances, emitted, quantum)
  assert verified[:9] == [4, 4, 4, 2, 2, 4, 4, 4, 4]
  # Small ones until drafts have been worth less than 1 for a while; then
  # pauses, after which one small call, without drafts to verify, looks again.
  first = verified.index(1)
  assert verified[9:first] == [2] * (first - 9)
  assert 11 <= first <= 14
  rest = [1] * 16 + [2] + [1] * 32
  assert verified[first:] == rest[: N - first]


def test_no_later_token_decides(play):
  rng = np.random.default_rng(0)
  chances = rng.uniform(0.05, 0.95, (N, 3))
  emitted = rng.integers(1, 4, N)
  want = play(chances, emitted)
  assert len(set(want)) == 3  # all programs run
  for call in (3, 20, 45):
    other = emitted.copy()
    other[call:] = 1
    found = play(chances, other)
    assert found[: call + 1] == want[: call + 1]
    drafts = chances.copy()
    drafts[call + 1 :] = 0.01
    assert play(drafts, other)[: call + 1] == want[: call + 1]


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ('budgets=16:2/8:3', "budgets is '16:2/8:3'"),
    ('budgets=8:3/16:2', 'and ascending, costs'),
    ('budgets=1:1/16:2', 'nodes from 2 to'),
    ('budgets=2:1/3:1/4:1/5:1', 'up to 3 of'),
    ('budgets=8:nan', "'8:nan'"),
    ('budgets=8', "'8'"),
    ('budgets=8:2,pays_above=2', 'leave pays_above out'),
    ('budgets=8:2,drafting=beam', "use drafting='top_k'"),
    ('budgets=8:2,drafting=beam,verifier=typical', "'walk' only"),
  ],
)
def test_what_is_no_budget_says_so(settings, said):
  with pytest.raises(ValueError, match=said):
    drafting.parse(f'streams:{settings}')


def test_who_has_no_chances_has_no_budgets():
  with pytest.raises(ValueError, match='does not read budgets'):
    drafting.parse('prompt_lookup:budgets=4:2')


def test_budgets_end_with_the_tree(model):
  with pytest.raises(ValueError, match='has 5 nodes but the draft tree has 6'):
    model.decoder(text('3:1/5:2'), DECODE)


def test_a_text_of_sizes_is_read_as_it_is_written():
  sizes = config_budgets.parse('4:1.75/16:2.50', 64)
  assert sizes == ((4, 1.75), (16, 2.5))
  assert config_budgets.parse(config_budgets.write(sizes), 64) == sizes


def test_a_pause_leaves_room_for_the_next_tree():
  """Else a tree would be written over tokens at the end of the cache."""
  setup = types.SimpleNamespace(drafter=types.SimpleNamespace(size=6))
  setup._replace = lambda **changes: types.SimpleNamespace(**changes)
  assert plain.without_drafts(setup).drafter.size == 6


@pytest.mark.slow
def test_the_cache_stays_where_it_is(model):
  """As `test_compiled_step_copies_neither_cache_nor_weights`."""
  decode = dataclasses.replace(DECODE, cache_length=2048)
  decoder = model.decoder(text('3:0.9/6:1.02'), decode)
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
