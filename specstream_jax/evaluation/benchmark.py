# SPDX-License-Identifier: Apache-2.0
"""Speculative against autoregressive decoding: one process, interleaved, warm.

Both sides are the same jitted loop, decode the same prompts in the same
batches, and are counted by the same token counter. Compilation is timed apart
and prompt passes are left out of the ratios on both sides.

Axis letters: B rows, P path length.
"""

from collections.abc import Container, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np
import tqdm

from specstream_jax import config, config_drafting, runtime
from specstream_jax.decoding import decoder as decoder_lib
from specstream_jax.evaluation import (
  journal as journal_lib,
  results,
  statistics,
)

_SIDES = {'none': 'plain', 'streams': 'with streams'}


@dataclasses.dataclass(frozen=True)
class Settings:
  """One comparison.

  Attributes:
    tree: draft tree.
    decode: sizes, schedule, EOS.
    sampling: how tokens are drawn, on both sides.
    batch: rows per call.
    repeats: timed passes over the prompts; one batch of each side is run
      before them, to compile.
    seed: of the noise when temperature > 0.
    num_samples: texts kept for the report.
    drafter: settings of the speculative side; None takes plain streams.
  """

  tree: config.TreeConfig
  decode: config.DecodeConfig
  sampling: config.SamplingConfig = config.SamplingConfig()
  batch: int = 1
  repeats: int = 2
  seed: int = 0
  num_samples: int = 8
  drafter: config_drafting.DrafterConfig | None = None


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


def compare(
  model: runtime.Model,
  prompts: Sequence[Sequence[int]],
  settings: Settings,
  *,
  progress: bool = True,
) -> tuple[Side, Side]:
  """Decodes `prompts` with and without streams.

  Args:
    model: with an adapter.
    prompts: token ids, at least one.
    settings: see `Settings`.
    progress: show a progress bar.

  Returns:
    (autoregressive, speculative).
  """
  kept = _Memory()
  measure(model, prompts, settings, kept, progress=progress)
  return sides(kept, len(prompts), settings)


class _Memory(dict):
  """A journal that nobody reads later."""

  def add(self, key: journal_lib.Key, values: Mapping[str, Any]) -> None:
    """Keeps one measurement."""
    self[key] = values


def measure(
  model: runtime.Model,
  prompts: Sequence[Sequence[int]],
  settings: Settings,
  journal: Any,
  *,
  shard: tuple[int, int] = (0, 1),
  progress: bool = True,
) -> int:
  """Measures the batches that a journal lacks; they are in it when it returns.

  Args:
    model: with an adapter.
    prompts: token ids, at least one; the same in every shard.
    settings: see `Settings`.
    journal: a `journal.Journal`, or what has its methods.
    shard: (this one, of how many); batches are dealt out in turn.
    progress: show a progress bar.

  Returns:
    How many were measured now; a batch counts once per side and pass.
  """
  batches = _batches(len(prompts), settings.batch)
  keys = _keys(len(batches), settings.repeats, shard)
  todo = [key for key in keys if key not in journal]
  if not todo:
    return 0
  decoders = _decoders(model, prompts, settings)
  total, done = len(_SIDES) + len(keys), len(keys) - len(todo)
  with tqdm.tqdm(
    total=total, initial=done, unit='batch', disable=not progress
  ) as bar:

    def run(name: str, number: int, label: str) -> decoder_lib.DecodeResult:
      bar.set_description(f'{label} {_SIDES[name]}')
      decoder = decoders[name]
      result = decoder.generate(
        decoder.params,
        [prompts[row] for row in batches[number]],
        seed=settings.seed,
        row_ids=batches[number],
        sampling=settings.sampling,
      )
      bar.update()
      return result

    for name in _SIDES:
      cold = run(name, todo[0][2], 'compiling')
      if (name, 'cold', *shard) not in journal:
        seconds = cold.prefill_seconds + cold.decode_seconds
        where = {'batch': todo[0][2], 'seconds': seconds}
        journal.add((name, 'cold', *shard), where)
    for key in todo:
      journal.add(key, _line(run(key[0], key[2], 'timing')))
  return len(todo)


def missing(
  entries: Container[journal_lib.Key], num_prompts: int, settings: Settings
) -> list[journal_lib.Key]:
  """What no shard has measured yet: (side, pass, batch)."""
  num_batches = len(_batches(num_prompts, settings.batch))
  keys = _keys(num_batches, settings.repeats, (0, 1))
  return [key for key in keys if key not in entries]


def sides(
  entries: Mapping[journal_lib.Key, Mapping[str, Any]],
  num_prompts: int,
  settings: Settings,
) -> tuple[Side, Side]:
  """(autoregressive, speculative) from the measurements of all shards.

  Raises:
    KeyError: a batch is missing.
  """
  batches = _batches(num_prompts, settings.batch)
  return tuple(
    _side(name, entries, batches, num_prompts, settings.repeats)
    for name in _SIDES
  )


def _keys(num_batches, repeats, shard):
  """(side, pass, batch) in the order of measurement."""
  number, count = shard
  keys = []
  for repeat in range(repeats):
    for i, batch in enumerate(range(number, num_batches, count)):
      # Alternating order, so that a drift of the machine favours neither.
      names = list(_SIDES)[:: -1 if (repeat + i) % 2 else 1]
      keys += [(name, repeat, batch) for name in names]
  return keys


def _decoders(model, prompts, settings):
  """Side -> decoder."""
  decode = dataclasses.replace(
    settings.decode, prompt_bucket=_bucket(prompts, settings.decode)
  )
  rivals = {'none': 'none', 'streams': settings.drafter or 'streams'}
  return {
    name: model.decoder(rival, decode, tree=settings.tree)
    for name, rival in rivals.items()
  }


def _line(result):
  """A batch as a journal keeps it."""
  return {
    'tokens': result.tokens,
    'accept_lengths': result.accept_lengths,
    'calls': [int(n) for n in result.calls],
    'prefill_seconds': result.prefill_seconds,
    'decode_seconds': result.decode_seconds,
  }


def _bucket(prompts, decode):
  """One prompt length for the whole run: a single compilation."""
  step = decode.prompt_bucket
  return -(-max(map(len, prompts)) // step) * step


def _batches(num_prompts, batch):
  """Row indices per batch; a short last batch repeats its first row."""
  starts = range(0, num_prompts, batch)
  full = [list(range(s, min(s + batch, num_prompts))) for s in starts]
  return [rows + rows[:1] * (batch - len(rows)) for rows in full]


def _side(name, entries, batches, num_prompts, repeats):
  """The passes of one decoder; texts come from the last pass."""
  grid = [
    [entries[name, repeat, number] for number in range(len(batches))]
    for repeat in range(repeats)
  ]
  pick = lambda what: np.array([[line[what] for line in row] for row in grid])
  seconds, prefill = pick('decode_seconds'), pick('prefill_seconds')
  tokens, accepts = [None] * num_prompts, [None] * num_prompts
  calls = np.zeros(num_prompts, int)
  for rows, line in zip(batches, grid[-1], strict=True):
    for i, row in enumerate(rows):
      tokens[row], accepts[row] = line['tokens'][i], line['accept_lengths'][i]
      calls[row] = line['calls'][i]
  warm = np.median(seconds + prefill, axis=0)
  cold = [
    line['seconds'] - warm[line['batch']]
    for key, line in entries.items()
    if key[:2] == (name, 'cold')
  ]
  return Side(
    tokens,
    accepts,
    calls,
    seconds,
    prefill,
    np.array([max(line['calls']) for line in grid[-1]]),
    max(float(np.median(cold)), 0.0),
  )


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
