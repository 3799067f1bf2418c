# SPDX-License-Identifier: Apache-2.0
"""Grain pipeline from token records to batches; loads no TensorFlow.

B rows, T positions. Shuffled anew every epoch, split over processes, packed
or one example to a row, and resumable: the state is a small JSON dict.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import json
import os
from typing import Any

import grain.python as grain
import numpy as np

from specstream_jax import processes
from specstream_jax.data import features, mixtures, records, shards

_PACKING_BINS = 64
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
_EMPTY = records.encode(np.zeros(0, np.int32), np.zeros(0, np.int32))


class _Source:
  """Records of a folder; past the end, up to `length`, empty ones."""

  def __init__(self, path: str, manifest: dict[str, Any], length: int):
    self._records = shards.Shards(
      [os.path.join(path, name) for name in manifest['files']]
    )
    count = manifest['num_examples']
    if len(self._records) != count:
      raise ValueError(
        f'{path!r} holds {len(self._records):,} records, its '
        f'{records.MANIFEST} says {count:,}; prepare the records again'
      )
    self._path, self._length = path, length
    self._most = manifest['lengths']['total']['max']

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> bytes:
    if index >= len(self._records):
      return _EMPTY
    record = self._records[index]
    if (found := shards.num_tokens(record)) > self._most:
      raise ValueError(
        f'{self._path!r}: record {index + 1} has {found:,} tokens, '
        f'{records.MANIFEST} says at most {self._most:,}; prepare the records '
        'again'
      )
    return record


class Batches(Iterator[features.Arrays]):
  """Iterator of batches whose place can be saved and restored."""

  def __init__(self, dataset: grain.IterDataset, settings: dict[str, Any]):
    self._iterator = iter(dataset)
    self._settings = settings

  def __next__(self) -> features.Arrays:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """The place after the last batch, as JSON types."""
    state = {'settings': self._settings, 'place': self._iterator.get_state()}
    return json.loads(json.dumps(state))

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues after the batch at which `state` was taken.

    Raises:
      ValueError: the state belongs to other records or settings.
    """
    for name, value in self._settings.items():
      saved = state['settings'].get(name)
      if saved != value:
        raise ValueError(
          f'the saved place was taken with {name}={saved!r} but the batches '
          f'have {name}={value!r}; open them with the saved value or start anew'
        )
    self._iterator.set_state(state['place'])


def _segment(record: bytes) -> features.Arrays:
  return features.segment(*records.decode(record))


def _single_row(record: bytes, *, sequence_length: int) -> features.Arrays:
  tokens = _segment(record)
  segments = [tokens] if len(tokens['decoder_input_tokens']) else []
  return features.row(segments, sequence_length)


def _packed_row(packed: features.Arrays) -> features.Arrays:
  """Renames what Grain's packing yields; all features share their layout."""
  name = features.TOKEN_FEATURES[0]
  return {
    **{feature: packed[feature] for feature in features.TOKEN_FEATURES},
    'decoder_positions': packed[f'{name}_positions'],
    'decoder_segment_ids': packed[f'{name}_segment_ids'],
  }


def _examples(
  path: str,
  manifest: dict[str, Any],
  share: slice,
  seed: int | None,
  repeat: bool,
) -> grain.MapDataset:
  """The records of one share; one pass is filled up to equal shares."""
  length = manifest['num_examples']
  if not repeat:
    length = -(-length // share.step) * share.step
  examples = grain.MapDataset.source(_Source(path, manifest, length))
  if seed is not None:
    examples = examples.shuffle(seed=seed)
  examples = examples[share]
  return examples.repeat() if repeat else examples


def _parts(path: str, repeat: bool) -> tuple[mixtures.Part, ...]:
  parts = mixtures.parse(path)
  if len(parts) > 1 and not repeat:
    raise ValueError(
      f'{path!r} is a mixture, which has no end; one pass reads one folder'
    )
  return parts


def _mixed(
  datasets: list[grain.MapDataset], parts: tuple[mixtures.Part, ...]
) -> grain.MapDataset:
  if len(parts) == 1:
    return datasets[0]
  return grain.MapDataset.mix(datasets, weights=[part.rate for part in parts])


def _rows(
  examples: grain.MapDataset, sequence_length: int, packed: bool, seed: int
) -> grain.IterDataset:
  if not packed:
    to_row = functools.partial(_single_row, sequence_length=sequence_length)
    return examples.map(to_row).to_iter_dataset(_READ_OPTIONS)
  packing = grain.experimental.FirstFitPackIterDataset(
    examples.map(_segment).to_iter_dataset(_READ_OPTIONS),
    length_struct=dict.fromkeys(features.TOKEN_FEATURES, sequence_length),
    num_packing_bins=_PACKING_BINS,
    seed=seed,
  )
  return packing.map(_packed_row)


def _check_process(manifest, process_index, process_count, packed, repeat):
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index is {process_index}; accepted: 0 <= process_index < '
      f'process_count, which is {process_count}'
    )
  if manifest['num_examples'] < process_count:
    raise ValueError(
      f'{manifest["num_examples"]} examples cannot be split over '
      f'{process_count} processes; use more examples or fewer processes'
    )
  if process_count > 1 and packed and not repeat:
    raise ValueError(
      'one packed pass gives each process another number of batches; with '
      f'process_count={process_count} use packed=False or repeat=True'
    )


def _manifest(path, tokenizer_sha256, sequence_length):
  """The manifest of a folder whose tokenizer and longest example fit."""
  manifest = records.read_manifest(path)
  if tokenizer_sha256 is not None:
    records.check_tokenizer(manifest, tokenizer_sha256)
  needed = manifest['lengths']['total']['max'] - 1
  if sequence_length < needed:
    raise ValueError(
      f'the longest example needs {needed} positions but sequence_length is '
      f'{sequence_length}; use sequence_length >= {needed} or prepare the '
      f'records with max_length={sequence_length + 1}'
    )
  return manifest


def open_batches(
  path: str,
  *,
  batch_size: int,
  sequence_length: int,
  packed: bool = True,
  seed: int | None = 0,
  process_index: int = 0,
  process_count: int = 1,
  repeat: bool = True,
  tokenizer_sha256: str | None = None,
) -> Batches:
  """Batches of the records in `path`.

  Args:
    path: folder written by `specstream prepare`, or a mixture of several, see
      `mixtures.parse`.
    batch_size: B, rows per batch of this process.
    sequence_length: T.
    packed: several examples to a row.
    seed: shuffles every epoch differently; None keeps the order of the files.
    process_index: which share of the records this process reads.
    process_count: number of shares; they are disjoint and complete.
    repeat: endless; otherwise one pass, whose last batch is padded with empty
      rows and whose number of batches is the same in every process.
    tokenizer_sha256: if given, must be the hash in the manifest.

  Returns:
    Iterator of dicts of arrays [B, T] (`features.DTYPES`).

  Raises:
    ValueError: other tokenizer, example longer than T, or a bad argument.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; it must be >= 1')
  parts = _parts(path, repeat)
  share = slice(process_index, None, process_count)
  datasets, sizes = [], []
  for part in parts:
    manifest = _manifest(part.path, tokenizer_sha256, sequence_length)
    _check_process(manifest, process_index, process_count, packed, repeat)
    datasets.append(_examples(part.path, manifest, share, seed, repeat))
    sizes.append(manifest['num_examples'])
  examples = _mixed(datasets, parts)
  rows = _rows(examples, sequence_length, packed, seed or 0)
  stack = functools.partial(features.stack, batch_size=batch_size)
  settings = {
    'num_examples': sizes if len(sizes) > 1 else sizes[0],
    'batch_size': batch_size,
    'sequence_length': sequence_length,
    'packed': packed,
    'seed': seed,
    'process_index': process_index,
    'process_count': process_count,
    'repeat': repeat,
  }
  if len(parts) > 1:
    settings['rates'] = [part.rate for part in parts]
  return Batches(rows.batch(batch_size, batch_fn=stack), settings)


class GlobalBatches(Iterator[features.Arrays]):
  """This process's rows of batches that do not depend on the processes.

  A global batch consists of equal shares, each from a stream of records of its
  own. Who reads which share is free, so a run goes on with another number of
  processes and sees the same batches.
  """

  def __init__(
    self,
    open_share: Callable[[int, int, int], Batches],
    batch_size: int,
    num_shares: int,
    blocks: Sequence[int] = (0,),
    num_blocks: int = 1,
  ):
    """See `open_global`.

    Args:
      open_share: (share, number of shares, rows of a batch) -> its batches.
      batch_size: rows of the global batch.
      num_shares: streams that make it.
      blocks: equal blocks of its rows that this process feeds.
      num_blocks: in the global batch.

    Raises:
      ValueError: the batch cannot be split evenly.
    """
    for what, count in (('shares', num_shares), ('blocks', num_blocks)):
      if batch_size % count:
        raise ValueError(
          f'a batch of {batch_size} rows cannot be split into {count} equal '
          f'{what}, as mesh and processes ask; use a multiple of {count}'
        )
    self._open, self._size = open_share, batch_size
    block = batch_size // num_blocks
    self._rows = [b * block + i for b in blocks for i in range(block)]
    self._start(num_shares)

  def _start(self, num_shares: int) -> None:
    self._num_shares = num_shares
    per_share = self._size // num_shares
    self._shares = {
      share: self._open(share, num_shares, per_share)
      for share in sorted({row // per_share for row in self._rows})
    }
    first = {share: i * per_share for i, share in enumerate(self._shares)}
    self._pick = [
      first[row // per_share] + row % per_share for row in self._rows
    ]

  def __next__(self) -> features.Arrays:
    parts = [next(share) for share in self._shares.values()]
    if len(self._pick) == self._size and len(parts) == 1:
      return parts[0]
    return {
      name: np.concatenate([part[name] for part in parts])[self._pick]
      for name in parts[0]
    }

  def get_state(self) -> dict[str, Any]:
    """The place after the last batch, the same in every process.

    All processes must call it together.
    """
    own = {str(i): share.get_state() for i, share in self._shares.items()}
    places: dict[str, Any] = {}
    for found in processes.gather(own):
      places |= found
    return {'num_shares': self._num_shares, 'places': places}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where `get_state` was, on whatever processes.

    Raises:
      ValueError: the state belongs to other records or settings.
    """
    if 'places' not in state:  # of a version with one stream
      state = {'num_shares': 1, 'places': {'0': state}}
    if state['num_shares'] != self._num_shares:
      if self._size % state['num_shares']:
        raise ValueError(
          f'the run was made of {state["num_shares"]} streams of records, '
          f'which do not divide a batch of {self._size} rows; use its batch '
          'size'
        )
      self._start(state['num_shares'])
    for share, batches in self._shares.items():
      batches.set_state(state['places'][str(share)])


def open_global(
  path: str,
  *,
  batch_size: int,
  blocks: Sequence[int] = (0,),
  num_blocks: int = 1,
  num_shares: int = 1,
  **settings: Any,
) -> GlobalBatches:
  """This process's rows of global batches of the records in `path`.

  Args:
    path: as for `open_batches`.
    batch_size: rows of the global batch.
    blocks: equal blocks of its rows that this process feeds.
    num_blocks: in the global batch.
    num_shares: disjoint streams of records that make the batch; each is read
      by the processes that feed rows of it, so one per process is cheapest.
    **settings: of `open_batches`.

  Raises:
    ValueError: as `open_batches`, or the batch cannot be split evenly.
  """

  def open_share(share: int, count: int, rows: int) -> Batches:
    """Batches of one stream."""
    return open_batches(
      path,
      batch_size=rows,
      process_index=share,
      process_count=count,
      **settings,
    )

  return GlobalBatches(open_share, batch_size, num_shares, blocks, num_blocks)
