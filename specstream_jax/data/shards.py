# SPDX-License-Identifier: Apache-2.0
"""ArrayRecord files of token records, read with errors that name the file."""

from collections.abc import Sequence
from typing import Any

import grain.python as grain
import numpy as np

_DTYPE = np.dtype('<i4')
_FIX = 'prepare the records again'


class Shards:
  """Records by number, over several files."""

  def __init__(self, paths: Sequence[str]):
    """Opens the files.

    Raises:
      ValueError: one is cut short, damaged or no ArrayRecord file.
    """
    self._paths = list(paths)
    try:
      self._records: Any = grain.ArrayRecordDataSource(self._paths)
    except RuntimeError:
      for path in self._paths:  # the library does not say which
        _count(path)
      raise

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    """A record, see `decode`.

    Raises:
      ValueError: it cannot be read, or is no token record.
    """
    try:
      record = self._records[index]
    except RuntimeError as error:
      raise _damage(self._place(index), error) from error
    if problem := _problem(record):
      raise ValueError(f'{self._place(index)} {problem}; {_FIX}')
    return record

  def _place(self, index: int) -> str:
    """The file of a record, and its number there, from 1."""
    for path in self._paths:
      count = _count(path)
      if index < count:
        break
      index -= count
    return f'{path}: record {index + 1}'


def _count(path: str) -> int:
  """Records of a file; raises ValueError if it is damaged."""
  try:
    records: Any = grain.ArrayRecordDataSource([path])
    return len(records)
  except RuntimeError as error:
    raise _damage(path, error) from error


def _damage(place: str, error: RuntimeError) -> ValueError:
  """What the library says, after the name of what it is about."""
  reason = str(error).partition(';')[0] or 'its index cannot be read'
  return ValueError(f'{place} is cut short or damaged ({reason}); {_FIX}')


def _problem(record: bytes) -> str:
  """What makes bytes no token record; empty if nothing does."""
  count, rest = divmod(len(record), _DTYPE.itemsize)
  if rest or not count:
    return f'has {len(record):,} bytes; accepted: a multiple of 4 above 0'
  num_inputs = int(np.frombuffer(record, _DTYPE, 1)[0])
  if not 0 <= num_inputs < count:
    return f'has {count - 1:,} tokens, of which the prompt takes {num_inputs:,}'
  return ''


def encode(inputs: np.ndarray, targets: np.ndarray) -> bytes:
  """The record of prompt ids [I] and answer ids [A]."""
  return (
    np.concatenate([[len(inputs)], inputs, targets]).astype(_DTYPE).tobytes()
  )


def decode(record: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Prompt ids int32 [I] and answer ids int32 [A] of a record."""
  values = np.frombuffer(record, _DTYPE).astype(np.int32)
  num_inputs = int(values[0])
  return values[1 : 1 + num_inputs], values[1 + num_inputs :]


def num_tokens(record: bytes) -> int:
  """Tokens of prompt and answer."""
  return len(record) // _DTYPE.itemsize - 1
