# SPDX-License-Identifier: Apache-2.0
"""Speculative against autoregressive decoding: one process, interleaved, warm.

Both sides are the same jitted loop, decode the same prompts in the same
batches, and are counted by the same token counter. Compilation is timed apart
and prompt passes are left out of the ratios on both sides.
"""

from collections.abc import Container, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import journal as journal_lib, sides as sides_lib
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import decoder as decoder_lib
from specstream_jax.outputs import progress as progress_lib

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


def compare(
  model: runtime.Model,
  prompts: Sequence[Sequence[int]],
  settings: Settings,
  *,
  progress: bool = True,
) -> tuple[sides_lib.Side, sides_lib.Side]:
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
  with progress_lib.bar(
    total=total, initial=done, unit='batch', show=progress
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

    progress_lib.say(bar, f'each side {progress_lib.COMPILING}')
    for name in _SIDES:
      cold = run(name, todo[0][2], 'compiling')
      if (name, 'cold', *shard) not in journal:
        seconds = cold.prefill_seconds + cold.decode_seconds
        where = {'batch': todo[0][2], 'seconds': seconds}
        journal.add((name, 'cold', *shard), where)
    progress_lib.forget_so_far(bar)
    for key in todo:
      journal.add(key, sides_lib.line(run(key[0], key[2], 'timing')))
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
) -> tuple[sides_lib.Side, sides_lib.Side]:
  """(autoregressive, speculative) from the measurements of all shards.

  Raises:
    KeyError: a batch is missing.
  """
  batches = _batches(num_prompts, settings.batch)
  side = lambda name: _side(
    name, entries, batches, num_prompts, settings.repeats
  )
  return side('none'), side('streams')


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
  """sides_lib.Side -> decoder."""
  decode = dataclasses.replace(
    settings.decode, prompt_bucket=_bucket(prompts, settings.decode)
  )
  rivals = {'none': 'none', 'streams': settings.drafter or 'streams'}
  return {
    name: model.decoder(rival, decode, tree=settings.tree)
    for name, rival in rivals.items()
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
  return sides_lib.Side(
    tokens,
    accepts,
    calls,
    seconds,
    prefill,
    np.array([max(line['calls']) for line in grid[-1]]),
    max(float(np.median(cold)), 0.0),
  )
