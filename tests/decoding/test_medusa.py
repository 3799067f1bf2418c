# SPDX-License-Identifier: Apache-2.0
"""Medusa heads as a drafter: same tokens, the right tree, the best tree."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import decoder, transformer_fns
from specstream_jax.drafters import medusa, none
from specstream_jax.modeling import heads as heads_lib, params

J = 3
CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=2)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
TREES = {
  'best_first': config.TreeConfig('best_first', 3, 3, 7),
  'full': config.TreeConfig('full', depth=2, branching=2),
  'chain': config.TreeConfig('chain', depth=3),
  'fixed': config.TreeConfig('fixed', choices=((0,), (1,), (0, 0), (0, 0, 1))),
}
DECODE = config.DecodeConfig(max_new_tokens=23, prompt_bucket=8, eos_ids=(9,))
SAMPLED = config.SamplingConfig(temperature=1.0)
HEADS = heads_lib.build(CONFIG, J)


@functools.cache
def weights():
  """Base, and heads that are somewhat off the base's own prediction."""
  _, base, _ = tiny.model(CONFIG, None, None)
  flat = params.flatten(heads_lib.init(HEADS, base))
  keys = jax.random.split(jax.random.key(7), len(flat))
  noisy = {
    path: leaf + 0.1 * jax.random.normal(key, leaf.shape)
    for key, (path, leaf) in zip(keys, flat.items())
  }
  return transformer_fns.Params(base, drafter=params.unflatten(noisy))


@functools.cache
def decode(drafter, sampling=config.SamplingConfig()):
  """Every prompt through the tiny transformer."""
  built = tiny.model(CONFIG, None, None)[0]
  fns = transformer_fns.model_fns(built)
  made = decoder.Decoder(fns, drafter, DECODE, sampling)
  return made.generate(weights(), PROMPTS, seed=3)


PLAIN = none.NoDraft()


@pytest.mark.parametrize('name', TREES)
def test_greedy_tokens_equal_plain_decoding(name):
  result = decode(medusa.Medusa(HEADS, TREES[name]))
  assert result.tokens == decode(PLAIN).tokens
  assert result.finish_reasons == decode(PLAIN).finish_reasons
  assert len({len(row) for row in result.tokens}) > 1


@pytest.mark.parametrize(
  'couple_noise', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_sampled_tokens_equal_plain_decoding(couple_noise):
  options = config_drafting.DrafterConfig('medusa', couple_noise=couple_noise)
  drafter = medusa.Medusa(HEADS, TREES['best_first'], options)
  result = decode(drafter, SAMPLED)
  assert result.tokens == decode(PLAIN, SAMPLED).tokens
  assert result.tokens != decode(PLAIN).tokens
  if couple_noise:
    # The target's own noise gets some drafts right that nothing else could.
    assert sum(map(sum, result.accept_lengths)) > 0


def test_drafts_are_the_best_tokens_of_the_heads_at_the_leaf():
  """The chain after the prompt pass, by hand."""
  built = tiny.model(CONFIG, None, None)[0]
  fns = transformer_fns.model_fns(built)
  drafter = medusa.Medusa(HEADS, TREES['chain'])
  state = decoder.Decoder(fns, drafter, DECODE).start(weights(), [[4, 5, 6]])
  forward = fns.forward(
    weights(),
    jnp.array([[4, 5, 6]]),
    jnp.arange(3)[None],
    jnp.tri(3, dtype=bool)[None],
    fns.init_cache(1, 8),
    with_streams=False,
  )
  hidden = np.asarray(forward.hidden[0, -1], float)
  for j in range(J):
    head = {k: np.asarray(v) for k, v in weights().drafter['heads'][j].items()}
    inner = head['kernel'] @ hidden + head['bias']
    logits = head['projection'] @ (hidden + inner / (1 + np.exp(-inner)))
    assert state.tree.tokens[0, j + 1] == np.argmax(logits)
  np.testing.assert_array_equal(state.tree.depths[0], [0, 1, 2, 3])


def test_heads_start_as_the_base_and_have_the_papers_size():
  for tied in (True, False):
    sizes = dict(vocab_size=53, hidden_size=22, tie_word_embeddings=tied)
    cfg = config.ModelConfig(
      **sizes,
      intermediate_size=31,
      num_layers=1,
      num_heads=2,
      num_kv_heads=2,
      head_dim=4,
    )
    built, base, _ = tiny.model(cfg, None, None)
    heads = heads_lib.build(cfg, J)
    start = heads_lib.init(heads, base)
    hidden = jax.random.normal(jax.random.key(1), (2, 5, 22))
    expected = built.merge(base, {}).logits(hidden)
    got = heads.merge(start).logits(hidden)
    assert got.shape == (2, 5, J, 53)
    for j in range(J):
      np.testing.assert_allclose(got[:, :, j], expected, atol=1e-5)
    by_hand = J * (22 * 22 + 22 * 53) + J * 22
    assert params.count(start) == heads_lib.count(cfg, J) == by_hand


def test_smollm_heads_have_114_575_616_parameters():
  cfg = config.ModelConfig(49152, 576, 1536, 30, 9, 3, 64)
  assert params.count(heads_lib.build(cfg, 4).shapes) == 114_575_616


def test_trees_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='depth 4 but there are 3 Medusa heads'):
    medusa.Medusa(HEADS, config.TreeConfig(depth=4))
  with pytest.raises(ValueError, match='keep_nodes is 5 but Medusa has no'):
    medusa.Medusa(HEADS, config.TreeConfig(depth=3, keep_nodes=5))


def test_tree_of_known_accuracies_is_the_hand_made_one():
  """Paths are accepted with 0.5, 0.3, 0.5 · 0.4 = 0.2, 0.3 · 0.4 = 0.12."""
  accuracies = [[0.5, 0.3, 0.1], [0.4, 0.15, 0.1]]
  choices = medusa.best_choices(accuracies, 5)
  assert choices == ((0,), (1,), (0, 0), (1, 0))
  # The next: (2,) with 0.1, (0, 1) with 0.075.
  assert set(medusa.best_choices(accuracies, 7)) - set(choices) == {
    (2,),
    (0, 1),
  }


def test_calibrated_tree_has_the_highest_expected_accept_length():
  rng = np.random.default_rng(0)
  paths = [p for d in (1, 2) for p in itertools.product(range(3), repeat=d)]
  for _ in range(5):
    table = rng.uniform(size=(2, 3))
    value = lambda ps, t=table: sum(
      np.prod([t[d, rank] for d, rank in enumerate(p)]) for p in ps
    )
    closed = lambda ps: all(len(p) == 1 or p[:-1] in ps for p in ps)
    best = max(
      value(ps) for ps in itertools.combinations(paths, 5) if closed(ps)
    )
    assert value(medusa.best_choices(table, 6)) == pytest.approx(best)


def test_calibrated_tree_leaves_out_what_never_comes_true():
  assert medusa.best_choices([[0.5, 0.0], [0.0, 0.0]], 9) == ((0,),)
  with pytest.raises(ValueError, match='head 0 was never right'):
    medusa.best_choices([[0.0, 0.0]], 9)
