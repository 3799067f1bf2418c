# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals on data whose answer is known."""

import itertools

import numpy as np
import pytest

from specstream_jax.metrics import statistics


def test_constant_ratio_has_no_width():
  bottom = np.array([1.0, 2.0, 5.0, 7.0, 11.0])
  low, high = statistics.ratio_of_sums_ci(3 * bottom, bottom)
  assert low == pytest.approx(3.0)
  assert high == pytest.approx(3.0)


def test_interval_agrees_with_enumeration_of_all_resamples():
  top, bottom = np.array([2.0, 3.0, 9.0]), np.array([1.0, 1.0, 2.0])
  ratios = [
    top[list(rows)].sum() / bottom[list(rows)].sum()
    for rows in itertools.product(range(3), repeat=3)
  ]
  expected = np.percentile(ratios, (10, 90))
  interval = statistics.ratio_of_sums_ci(
    top, bottom, confidence=0.8, num_samples=20000
  )
  np.testing.assert_allclose(interval, expected, atol=1e-12)


def test_interval_agrees_with_the_normal_law():
  # Mean of 400 draws: standard error 1/20, so 3 +- 1.96/20.
  noise = np.random.default_rng(3).normal(size=400)
  top = 3 + (noise - noise.mean()) / noise.std()
  interval = statistics.ratio_of_sums_ci(top, np.ones(400))
  np.testing.assert_allclose(interval, (2.902, 3.098), atol=0.01)


def test_seed_decides():
  rng = np.random.default_rng(0)
  slow, fast = rng.uniform(2, 4, (13, 3)), rng.uniform(1, 2, (13, 2))
  again = [statistics.speedup_ci95(slow, fast, seed=s) for s in (5, 5, 7)]
  assert again[0] == again[1] != again[2]
  assert again[0][0] < statistics.speedup(slow, fast) < again[0][1]


def test_speedup_averages_repeats_and_sums_prompts():
  # Means 2, 6 against 1, 3: 8 / 4, and not the mean of the ratios 2 and 2.
  slow, fast = [[1.0, 3.0], [5.0, 7.0]], [1.0, 3.0]
  assert statistics.speedup(slow, fast) == pytest.approx(2.0)
  assert statistics.speedup([[4.0], [2.0]], [[1.0], [1.0]]) == 3.0


def test_repeats_do_not_narrow_the_interval():
  slow, fast = np.array([4.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])
  once = statistics.speedup_ci95(slow, fast)
  repeated = statistics.speedup_ci95(np.tile(slow[:, None], 5), fast)
  np.testing.assert_allclose(once, repeated)


@pytest.mark.parametrize(
  'top, bottom, message',
  [
    ([1.0, 2.0], [1.0], r'shape \(2,\), denominators \(1,\)'),
    ([], [], 'at least one prompt'),
    ([1.0], [0.0], 'smallest denominator is 0.0'),
    ([float('nan')], [1.0], 'finite numbers'),
  ],
)
def test_bad_numbers(top, bottom, message):
  with pytest.raises(ValueError, match=message):
    statistics.ratio_of_sums_ci(top, bottom)


def test_bad_shape_of_seconds():
  with pytest.raises(ValueError, match=r'shape \(1, 1, 1\); accepted'):
    statistics.speedup([[[1.0]]], [1.0])


def test_difference_agrees_with_enumeration_of_all_resamples():
  first, second = np.array([5.0, 1.0, 2.0]), np.array([1.0, 1.0, 4.0])
  means = [
    (first - second)[list(rows)].mean()
    for rows in itertools.product(range(3), repeat=3)
  ]
  interval = statistics.mean_difference_ci(
    first, second, confidence=0.8, num_samples=20000
  )
  np.testing.assert_allclose(
    interval, np.percentile(means, (10, 90)), atol=1e-12
  )


def test_difference_is_paired():
  first = np.random.default_rng(0).normal(size=50)
  interval = statistics.mean_difference_ci(first, first - 0.25)
  np.testing.assert_allclose(interval, (0.25, 0.25))


@pytest.mark.parametrize(
  ('first', 'second', 'message'),
  [
    ([1.0], [1.0, 2.0], r'shapes \(1,\) and \(2,\)'),
    ([], [], r'at least one prompt'),
    ([np.nan], [1.0], 'not a finite number'),
  ],
)
def test_scores_that_cannot_be_compared(first, second, message):
  with pytest.raises(ValueError, match=message):
    statistics.mean_difference_ci(first, second)
