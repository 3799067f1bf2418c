# SPDX-License-Identifier: Apache-2.0
"""What of a SentencePiece model file says how a text becomes ids.

The file is a protocol buffer of which a dozen fields matter; they are read
here, so that no package is needed for them that pins protobuf.
"""

from collections.abc import Iterator
import dataclasses
import os
import struct
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Numbers of fields in the messages of the format.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _BOS_ID = 3, 35, 41
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE = 2, 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Spm:
  """A SentencePiece model.

  Attributes:
    tokens: by id.
    scores: of each.
    types: of each: `NORMAL`, `CONTROL`, ….
    model_type: `UNIGRAM`, `BPE` or another.
    has_bytes: whether it spells what it does not know in bytes.
    bos_id: of the token in front of a text, -1 without.
    charsmap: how characters are rewritten first, compiled; b'' if they are not.
    has_prefix: whether a text gets a space in front.
    removes_spaces: whether several spaces are one, and those at the ends none.
  """

  tokens: tuple[str, ...]
  scores: tuple[float, ...]
  types: tuple[int, ...]
  model_type: int
  has_bytes: bool
  bos_id: int
  charsmap: bytes
  has_prefix: bool
  removes_spaces: bool

  def of_type(self, *types: int) -> list[int]:
    """Ids of tokens of these types."""
    return [i for i, found in enumerate(self.types) if found in types]


def read(path: str | os.PathLike) -> Spm:
  """The model in a file.

  Raises:
    ValueError: it is no SentencePiece model, or is damaged.
  """
  with open(path, 'rb') as file:
    content = file.read()
  try:
    return _model(content)
  except (ValueError, IndexError, struct.error) as error:
    raise ValueError(
      f'{os.fspath(path)!r} ({len(content):,} bytes) is no SentencePiece model, '
      f'or damaged ({error}); download it again'
    ) from error


def _model(content: bytes) -> Spm:
  pieces, trainer, normalizer = [], {}, {}
  for number, value in _fields(content):
    if number == _PIECE:
      pieces.append(dict(_fields(_of(bytes, value))))
    elif number == _TRAINER:
      trainer = dict(_fields(_of(bytes, value)))
    elif number == _NORMALIZER:
      normalizer = dict(_fields(_of(bytes, value)))
  if not pieces:
    raise ValueError('it has no pieces')
  if not _of(int, normalizer.get(_ESCAPE, 1)):
    raise ValueError('its spaces are not marked')
  tokens = tuple(_of(bytes, p.get(_TEXT, b'')).decode() for p in pieces)
  types = tuple(_of(int, p.get(_TYPE, NORMAL)) for p in pieces)
  if len(set(tokens)) < len(tokens) or not all(tokens):
    raise ValueError('pieces stand there twice, or are empty')
  if types.count(UNKNOWN) != 1:
    raise ValueError(f'it has {types.count(UNKNOWN)} unknown pieces, not one')
  return Spm(
    tokens=tokens,
    scores=tuple(_float(p.get(_SCORE, bytes(4))) for p in pieces),
    types=types,
    model_type=_of(int, trainer.get(_MODEL_TYPE, UNIGRAM)),
    has_bytes=bool(_of(int, trainer.get(_BYTE_FALLBACK, 0))),
    bos_id=_signed(_of(int, trainer.get(_BOS_ID, 1))),
    charsmap=_of(bytes, normalizer.get(_CHARSMAP, b'')),
    has_prefix=bool(_of(int, normalizer.get(_DUMMY_PREFIX, 1))),
    removes_spaces=bool(_of(int, normalizer.get(_REMOVE_SPACES, 1))),
  )


def _of(kind: type, value: Any) -> Any:
  """The value, which must be of that type."""
  if not isinstance(value, kind):
    raise ValueError(f'a field is {type(value).__name__}, not {kind.__name__}')
  return value


def _float(value: Any) -> float:
  return struct.unpack('<f', _of(bytes, value))[0]


def _signed(value: int) -> int:
  return value - 2**64 if value >= 2**63 else value


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
  """(number, value) of every field: an int, or bytes of strings and floats."""
  place = 0
  while place < len(content):
    key, place = _varint(content, place)
    number, kind = key >> 3, key & 7
    if kind == _VARINT:
      value, place = _varint(content, place)
      yield number, value
      continue
    size = {_FIXED32: 4, _FIXED64: 8}.get(kind)
    if kind == _BYTES:
      size, place = _varint(content, place)
    if size is None or not number:
      raise ValueError(f'a field of type {kind} at byte {place:,}')
    if place + size > len(content):
      raise ValueError(f'a field at byte {place:,} takes {size:,} bytes')
    yield number, content[place : place + size]
    place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
  """A number of 7 bits a byte, and where it ends."""
  value = 0
  for shift in range(0, 70, 7):
    byte = content[place]
    place += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, place
  raise ValueError(f'a number at byte {place:,} does not end')
