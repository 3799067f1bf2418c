# SPDX-License-Identifier: Apache-2.0
"""What each token adds to a text, in bytes.

A tokenizer decodes whole texts. Most of them work token by token, and then a
text is no more than the bytes of its tokens one after the other: byte-level
BPE spells bytes as characters, SentencePiece marks spaces and spells what it
does not know as <0xNN>, WordPiece glues pieces with ##. Only the first token
may differ, where decoders leave out the space in front.
"""

import functools
import json
import re
from typing import Any

import tokenizers

# A byte outside ASCII; the others are characters, which decoders may change.
_RAW_BYTE = re.compile('<0x([89A-Fa-f][0-9A-Fa-f])>')
# Stands in front of a piece that is not the first; no decoder touches it.
_BEFORE = '\0'


class Pieces:
  """The bytes of the tokens of one tokenizer.

  Attributes:
    is_exact: whether the tokenizer decodes token by token; if not, `spell`
      means nothing.
    is_byte_fallback: whether it takes bytes that are no UTF-8 one by one.
    special: id of every special token, by its text.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self.tokenizer = tokenizer
    self._added = tokenizer.get_added_tokens_decoder()
    self.special = {t.content: i for i, t in self._added.items() if t.special}
    self._special = set(self.special.values())
    steps = _steps(tokenizer.decoder)
    kinds = [step['type'] for step in steps]
    self.is_exact = _is_tokenwise(steps)
    self.is_byte_fallback = 'ByteFallback' in kinds
    self._spell = _byte_level if 'ByteLevel' in kinds else self._by_decoder
    self._bytes_of: dict[tuple[int, bool], bytes] = {}

  def is_skipped(self, token: int) -> bool:
    """Whether a text has nothing of the token: special, or not known."""
    return token in self._special or self.tokenizer.id_to_token(token) is None

  def is_added(self, token: int) -> bool:
    """Whether the token is found before a text is tokenized."""
    return token in self._added

  def spell(self, token: int, *, is_first: bool = False) -> bytes:
    """What the token adds to a text.

    Args:
      token: its id; b'' for one that is skipped.
      is_first: whether no other token of the text came before.
    """
    key = token, is_first
    if key not in self._bytes_of:
      name = '' if self.is_skipped(token) else self.tokenizer.id_to_token(token)
      self._bytes_of[key] = self._spell(name or '', is_first)
    return self._bytes_of[key]

  def _by_decoder(self, name: str, is_first: bool) -> bytes:
    """As the tokenizer's own decoder has it, but for the bytes of <0xNN>."""
    byte = self.is_byte_fallback and _RAW_BYTE.fullmatch(name)
    if byte:
      return bytes([int(byte[1], 16)])
    decoder = self.tokenizer.decoder
    if not name:
      return b''
    if decoder is None:  # tokens are words
      return f'{"" if is_first else " "}{name}'.encode()
    if is_first:
      return decoder.decode([name]).encode()
    return decoder.decode([_BEFORE, name]).removeprefix(_BEFORE).encode()


def _byte_level(name: str, is_first: bool) -> bytes:
  """Each character is a byte; a name with any other is the text itself."""
  del is_first
  alphabet = _alphabet()
  if all(char in alphabet for char in name):
    return bytes(alphabet[char] for char in name)
  return name.encode()


@functools.cache
def _alphabet() -> dict[str, int]:
  """Character -> byte of byte-level BPE.

  Printing characters of Latin-1 stand for their own byte, the characters from
  U+0100 on for the other bytes in turn.
  """
  own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  rest = sorted(set(range(256)) - set(own))
  return {chr(byte): byte for byte in own} | {
    chr(0x100 + i): byte for i, byte in enumerate(rest)
  }


def _steps(decoder: Any) -> list[dict[str, Any]]:
  """The decoders of a decoder, in order; none if tokens are words."""
  if decoder is None:
    return []
  waiting, found = [json.loads(decoder.__getstate__())], []
  while waiting:
    step = waiting.pop(0)
    if step['type'] == 'Sequence':
      waiting = step['decoders'] + waiting
    else:
      found.append(step)
  return found


def _is_tokenwise(steps: list[dict[str, Any]]) -> bool:
  """Whether each step changes a token by itself, the first perhaps apart."""
  kinds = [step['type'] for step in steps]
  if 'ByteLevel' in kinds:
    return kinds == ['ByteLevel']
  fused = kinds.index('Fuse') if 'Fuse' in kinds else len(kinds)
  bytes_from = kinds.index('ByteFallback') if 'ByteFallback' in kinds else fused
  return all(
    _changes_start(step) if i > fused else _changes_token(step, i > bytes_from)
    for i, step in enumerate(steps)
  )


def _changes_token(step: dict[str, Any], has_bytes: bool) -> bool:
  """Whether a step before all tokens are one text goes token by token."""
  if step['type'] in ('Replace', 'Strip'):
    # What several bytes spell together would be changed as well.
    return not has_bytes and 'Regex' not in step.get('pattern', {})
  return step['type'] in ('ByteFallback', 'Fuse', 'Metaspace', 'WordPiece')


def _changes_start(step: dict[str, Any]) -> bool:
  """Whether a step on the whole text takes one character in front at most."""
  if step['type'] == 'Strip':
    return step['start'] <= 1 and not step['stop']
  return step['type'] == 'Fuse'
