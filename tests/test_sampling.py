# SPDX-License-Identifier: Apache-2.0
"""Masks against the oracle, the law of the draw, keys of position and row."""

import functools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference

from specstream_jax import config, sampling

VOCAB_SIZE = 11


@functools.cache
def _process(temperature, top_k, top_p):
  cfg = config.SamplingConfig(temperature, top_k, top_p)
  return jax.jit(lambda logits: sampling.process_logits(logits, cfg))


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'top_p'),
  [(0.0, 3, 0.5), (0.7, 0, 1.0), (1.3, 4, 1.0), (0.9, 0, 0.6), (1.1, 5, 0.8),
   (1.0, 99, 0.999)],
)  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_masks_match_the_oracle(temperature, top_k, top_p, seed):
  logits = np.random.default_rng(seed).normal(size=(3, VOCAB_SIZE)) * 3
  got = _process(temperature, top_k, top_p)(jnp.float32(logits))
  want = [
    reference.process_logits(row, temperature, top_k, top_p) for row in logits
  ]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_masks_by_hand():
  probs = np.array([0.1, 0.4, 0.2, 0.3])
  cfg = config.SamplingConfig(temperature=1.0, top_p=0.5)
  kept = sampling.process_logits(jnp.log(probs), cfg) > -jnp.inf
  assert kept.tolist() == [False, True, False, True]
  cfg = config.SamplingConfig(temperature=1.0, top_k=3, top_p=0.79)
  kept = sampling.process_logits(jnp.log(probs), cfg) > -jnp.inf
  assert kept.tolist() == [False, True, True, True]


def test_tiny_top_p_is_greedy():
  logits = jnp.float32([[[0.0, 2.0, 1.0]]])
  cfg = config.SamplingConfig(temperature=5.0, top_p=1e-6)
  for position in range(7):
    at = jnp.full((1, 1), position)
    assert sampling.draw(logits, sampling.row_keys(0, [0]), at, cfg) == 1


def test_greedy_is_arg_max():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 11)))
  keys = sampling.row_keys(0, [0, 1])
  drawn = sampling.draw(
    logits, keys, jnp.zeros((2, 3), jnp.int32), config.SamplingConfig()
  )
  np.testing.assert_array_equal(drawn, np.argmax(logits, axis=-1))
  assert drawn.dtype == jnp.int32


@pytest.mark.parametrize(
  'cfg',
  [
    config.SamplingConfig(temperature=1.0),
    config.SamplingConfig(temperature=0.6, top_k=4, top_p=0.95),
  ],
)
@pytest.mark.parametrize('over', ['positions', 'rows'])
def test_draws_follow_softmax(cfg, over):
  """Chi-square below the 1e-6 quantile of 6 degrees of freedom (38.3)."""
  num = 5003
  logits = np.random.default_rng(1).normal(size=7).astype(np.float32)
  shape = (1, num) if over == 'positions' else (num, 1)
  positions = np.arange(num).reshape(shape) if over == 'positions' else 13
  drawn = sampling.draw(
    jnp.broadcast_to(logits, (*shape, 7)),
    sampling.row_keys(5, range(shape[0])),
    jnp.broadcast_to(positions, shape),
    cfg,
  )
  processed = reference.process_logits(
    logits, cfg.temperature, cfg.top_k, cfg.top_p
  )
  probs = np.exp(processed - processed.max())
  expected = num * probs / probs.sum()
  counts = np.bincount(np.ravel(drawn), minlength=7)
  possible = expected > 0
  assert counts[~possible].sum() == 0
  error = (counts - expected)[possible]
  assert (error**2 / expected[possible]).sum() < 38.3


def test_noise_depends_on_row_and_position_only():
  draws = np.random.default_rng(2).normal(size=(3, 5, 11))
  logits = jnp.asarray(draws, jnp.float32)
  positions = jnp.asarray([[3, 4, 4, 5, 9]] * 3)
  cfg = config.SamplingConfig(temperature=1.7)
  all_rows = sampling.perturb(
    logits, sampling.row_keys(0, [0, 1, 2]), positions, cfg
  )
  one_row = sampling.perturb(
    logits[1:2], sampling.row_keys(0, [1]), positions[1:2], cfg
  )
  np.testing.assert_array_equal(all_rows[1:2], one_row)
  noise = all_rows - logits / 1.7
  weighted = sampling.perturb(
    logits, sampling.row_keys(0, [0, 1, 2]), positions, cfg, 0.5
  )
  np.testing.assert_allclose(weighted - logits / 1.7, noise / 2, atol=1e-5)
  np.testing.assert_allclose(noise[:, 1], noise[:, 2], atol=1e-5)
  assert (
    len({round(float(n), 4) for n in noise[:, [0, 1, 3, 4], 0].ravel()}) == 12
  )
  other_seed = sampling.row_keys(1, [1])
  assert not np.array_equal(
    one_row, sampling.perturb(logits[1:2], other_seed, positions[1:2], cfg)
  )


def test_nodes_draw_as_single_tokens_do():
  rng = np.random.default_rng(3)
  logits = jnp.asarray(rng.normal(size=(2, 5, 11)), jnp.float32)
  depths = jnp.asarray([[0, 1, 1, 2, 3], [0, 1, 2, 2, 2]])
  root = jnp.asarray([17, 4])
  keys = sampling.row_keys(0, [3, 8])
  cfg = config.SamplingConfig(temperature=2.3)
  np.testing.assert_array_equal(
    sampling.draw_nodes(logits, keys, root, depths, cfg, path_length=4),
    sampling.draw(logits, keys, root[:, None] + depths, cfg),
  )
