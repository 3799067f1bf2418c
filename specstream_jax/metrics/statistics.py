# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals over prompts: of ratios of sums, of mean differences."""

import numpy as np
from numpy import typing as npt


def ratio_of_sums_ci(
  numerators: npt.ArrayLike,
  denominators: npt.ArrayLike,
  *,
  confidence: float = 0.95,
  num_samples: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap interval of sum(numerators) / sum(denominators).

  Pairs are drawn with replacement, so a prompt keeps both its numbers. One
  pair gives an interval of no width.

  Args:
    numerators: [N], N prompts.
    denominators: [N], positive.
    confidence: probability inside the interval.
    num_samples: bootstrap samples.
    seed: of the samples; the same seed gives the same interval.

  Returns:
    Lower and upper bound.

  Raises:
    ValueError: shapes differ, are empty, or a denominator is not positive.
  """
  top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
  if top.ndim != 1 or top.shape != bottom.shape or not top.size:
    raise ValueError(
      f'numerators have shape {top.shape}, denominators {bottom.shape}; '
      'accepted: one number of each for every prompt, at least one prompt'
    )
  if not (np.isfinite(top).all() and 0 < bottom.min() <= bottom.max() < np.inf):
    raise ValueError(
      f'smallest denominator is {bottom.min()}; accepted: finite numbers, and '
      'denominators > 0'
    )
  draws = np.random.default_rng(seed).multinomial(
    top.size, np.full(top.size, 1 / top.size), size=num_samples
  )  # [num_samples, N]: how often each prompt was drawn
  tail = 50 * (1 - confidence)
  low, high = np.percentile(
    (draws @ top) / (draws @ bottom), (tail, 100 - tail)
  )
  return float(low), float(high)


def mean_difference_ci(
  first: npt.ArrayLike,
  second: npt.ArrayLike,
  *,
  confidence: float = 0.95,
  num_samples: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap interval of mean(first - second) over prompts.

  Args:
    first: [N], a score of each of N prompts.
    second: [N], of the same prompts.
    confidence: probability inside the interval.
    num_samples: bootstrap samples.
    seed: of the samples.

  Returns:
    Lower and upper bound, in the scores' unit.

  Raises:
    ValueError: shapes differ, are empty, or a score is not finite.
  """
  scores = [np.asarray(side, float) for side in (first, second)]
  shapes = [side.shape for side in scores]
  if shapes[0] != shapes[1] or scores[0].ndim != 1 or not scores[0].size:
    raise ValueError(
      f'scores have shapes {shapes[0]} and {shapes[1]}; accepted: one number '
      'for every prompt on both sides, at least one prompt'
    )
  if not np.isfinite(scores).all():
    raise ValueError('a score is not a finite number')
  differences = scores[0] - scores[1]
  rng = np.random.default_rng(seed)
  draws = rng.choice(differences, (num_samples, differences.size))
  tail = 50 * (1 - confidence)
  low, high = np.percentile(draws.mean(axis=1), (tail, 100 - tail))
  return float(low), float(high)


def speedup(
  autoregressive_seconds: npt.ArrayLike, speculative_seconds: npt.ArrayLike
) -> float:
  """Wall clock of the autoregressive loop over that of the speculative one.

  Args:
    autoregressive_seconds: [N] or [N, R], N prompts (or batches of them), R
      repeats; repeats are averaged, so the sides may differ in R.
    speculative_seconds: likewise.
  """
  slow, fast = map(_per_prompt, (autoregressive_seconds, speculative_seconds))
  return float(slow.sum() / fast.sum())


def speedup_ci95(
  autoregressive_seconds: npt.ArrayLike,
  speculative_seconds: npt.ArrayLike,
  *,
  seed: int = 0,
) -> tuple[float, float]:
  """95 % bootstrap interval over prompts of `speedup`; arguments as there.

  It tells how much the speed-up depends on which prompts were measured;
  repeats of a prompt are averaged first.

  Raises:
    ValueError: the sides differ in prompts, or a time is not positive.
  """
  slow, fast = map(_per_prompt, (autoregressive_seconds, speculative_seconds))
  return ratio_of_sums_ci(slow, fast, seed=seed)


def _per_prompt(seconds: npt.ArrayLike) -> np.ndarray:
  """[N] or [N, R] to [N]."""
  array = np.asarray(seconds, float)
  if array.ndim not in (1, 2) or not array.size:
    raise ValueError(
      f'seconds have shape {array.shape}; accepted: [prompts] or '
      '[prompts, repeats]'
    )
  return array if array.ndim == 1 else array.mean(axis=1)
