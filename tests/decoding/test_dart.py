# SPDX-License-Identifier: Apache-2.0
"""A DART layer as a drafter: same tokens, drafts as the oracle has them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
import tiny

from specstream_jax import config
from specstream_jax.checkpoints import ngram_table
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import decoder, loop, transformer_fns
from specstream_jax.drafters import dart, none
from specstream_jax.modeling import dart as dart_lib, params

J = 3
CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=1)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
TREES = {
  'best_first': config.TreeConfig('best_first', 3, 3, 6),
  'full': config.TreeConfig('full', depth=2, branching=2),
  'chain': config.TreeConfig('chain', depth=3),
}
DECODE = config.DecodeConfig(max_new_tokens=23, prompt_bucket=8, eos_ids=(9,))
SAMPLED = config.SamplingConfig(temperature=1.0)
LAYER = dart_lib.build(CONFIG, J, dtype='float32')
PLAIN = none.NoDraft()


@pytest.fixture(autouse=True, scope='module')
def _compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def built():
  return tiny.model(CONFIG, None, None)[0]


@functools.cache
def weights():
  """Base, and a layer all of whose weights count."""
  base = tiny.model(CONFIG, None, None)[1]
  start = dart_lib.init(LAYER, params.flatten(base), jax.random.key(6))
  flat = params.flatten(start)
  keys = jax.random.split(jax.random.key(7), len(flat))
  noisy = {
    path: leaf + 0.1 * jax.random.normal(key, leaf.shape)
    for key, (path, leaf) in zip(keys, flat.items())
  }
  table, _ = ngram_table.from_pairs([(np.arange(3), np.arange(3, 40))])
  return transformer_fns.Params(
    base, drafter=dart.Weights(params.unflatten(noisy), table)
  )


def drafter(tree, **settings):
  options = config_drafting.DrafterConfig('dart', **settings)
  return dart.Dart(built(), LAYER, TREES[tree], options)


def made(drafter, sampling=config.SamplingConfig()):
  fns = transformer_fns.model_fns(built())
  if drafter is not PLAIN:
    fns = dart.with_layer(fns, built(), LAYER)
  return decoder.Decoder(fns, drafter, DECODE, sampling)


@functools.cache
def plain(sampling=config.SamplingConfig()):
  return made(PLAIN, sampling).generate(weights(), PROMPTS, seed=3)


@pytest.mark.parametrize(
  'tree',
  [
    'best_first',
    pytest.param('chain', marks=pytest.mark.slow),
    pytest.param('full', marks=pytest.mark.slow),
  ],
)
def test_greedy_tokens_equal_plain_decoding(tree):
  result = made(drafter(tree)).generate(weights(), PROMPTS, seed=3)
  assert result.tokens == plain().tokens
  assert result.finish_reasons == plain().finish_reasons
  assert len({len(row) for row in result.tokens}) > 1
  assert sum(map(sum, result.accept_lengths)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
  'settings', [{}, {'ngram_table': 'x'}], ids=['alone', 'n-grams']
)
def test_sampled_tokens_equal_plain_decoding(settings):
  own = drafter('best_first', **settings)
  result = made(own, SAMPLED).generate(weights(), PROMPTS, seed=3)
  assert result.tokens == plain(SAMPLED).tokens
  assert result.tokens != plain().tokens
  assert sum(map(sum, result.accept_lengths)) > 0


def test_drafts_are_those_of_the_oracle_after_every_commit():
  """The layer's keys lie right however many drafts were accepted."""
  made_decoder = made(drafter('chain'))
  state = made_decoder.start(weights(), PROMPTS[:2], seed=3)
  step = jax.jit(functools.partial(loop.step, made_decoder.setup))
  oracle = reference.Model(
    params.flatten(weights().base), {}, CONFIG, None, None
  )
  flat = params.flatten(weights().drafter.layer)
  accepted = []
  for _ in range(5):
    for row, prompt in enumerate(PROMPTS[:2]):
      if state.is_done[row]:
        continue
      out = np.asarray(state.tokens[row])[: int(state.num_tokens[row])]
      text = [*prompt, *out]
      leaf = len(text) - 2
      states = reference.dart_drafts(oracle, flat, text, leaf, J)
      best = oracle.logits(states).argmax(axis=1)
      np.testing.assert_array_equal(state.tree.tokens[row, 1:], best)
      assert state.tree.tokens[row, 0] == text[-1]
    before, state = state, step(weights(), state)
    accepted.append(int((state.num_tokens - before.num_tokens).max()))
  assert max(accepted) > 1  # else nothing but the root was ever committed


def test_the_cache_of_the_target_is_as_without_the_layer():
  """One layer more, of the same sizes, behind those that were there."""
  fns = transformer_fns.model_fns(built())
  both = [
    f.init_cache(2, 7) for f in (fns, dart.with_layer(fns, built(), LAYER))
  ]
  counts = [len(cache.keys) for cache in both]
  assert counts == [CONFIG.num_layers, CONFIG.num_layers + 1]
  assert both[1].keys[-1].shape == both[0].keys[0].shape


def test_a_layer_starts_as_the_target_and_adds_nothing():
  """Behind the root it says at first what the target says behind the leaf."""
  flat = params.flatten(weights().base)
  start = params.flatten(dart_lib.init(LAYER, flat, jax.random.key(0)))
  last = f'layers/{CONFIG.num_layers - 1}/'
  for path, leaf in start.items():
    if path.endswith(('out/kernel', 'down/kernel')):
      assert not leaf.any(), path
    elif path.startswith('layer/') or path.startswith('final_norm'):
      source = flat[path.replace('layer/', last)]
      np.testing.assert_array_equal(leaf, source, err_msg=path)
  text = [4, 5, 6, 7]
  oracle = reference.Model(flat, {}, CONFIG, None, None)
  states = reference.dart_drafts(oracle, start, text, 2, J)
  hidden = oracle.run(text[:3])[0][-1]
  own = reference.norm(
    hidden, np.asarray(flat['final_norm/scale'], float), CONFIG.rms_norm_eps
  )
  np.testing.assert_allclose(states[0], own, rtol=1e-4)


def test_smollm_layer_has_4_207_104_parameters():
  """By hand: fuse 2h², attention 2h² + 2·192h, MLP 3·1536h, five norms, masks."""
  cfg = config.ModelConfig(49152, 576, 1536, 30, 9, 3, 64)
  h = 576
  by_hand = 4 * h * h + 2 * 192 * h + 3 * 1536 * h + 5 * h + 3 * h
  assert dart_lib.count(cfg, 4) == by_hand == 4_207_104


def test_trees_and_settings_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='depth 4 but the DART layer drafts 3'):
    dart.Dart(built(), LAYER, config.TreeConfig(depth=4))
  with pytest.raises(ValueError, match='keep_nodes is 5 but a DART layer has'):
    dart.Dart(built(), LAYER, config.TreeConfig(depth=3, keep_nodes=5))
  with pytest.raises(ValueError, match="'dart' does not read window"):
    config_drafting.parse('dart:path=a,window=2')
