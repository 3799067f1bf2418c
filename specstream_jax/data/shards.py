# SPDX-License-Identifier: Apache-2.0
"""Records in ArrayRecord files; damage is told with the file's name.

One record is one example, little-endian int32 throughout:

    [I, prompt id 1 … prompt id I, answer id 1 … answer id A]

I is the number of prompt tokens (BOS included if the tokenizer asks for one);
the rest are answer tokens, EOS included.
"""

from collections.abc import Iterator, Sequence
import os

import grain.python as grain
import numpy as np

_DTYPE = np.dtype('<i4')


def encode(inputs: np.ndarray, targets: np.ndarray) -> bytes:
  """The record of prompt ids [I] and answer ids [A]."""
  return (
    np.concatenate([[len(inputs)], inputs, targets]).astype(_DTYPE).tobytes()
  )


def decode(record: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Prompt ids int32 [I] and answer ids int32 [A] of a record.

  Raises:
    ValueError: the bytes are none.
  """
  is_ids = len(record) and len(record) % _DTYPE.itemsize == 0
  values = np.frombuffer(record if is_ids else b'', _DTYPE).astype(np.int32)
  num_inputs = int(values[0]) if is_ids else -1
  if not 0 <= num_inputs < len(values):
    raise ValueError(
      f'{len(record)} bytes that are no prompt and answer; prepare the records '
      'again'
    )
  return values[1 : 1 + num_inputs], values[1 + num_inputs :]


def read_file(path: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (prompt ids, answer ids) of every record of a shard.

  Raises:
    ValueError: the file or a record of it is damaged.
  """
  source = Source([path])
  for i in range(len(source)):
    yield decode(source[i])


class Source:
  """Records of several files, whose damage is told with their names."""

  def __init__(self, paths: Sequence[str]):
    """Raises ValueError if a file is damaged, naming it."""
    self._paths = list(paths)
    try:
      self._records = grain.ArrayRecordDataSource(self._paths)
    except (RuntimeError, ValueError, OSError):
      for path in self._paths:
        _open_one(path)
      raise

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    try:
      record = self._records[index]
      decode(record)
    except (RuntimeError, ValueError) as error:
      raise ValueError(f'{self._place(index)}: {_first_line(error)}') from error
    return record

  def _place(self, index: int) -> str:
    """File of a record, and its number there, from 1."""
    for path in self._paths:
      count = len(grain.ArrayRecordDataSource([path]))
      if index < count:
        break
      index -= count
    return f'{path}, record {index + 1}'


def _open_one(path: str) -> None:
  """Raises ValueError if a file is damaged."""
  try:
    grain.ArrayRecordDataSource([path])
  except (RuntimeError, ValueError, OSError) as error:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    raise ValueError(
      f'{path} ({size:,} bytes) is no whole file of records '
      f'({_first_line(error)}); prepare the records again'
    ) from error


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or ['it cannot be read'])[0]
