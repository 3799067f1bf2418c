# SPDX-License-Identifier: Apache-2.0
"""What lies in a GGUF file: metadata and tensors, every count held to its size.

The `gguf` package reads as many items as a count says, past the end of the file
too, and keeps a kilobyte for each: one wrong byte would keep it busy for ever.
Its tables of types are used here, and its dequantisation elsewhere.
"""

from collections.abc import Callable
import math
import mmap
import os
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

_MAGIC, _VERSIONS = b'GGUF', (2, 3)
_MAX_DIMS = 4
_MAX_ITEMS = 2**22  # of all arrays; the largest vocabularies have a tenth
# Type -> struct code.
_SCALARS = {
  gguf.GGUFValueType.UINT8: 'B',
  gguf.GGUFValueType.INT8: 'b',
  gguf.GGUFValueType.UINT16: 'H',
  gguf.GGUFValueType.INT16: 'h',
  gguf.GGUFValueType.UINT32: 'I',
  gguf.GGUFValueType.INT32: 'i',
  gguf.GGUFValueType.FLOAT32: 'f',
  gguf.GGUFValueType.BOOL: '?',
  gguf.GGUFValueType.UINT64: 'Q',
  gguf.GGUFValueType.INT64: 'q',
  gguf.GGUFValueType.FLOAT64: 'd',
}
# Tensor types that are not blocks of bytes.
_PLAIN = {
  gguf.GGMLQuantizationType.F32: '<f4',
  gguf.GGMLQuantizationType.F16: '<f2',
  gguf.GGMLQuantizationType.F64: '<f8',
  gguf.GGMLQuantizationType.I8: '<i1',
  gguf.GGMLQuantizationType.I16: '<i2',
  gguf.GGMLQuantizationType.I32: '<i4',
  gguf.GGMLQuantizationType.I64: '<i8',
}


class Tensor(NamedTuple):
  """A tensor of the file.

  Attributes:
    name: of it.
    tensor_type: how its numbers are stored.
    shape: in elements, rows first.
    data: mapped, not read; of quantised types the bytes of every row.
  """

  name: str
  tensor_type: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  data: np.ndarray


class _Info(NamedTuple):
  """What the header says of a tensor."""

  name: str
  tensor_type: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  offset: int


def read(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """Metadata by key, as Python values, and tensors by name.

  Raises:
    ValueError: says what in the file does not add up.
    OSError: it cannot be opened.
  """
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    if not size:
      raise ValueError('it is empty')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      cursor = _Cursor(data)
      num_tensors, num_keys = _counts(cursor)
      metadata = _metadata(cursor, num_keys)
      infos = _infos(cursor, num_tensors)
  start = _aligned(cursor.place, metadata)
  mapped = np.memmap(path, mode='r')
  return metadata, {info.name: _tensor(info, start, mapped) for info in infos}


class _Cursor:
  """A place in the header, which moves on with what is read."""

  def __init__(self, data: mmap.mmap):
    self._data, self.place, self.num_items = data, 0, 0

  def take(self, code: str, what: str) -> Any:
    """A number in the little-endian format of `struct`."""
    (value,) = struct.unpack(
      '<' + code, self.bytes(struct.calcsize(code), what)
    )
    return value

  def bytes(self, count: int, what: str) -> bytes:
    """The next `count` bytes."""
    left = len(self._data) - self.place
    if count > left:
      raise ValueError(
        f'{what} at byte {self.place:,} takes {count:,} bytes, {left:,} are left'
      )
    self.place += count
    return self._data[self.place - count : self.place]

  def text(self, what: str) -> str:
    """A string: its length, then UTF-8."""
    content = self.bytes(self.take('Q', f'the length of {what}'), what)
    try:
      return content.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{what} is not UTF-8 ({error.reason} at byte {error.start})'
      ) from error


def _counts(cursor: _Cursor) -> tuple[int, int]:
  """How many tensors and metadata keys follow."""
  magic = cursor.bytes(4, 'the magic number')
  if magic != _MAGIC:
    raise ValueError(f'it begins with {magic!r}, not {_MAGIC!r}')
  version = cursor.take('I', 'the version')
  if version not in _VERSIONS:
    hint = '' if version & 0xFFFF else ', perhaps of the other byte order'
    raise ValueError(f'its version is {version:,}{hint}; accepted: 2, 3')
  return cursor.take('Q', 'the tensor count'), cursor.take('Q', 'the key count')


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
  found = {}
  for number in range(count):
    key = cursor.text(f'metadata key {number:,} of {count:,}')
    if key in found:
      raise ValueError(f'metadata key {key!r} stands there twice')
    kind = cursor.take('I', f'the type of {key!r}')
    found[key] = _value(cursor, kind, repr(key))
  return found


def _value(cursor: _Cursor, kind: int, what: str) -> Any:
  if kind == gguf.GGUFValueType.ARRAY:
    return _array(cursor, what)
  return _reader(cursor, kind, what)()


def _reader(cursor: _Cursor, kind: int, what: str) -> Callable[[], Any]:
  """What reads the next value of a type that is no array."""
  if kind == gguf.GGUFValueType.STRING:
    return lambda: cursor.text(what)
  if kind not in _SCALARS:
    raise ValueError(f'{what} is of type {kind:,}, which is not known')
  code = _SCALARS[gguf.GGUFValueType(kind)]
  return lambda: cursor.take(code, what)


def _array(cursor: _Cursor, what: str) -> list[Any]:
  kind = cursor.take('I', f'the type of the items of {what}')
  count = cursor.take('Q', f'the length of {what}')
  cursor.num_items += count
  if cursor.num_items > _MAX_ITEMS:
    raise ValueError(
      f'{what} has {count:,} items; accepted: {_MAX_ITEMS:,} in all arrays'
    )
  if kind in _SCALARS:
    code = f'<{count}{_SCALARS[kind]}'
    return list(struct.unpack(code, cursor.bytes(struct.calcsize(code), what)))
  read = _reader(cursor, kind, what)
  return [read() for _ in range(count)]


def _infos(cursor: _Cursor, count: int) -> list[_Info]:
  found = {}
  for number in range(count):
    name = cursor.text(f'the name of tensor {number:,} of {count:,}')
    if name in found:
      raise ValueError(f'tensor {name!r} stands there twice')
    num_dims = cursor.take('I', f'the dimensions of {name!r}')
    if num_dims > _MAX_DIMS:
      raise ValueError(
        f'tensor {name!r} has {num_dims:,} dimensions; accepted: {_MAX_DIMS}'
      )
    # The file lists the fastest axis first.
    shape = [cursor.take('Q', f'a size of {name!r}') for _ in range(num_dims)]
    kind = cursor.take('I', f'the type of {name!r}')
    offset = cursor.take('Q', f'the offset of {name!r}')
    found[name] = _Info(name, _type(kind, name), tuple(shape[::-1]), offset)
  return list(found.values())


def _type(kind: int, name: str) -> gguf.GGMLQuantizationType:
  try:
    return gguf.GGMLQuantizationType(kind)
  except ValueError:
    raise ValueError(
      f'tensor {name!r} is of type {kind:,}, which is not known'
    ) from None


def _aligned(place: int, metadata: dict[str, Any]) -> int:
  """Where the numbers begin, after the header."""
  key = 'general.alignment'
  step = metadata.get(key, gguf.GGUF_DEFAULT_ALIGNMENT)
  is_size = isinstance(step, int) and not isinstance(step, bool)
  if not is_size or step < 1 or step & (step - 1):
    raise ValueError(f'{key} is {step!r}; accepted: a power of two')
  return -(-place // step) * step


def _tensor(info: _Info, start: int, mapped: np.ndarray) -> Tensor:
  """The tensor's part of the mapped file."""
  block, block_bytes = gguf.GGML_QUANT_SIZES[info.tensor_type]
  row = info.shape[-1] if info.shape else 1
  if row % block:
    raise ValueError(
      f'tensor {info.name!r} has rows of {row:,} elements, no multiple of the '
      f'{block} of {info.tensor_type.name}'
    )
  num_bytes = math.prod(info.shape) // block * block_bytes
  first = start + info.offset
  if first + num_bytes > len(mapped):
    raise ValueError(
      f'tensor {info.name!r} of shape {info.shape} takes {num_bytes:,} bytes '
      f'from byte {first:,} on'
    )
  raw = mapped[first : first + num_bytes]
  if info.tensor_type in _PLAIN:
    data = raw.view(_PLAIN[info.tensor_type]).reshape(info.shape)
  else:
    data = raw.reshape(*info.shape[:-1], row // block * block_bytes)
  return Tensor(info.name, info.tensor_type, info.shape, data)
