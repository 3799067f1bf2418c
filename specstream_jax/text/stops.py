# SPDX-License-Identifier: Apache-2.0
"""Stop texts as a table that the decode loop follows token by token.

Aho and Corasick's automaton over the bytes of the stop texts, its steps
composed to whole tokens: where the table stands after a token says how much of
a stop the text ends with. Tokens that take every state to the same place share
a class, so the table stays small. No text has special tokens in it: one whose
text is a stop is found by itself.
"""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from specstream_jax.decoding import stopping
from specstream_jax.text import pieces as pieces_lib

MAX_BYTES = 1000
# Tables of one size share a compiled decoder.
_MIN_SIZE = 2**16
# No text has this byte; it stands for all bytes that no stop has.
_OTHER = 0xFF
_FIRST_PREFIX = stopping.FOUND + 1


def table(
  pieces: pieces_lib.Pieces, vocab_size: int, texts: Sequence[str]
) -> stopping.StopTexts:
  """The table of some stop texts.

  Args:
    pieces: of the tokenizer.
    vocab_size: token ids the model can draw.
    texts: at least one.

  Raises:
    ValueError: a text is empty, or has a special token and more, all are too
      long, or the tokenizer does not decode token by token.
  """
  _check(pieces, texts)
  stops = [text.encode() for text in texts]
  step = _automaton(stops)
  ids = special_ids(pieces, texts)
  names, classes = _classes(pieces, vocab_size, stops, ids)
  skipped, is_stop, first, later = zip(*names)
  ends = _follow(step, later)
  begin = _follow(step, first)[stopping.ANYWHERE]
  ends[stopping.START] = np.where(skipped, stopping.START, begin)
  ends[:, np.array(is_stop)] = stopping.FOUND
  size = max(_MIN_SIZE, 1 << (ends.size - 1).bit_length())
  on_host: Any = (
    np.pad(ends.reshape(-1), (0, size - ends.size)),
    np.array(classes, np.int32),
    np.int32(len(names)),
    np.array(skipped)[classes],
  )
  return stopping.StopTexts(*on_host)


def special_ids(
  pieces: pieces_lib.Pieces, texts: Sequence[str]
) -> tuple[int, ...]:
  """Ids of the special tokens whose text is a stop."""
  return tuple(pieces.special[text] for text in texts if text in pieces.special)


def _check(pieces, texts):
  if not pieces.is_exact:
    raise ValueError(
      "stop texts need a tokenizer that decodes token by token, and this one's "
      'decoder does not; leave stop out and cut the texts afterwards'
    )
  for i, text in enumerate(texts):
    if not text:
      raise ValueError(f'stop text {i} is empty; leave it out')
    for special in pieces.special:
      if special in text and text not in pieces.special:
        raise ValueError(
          f'stop text {i} is {text!r:.80}, which has the special token '
          f'{special!r} in it, and no completion has that in its text; use '
          f'{special!r} alone as a stop'
        )
  total = sum(len(text.encode()) for text in texts)
  if total > MAX_BYTES:
    raise ValueError(
      f'stop texts come to {total} bytes; accepted: at most {MAX_BYTES} '
      'together, use fewer or shorter ones'
    )


def _automaton(stops: Sequence[bytes]) -> np.ndarray:
  """(state, byte) -> state, int16 [states, 256]; FOUND is never left.

  A state is the longest end of the text that a stop begins with.
  """
  following: dict[bytes, set[int]] = {}
  for stop in stops:
    for i, byte in enumerate(stop):
      following.setdefault(stop[:i], set()).add(byte)
  is_open = lambda prefix: not any(stop in prefix for stop in stops)
  prefixes = sorted(filter(is_open, following), key=lambda p: (len(p), p))
  states = {
    prefix: _FIRST_PREFIX + i if prefix else stopping.ANYWHERE
    for i, prefix in enumerate(prefixes, start=-1)
  }
  shape = (_FIRST_PREFIX + len(prefixes) - 1, 256)
  step = np.full(shape, stopping.ANYWHERE, np.int16)
  step[stopping.FOUND] = stopping.FOUND
  for prefix, state in states.items():
    # What breaks a prefix off may go on with a shorter one.
    shorter = stopping.ANYWHERE
    for byte in prefix[1:]:
      shorter = step[shorter, byte]
    step[state] = step[shorter]
    for byte in following[prefix]:
      longer = prefix + bytes([byte])
      step[state, byte] = states.get(longer, stopping.FOUND)
  return step


def _classes(pieces, vocab_size, stops, ids):
  """What sets tokens apart (skipped, in ids, first, later); each one's class."""
  used = set(b''.join(stops))
  fold = bytes(byte if byte in used else _OTHER for byte in range(256))
  others = re.compile(bytes([_OTHER]) + b'+')
  short = lambda text: others.sub(bytes([_OTHER]), text.translate(fold))
  names: dict[tuple[bool, bool, bytes, bytes], int] = {}
  classes = []
  for token in range(vocab_size):
    name = (
      pieces.is_skipped(token),
      token in ids,
      short(pieces.spell(token, is_first=True)),
      short(pieces.spell(token)),
    )
    classes.append(names.setdefault(name, len(names)))
  return list(names), classes


def _follow(step: np.ndarray, texts: Sequence[bytes]) -> np.ndarray:
  """Where each text leads from each state, int16 [states, texts]."""
  order = np.argsort([-len(text) for text in texts], kind='stable')
  lengths = np.array([len(texts[i]) for i in order])
  symbols = np.zeros((len(texts), max(lengths.max(initial=0), 1)), np.uint8)
  for row, i in enumerate(order):
    symbols[row, : lengths[row]] = np.frombuffer(texts[i], np.uint8)
  ends = np.repeat(np.arange(len(step), dtype=np.int16)[:, None], len(texts), 1)
  for place in range(lengths.max(initial=0)):
    count = int((lengths > place).sum())
    ends[:, :count] = step[ends[:, :count], symbols[:count, place]]
  unsorted = np.empty_like(ends)
  unsorted[:, order] = ends
  return unsorted
