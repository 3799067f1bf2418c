# SPDX-License-Identifier: Apache-2.0
"""What a decoder did to every prompt, and what two of them come to.

Axis letters: B rows, P path length.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from specstream_jax.bench import results
from specstream_jax.decoding import decoder as decoder_lib
from specstream_jax.metrics import statistics


@dataclasses.dataclass
class Side:
  """What one decoder did to every prompt.

  Attributes:
    tokens: new tokens per prompt.
    accept_lengths: per call, per prompt.
    calls: [num_prompts].
    seconds: decode seconds per pass and batch, prompt pass excluded.
    prefill_seconds: per pass and batch.
    steps: [num_batches] model calls of each batch: its slowest row's.
    compile_seconds: first batch minus a warm one.
    batch_of: batch of each prompt, where it matters.
  """

  tokens: list[list[int]]
  accept_lengths: list[list[int]]
  calls: np.ndarray
  seconds: np.ndarray
  prefill_seconds: np.ndarray
  steps: np.ndarray
  compile_seconds: float
  batch_of: tuple[int, ...] = ()


def line(result: decoder_lib.DecodeResult) -> dict[str, Any]:
  """A batch as a journal keeps it."""
  return {
    'tokens': result.tokens,
    'accept_lengths': result.accept_lengths,
    'calls': [int(n) for n in result.calls],
    'prefill_seconds': result.prefill_seconds,
    'decode_seconds': result.decode_seconds,
  }


def summarize(
  plain: Side, fast: Side, *, max_depth: int, **facts: Any
) -> results.RunResult:
  """The comparison as one row of results.

  Ratios follow the definitions of `results`; `speedup` is the ratio of total
  decode seconds, and the intervals a bootstrap over batches and prompts.

  Args:
    plain: the autoregressive side.
    fast: the speculative side, on the same prompts.
    max_depth: deepest draft.
    **facts: the fields of RunResult that name what was measured.
  """
  ms_per_call = {
    'autoregressive': 1e3 * _ms(plain),
    'speculative': 1e3 * _ms(fast),
  }
  plain_calls, calls = int(plain.calls.sum()), int(fast.calls.sum())
  return results.RunResult(
    num_prompts=len(fast.tokens),
    new_tokens=sum(map(len, fast.tokens)),
    calls=calls,
    autoregressive_calls=plain_calls,
    call_reduction_ratio=results.call_reduction_ratio(plain_calls, calls),
    call_reduction_ci95=_call_reduction_ci95(plain.calls, fast.calls),
    step_cost_ratio=results.step_cost_ratio(
      ms_per_call['speculative'], ms_per_call['autoregressive']
    ),
    speedup=float(plain.seconds.sum() / fast.seconds.sum()),
    speedup_ci95=list(statistics.speedup_ci95(plain.seconds.T, fast.seconds.T)),
    speedup_with_prefill=float(_total(plain) / _total(fast)),
    equal_fraction=float(
      np.mean([a == b for a, b in zip(plain.tokens, fast.tokens)])
    ),
    tokens_per_second={
      'autoregressive': _rate(plain),
      'speculative': _rate(fast),
    },
    **_acceptance(fast, max_depth),
    prefill_ms=1e3 * float(np.median(fast.prefill_seconds)),
    autoregressive_prefill_ms=1e3 * float(np.median(plain.prefill_seconds)),
    compile_seconds={
      'autoregressive': plain.compile_seconds,
      'speculative': fast.compile_seconds,
    },
    ms_per_call=ms_per_call,
    device=jax.devices()[0].device_kind,
    versions=results.versions(),
    repeats=len(fast.seconds),
    **facts,
  )


def _call_reduction_ci95(plain_calls, calls):
  """Bootstrap over the prompts that needed a call on both sides."""
  both = (plain_calls > 0) & (calls > 0)
  if not both.any():
    return [0.0, 0.0]
  return list(statistics.ratio_of_sums_ci(plain_calls[both], calls[both]))


def _total(side):
  return side.seconds.sum() + side.prefill_seconds.sum()


def _ms(side):
  """Decode seconds per model call: the median over batches and passes.

  Not the mean, which would make CR / step cost the measured speed-up by
  definition: the two are to be compared.
  """
  has_calls = side.steps > 0
  if not has_calls.any():
    return 0.0
  return float(np.median(side.seconds[:, has_calls] / side.steps[has_calls]))


def _rate(side):
  """Tokens per decode second; the prompt pass gave the first of each row."""
  num_tokens = sum(map(len, side.tokens)) - len(side.tokens)
  return float(num_tokens * len(side.seconds) / side.seconds.sum())


def _acceptance(side, max_depth):
  """Tokens per call, macro over prompts and micro over calls; histograms."""
  flat = np.array([n for row in side.accept_lengths for n in row], int)
  rates = tokens_per_call(side.tokens, side.calls)
  reached = lambda d: float(np.mean(flat >= d)) if flat.size else 0.0
  micro = 1 + flat.mean() if flat.size else rates['micro']
  per_row = [1 + np.mean(row) for row in side.accept_lengths if row]
  return {
    'tokens_per_call_macro': float(
      np.mean(per_row) if per_row else rates['macro']
    ),
    'tokens_per_call_micro': float(micro),
    'accept_length_histogram': np.bincount(
      flat, minlength=max_depth + 1
    ).tolist(),
    'per_depth_acceptance': [reached(d) for d in range(1, max_depth + 1)],
  }


def tokens_per_call(
  tokens: Sequence[Sequence[int]], calls: Sequence[int]
) -> dict[str, float]:
  """Emitted tokens per call: 'micro' over calls, 'macro' over prompts.

  The first token of each row comes from the prompt pass and is left out.
  """
  pairs = [(len(row) - 1, n) for row, n in zip(tokens, calls) if n]
  if not pairs:
    return {'micro': 0.0, 'macro': 0.0}
  emitted, made = np.array(pairs, float).T
  return {
    'micro': float(emitted.sum() / made.sum()),
    'macro': float(np.mean(emitted / made)),
  }
