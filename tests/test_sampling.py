# SPDX-License-Identifier: Apache-2.0
"""Masks against the oracle, the law of the draw, keys of position and row."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference

from specstream_jax import config, partitioning, sampling

_process = jax.jit(sampling.process_logits)
_draw = jax.jit(sampling.draw)
_law = jax.jit(sampling.law)
_perturb = jax.jit(sampling.perturb, static_argnums=4)
_truncations = [
  # temperature, top_k, top_p, min_p
  (0.7, 0, 1.0, 0.0),
  (1.3, 4, 1.0, 0.0),
  (0.9, 0, 0.6, 0.0),
  (1.1, 5, 0.8, 0.0),
  (1.0, 99, 0.999, 0.0),
  (1.0, 300, 0.9, 0.0),
  (0.8, 0, 1.0, 0.2),
  (1.2, 6, 0.95, 0.1),
  (1.0, 1, 1.0, 1.0),
]


def rows(*values):
  """Row settings, a row for each (temperature, top_k, top_p, min_p)."""
  return sampling.row_settings([config.SamplingConfig(*v) for v in values])


@pytest.mark.parametrize('vocab_size', [11, 521])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_masks_match_the_oracle(vocab_size, seed):
  """All in one batch: no row's masks depend on what the others ask for."""
  shape = (len(_truncations), 3, vocab_size)
  logits = np.random.default_rng(seed).normal(size=shape) * 3
  got = _process(jnp.float32(logits), rows(*_truncations))
  for row, values in enumerate(_truncations):
    want = [reference.process_logits(one, *values) for one in logits[row]]
    np.testing.assert_allclose(got[row], want, rtol=1e-5)
    alone = _process(jnp.float32(logits[row : row + 1]), rows(values))
    np.testing.assert_array_equal(got[row], alone[0])


@pytest.mark.parametrize('k', [1, 255, 256, 257, 258, 400, 521, 5000])
def test_top_k_by_selection_and_by_search(k):
  """Up to 256 the best are selected, beyond that a threshold is searched."""
  logits = np.random.default_rng(k).normal(size=(2, 521)).astype(np.float32)
  kept = _process(logits, rows((1.0, k))) > -np.inf
  for row in range(2):
    best = np.argsort(-logits[row])[:k]
    assert np.flatnonzero(kept[row]).tolist() == sorted(best.tolist())


def test_the_largest_top_k_keeps_all():
  logits = np.random.default_rng(0).normal(size=(1, 11)).astype(np.float32)
  np.testing.assert_array_equal(
    _process(logits, rows((1.0, 2**31 - 1))), logits
  )


@pytest.mark.parametrize('k', [1, 2, 3, 4, 12])
def test_top_k_of_a_split_vocabulary(monkeypatch, k):
  """Four parts of three tokens; more than a part has takes the whole."""
  scores = jnp.float32(np.random.default_rng(k).integers(0, 5, (2, 3, 12)))
  want = sampling.top_k(scores, k)
  asked, select = [], jax.lax.top_k
  spy = lambda x, k: asked.append(x.shape) or select(x, k)
  parts = {('vocab', 12): 4}
  monkeypatch.setattr(partitioning, 'num_shards', lambda *axis: parts[axis])
  monkeypatch.setattr(jax.lax, 'top_k', spy)
  for got, right in zip(sampling.top_k(scores, k), want, strict=True):
    np.testing.assert_array_equal(got, right)
  whole = [(2, 3, 12)]
  assert asked == ([(2, 3, 4, 3), (2, 3, 4 * k)] if k <= 3 else whole)


def test_masks_by_hand():
  probs = np.array([[0.1, 0.4, 0.2, 0.3]])
  for values, want in (
    ((1.0, 0, 0.5), [1, 3]),
    ((1.0, 3, 0.79), [1, 2, 3]),
    ((1.0, 0, 0.3), [1]),
    ((1.0, 0, 0.91), [0, 1, 2, 3]),
    ((1.0, 0, 1.0, 0.6), [1, 3]),
    ((1.0, 0, 1.0, 0.25), [0, 1, 2, 3]),
  ):
    kept = _process(jnp.log(probs), rows(values)) > -jnp.inf
    assert np.flatnonzero(kept).tolist() == want


@pytest.mark.parametrize('k', [0, 2, 3])
def test_equal_logits_survive_together(k):
  logits = jnp.float32([[0.0, 2.0, 1.0, 1.0, -1.0]])
  kept = _process(logits, rows((1.0, k, 0.8))) > -jnp.inf
  assert kept[0].tolist() == [False, True, True, True, False]


@pytest.mark.parametrize('num_equal', [3, 300])
@pytest.mark.parametrize('k', [0, 2, 3, 257])
def test_top_p_counts_all_that_top_k_left(k, num_equal):
  """Also equal ones beyond k: of these the best has 0.4."""
  logits = np.full((1, 307), -np.inf, np.float32)
  logits[0, 5], logits[0, 6 : 6 + num_equal] = 0.4, 0.6 / num_equal
  logits[0, 5 : 6 + num_equal] = np.log(logits[0, 5 : 6 + num_equal])
  for top_p, count in ((0.39, 1), (0.41, 1 + num_equal)):
    kept = _process(logits, rows((1.0, k, top_p))) > -np.inf
    assert np.flatnonzero(kept).tolist() == list(range(5, 5 + count))


@pytest.mark.parametrize('top_k', [0, 3])
def test_masked_logits_stay_masked(top_k):
  """Suppressed tokens come as minus infinity and leave as that."""
  logits = jnp.float32([[-np.inf, 2.0, -np.inf, 1.0, -np.inf]])
  for values in ((1.0, top_k), (1.0, top_k, 0.99), (1.0, top_k, 1.0, 0.01)):
    kept = _process(logits, rows(values)) > -jnp.inf
    assert kept[0].tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
  'values', [(1.0,), (1.0, 2), (1.0, 0, 0.5), (1.0, 90, 0.5), (0.0,)]
)
def test_what_is_not_a_number_is_not_hidden(values):
  """A mask would turn it into a token that looks like any other."""
  logits = jnp.float32([[1.0, np.nan, 3.0, 0.0]])
  assert jnp.isnan(_process(logits, rows(values))[0, 1])


def test_tiny_top_p_is_greedy():
  logits = jnp.float32([[[0.0, 2.0, 1.0]]])
  for position in range(7):
    at = jnp.full((1, 1), position)
    keys = sampling.row_keys(0, [0])
    for top_p in (1e-6, 1e-46, 1e-300):  # float32 has no number for the last
      assert _draw(logits, keys, at, rows((5.0, 0, top_p))) == 1


@pytest.mark.parametrize('more', [(), (4, 0.9), (0, 0.9), (0, 1.0, 0.1)])
def test_tiny_temperatures_are_greedy(more):
  """Also those that float32 has no number for."""
  tiny = [1e-3, 1e-6, 1e-20, 1e-37, 1e-38, 1e-40, 1e-45, 1e-300]
  shape = (len(tiny), 7, 11)
  logits = jnp.float32(np.random.default_rng(0).normal(size=shape) * 50)
  keys, at = sampling.row_keys(0, range(8)), jnp.arange(56).reshape(8, 7)
  drawn = _draw(logits, keys, at, rows(*[(t, *more) for t in tiny]))
  np.testing.assert_array_equal(drawn, jnp.argmax(logits, axis=-1))


def test_tiny_temperatures_draw_from_equal_logits():
  logits = jnp.zeros((2, 97, 3)).at[..., 1].set(-0.01)
  keys, at = sampling.row_keys(0, [0, 1]), jnp.arange(194).reshape(2, 97)
  drawn = _draw(logits, keys, at, rows((1e-9,), (1e-40,)))
  for row in range(2):
    assert set(np.unique(drawn[row])) == {0, 2}


def test_greedy_is_arg_max():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 11)))
  keys, at = sampling.row_keys(0, [0, 1]), jnp.zeros((2, 3), jnp.int32)
  drawn = _draw(logits, keys, at, None)
  np.testing.assert_array_equal(drawn, np.argmax(logits, axis=-1))
  assert drawn.dtype == jnp.int32
  # A greedy row is greedy beside one that is not, and the other is not.
  mixed = _draw(logits, keys, at, rows((0.0, 2, 0.1), (9.0,)))
  np.testing.assert_array_equal(mixed[0], drawn[0])
  assert (mixed[1] != drawn[1]).any()


def test_greedy_rows_tell_neighbours_apart():
  """Not even rounding comes between a greedy row and the best token."""
  low = np.random.default_rng(0).normal(size=(1, 101)).astype(np.float32)
  logits = np.stack([low, np.nextafter(low, np.inf)], axis=-1)
  keys, at = sampling.row_keys(0, [0]), jnp.zeros((1, 101), jnp.int32)
  assert (_draw(logits, keys, at, rows((0.0,))) == 1).all()


def test_law_of_greedy_rows_is_certain():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11)))
  certain = jax.nn.one_hot(jnp.argmax(logits, axis=-1), 11)
  np.testing.assert_array_equal(_law(logits, None), certain)
  mixed = _law(logits, rows((0.0,), (1.0,)))
  np.testing.assert_array_equal(mixed[0], certain[0])
  np.testing.assert_allclose(mixed[1], jax.nn.softmax(logits[1]), rtol=1e-5)


@pytest.mark.parametrize('values', [(1.0,), (0.6, 4, 0.95), (0.9, 0, 0.8, 0.2)])
@pytest.mark.parametrize('over', ['positions', 'rows'])
def test_draws_follow_softmax(values, over):
  """Chi-square below the 1e-6 quantile of 6 degrees of freedom (38.3)."""
  num = 5003
  logits = np.random.default_rng(1).normal(size=7).astype(np.float32)
  shape = (1, num) if over == 'positions' else (num, 1)
  positions = np.arange(num).reshape(shape) if over == 'positions' else 13
  drawn = _draw(
    jnp.broadcast_to(logits, (*shape, 7)),
    sampling.row_keys(5, range(shape[0])),
    jnp.broadcast_to(positions, shape),
    rows(values),
  )
  processed = reference.process_logits(
    logits, *(*values, 0, 1.0)[:3], *values[3:]
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
  cfg = rows((1.7,))
  all_rows = _perturb(logits, sampling.row_keys(0, [0, 1, 2]), positions, cfg)
  one_row = _perturb(
    logits[1:2], sampling.row_keys(0, [1]), positions[1:2], cfg
  )
  np.testing.assert_array_equal(all_rows[1:2], one_row)
  noise = all_rows - logits / 1.7
  weighted = _perturb(
    logits, sampling.row_keys(0, [0, 1, 2]), positions, cfg, 0.5
  )
  np.testing.assert_allclose(
    weighted - logits / 1.7,
    noise / 2,
    atol=1e-5,
  )
  np.testing.assert_allclose(noise[:, 1], noise[:, 2], atol=1e-5)
  assert (
    len({round(float(n), 4) for n in noise[:, [0, 1, 3, 4], 0].ravel()}) == 12
  )
  other_seed = sampling.row_keys(1, [1])
  assert not np.array_equal(
    one_row, _perturb(logits[1:2], other_seed, positions[1:2], cfg)
  )


def test_nodes_draw_as_single_tokens_do():
  rng = np.random.default_rng(3)
  logits = jnp.asarray(rng.normal(size=(2, 5, 11)), jnp.float32)
  depths = jnp.asarray([[0, 1, 1, 2, 3], [0, 1, 2, 2, 2]])
  root = jnp.asarray([17, 4])
  keys = sampling.row_keys(0, [3, 8])
  cfg = rows((2.3, 5), (0.0,))
  np.testing.assert_array_equal(
    sampling.draw_nodes(logits, keys, root, depths, cfg, path_length=4),
    _draw(logits, keys, root[:, None] + depths, cfg),
  )


def test_keys_of_a_call_are_those_of_no_position():
  """Positions are int32; a purpose is what no position can be."""
  purposes = sampling.DRAFT_NOISE, sampling.ACCEPT_NOISE
  assert all(2**31 <= purpose < 2**32 for purpose in purposes)
  keys, found = sampling.row_keys(0, [3, 8]), set()
  for position in (0, 1):
    at = jnp.full(2, position)
    made = [sampling.call_keys(keys, at, purpose) for purpose in purposes]
    made.append(jax.vmap(jax.random.fold_in)(keys, at))
    for key in made:
      found |= set(map(tuple, np.array(jax.random.key_data(key)).tolist()))
  assert len(found) == 12
