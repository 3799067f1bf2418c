# SPDX-License-Identifier: Apache-2.0
"""GGUF files of any values, written after the format's description."""

import math
import struct
from typing import Any

import numpy as np

_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9


def _text(value: str) -> bytes:
  content = value.encode('utf-8', 'surrogatepass')
  return struct.pack('<Q', len(content)) + content


def _value(value: Any) -> tuple[int, bytes]:
  """(type, bytes) of a value; what GGUF has no type for becomes a text."""
  if isinstance(value, bool):
    return 7, struct.pack('<?', value)
  if isinstance(value, int) and 0 <= value < 2**64:
    return 10, struct.pack('<Q', value)
  if isinstance(value, int) and -(2**63) <= value < 0:
    return 11, struct.pack('<q', value)
  if isinstance(value, float):
    return 12, struct.pack('<d', value)
  if isinstance(value, list) and value:
    parts = [_value(item) for item in value]
    same = [content for kind, content in parts if kind == parts[0][0]]
    head = struct.pack('<IQ', parts[0][0], len(same))
    return _ARRAY, head + b''.join(same)
  return _STRING, _text(value if isinstance(value, str) else repr(value)[:99])


def dump(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
  """A file of float32 tensors."""
  head = b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(metadata))
  for key, value in metadata.items():
    kind, content = _value(value)
    head += _text(key) + struct.pack('<I', kind) + content
  place = 0
  for name, leaf in tensors.items():
    head += _text(name) + struct.pack('<I', leaf.ndim)
    head += struct.pack(f'<{leaf.ndim}Q', *leaf.shape[::-1])
    head += struct.pack('<IQ', 0, place)
    place += math.ceil(leaf.nbytes / _ALIGNMENT) * _ALIGNMENT
  body = bytearray(-len(head) % _ALIGNMENT)
  for leaf in tensors.values():
    body += leaf.astype('<f4').tobytes() + bytes(-leaf.nbytes % _ALIGNMENT)
  return head + bytes(body)
