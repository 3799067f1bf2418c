# SPDX-License-Identifier: Apache-2.0
"""The text of new tokens after a prompt, whole or as they come.

It is what the tokenizer makes of prompt and new tokens together, less the
prompt: a first word keeps the space in front of it, and a character may take
bytes of several tokens. Bytes that never become a character are U+FFFD each,
or together, as the tokenizer's decoder has it.
"""

import codecs
from collections.abc import Iterable, Sequence
import itertools

from specstream_jax.text import pieces as pieces_lib

_NO_CHARACTER = '\N{REPLACEMENT CHARACTER}'


def _one_by_one(error: UnicodeError) -> tuple[str, int]:
  """U+FFFD for each byte that is part of no character."""
  if not isinstance(error, UnicodeDecodeError):
    raise error
  return _NO_CHARACTER * (error.end - error.start), error.end


codecs.register_error('specstream.one_by_one', _one_by_one)


class Completion:
  """Text that grows with tokens; only bytes of half a character wait.

  A tokenizer that does not decode token by token gives all text at the end.
  """

  def __init__(
    self,
    pieces: pieces_lib.Pieces,
    prompt: Sequence[int] = (),
    *,
    eos_ids: Iterable[int] = (),
    stops: Sequence[str] = (),
  ):
    """Begins after a prompt.

    Args:
      pieces: of the tokenizer.
      prompt: token ids that the text comes after and does not hold.
      eos_ids: the text ends before the first of these.
      stops: the text ends with the first of these to be whole.
    """
    self._pieces, self._prompt = pieces, list(prompt)
    self._eos_ids = frozenset(eos_ids)
    self._stops = [stop.encode() for stop in stops]
    self._tokens: list[int] = []
    self._recent = b''  # as far back as a stop may begin
    self._is_first, self._has_ended = True, False
    errors = 'specstream.one_by_one' if pieces.is_byte_fallback else 'replace'
    self._utf8 = codecs.getincrementaldecoder('utf-8')(errors)
    if pieces.is_exact:
      self._utf8.decode(self._spell(prompt))

  @property
  def has_ended(self) -> bool:
    """Whether EOS or a stop came, or `finish` was called."""
    return self._has_ended

  def add(self, tokens: Sequence[int]) -> str:
    """The text that is certain now and was not before."""
    if self._has_ended:
      return ''
    for i, token in enumerate(tokens):
      if token in self._eos_ids:
        self._has_ended = True
        tokens = tokens[:i]
        break
    if not self._pieces.is_exact:
      self._tokens += tokens
      return ''
    return self._utf8.decode(self._until_stop(self._spell(tokens)))

  def finish(self) -> str:
    """The rest of the text; nothing more can be added."""
    self._has_ended = True
    if self._pieces.is_exact:
      return self._utf8.decode(b'', final=True)
    decode = self._pieces.tokenizer.decode
    before = decode(self._prompt)
    whole = decode(self._prompt + self._tokens)
    same = itertools.takewhile(
      lambda pair: pair[0] == pair[1], zip(before, whole)
    )
    return whole[len(list(same)) :]

  def _spell(self, tokens):
    """Bytes of tokens, the first of a text in its own way."""
    spelled = []
    for token in tokens:
      spelled.append(self._pieces.spell(token, is_first=self._is_first))
      self._is_first &= self._pieces.is_skipped(token)
    return b''.join(spelled)

  def _until_stop(self, data):
    """The bytes up to the end of the first stop that is whole in them."""
    if not self._stops:
      return data
    text = self._recent + data
    places = [(text.find(stop), len(stop)) for stop in self._stops]
    ends = [place + length for place, length in places if place >= 0]
    if ends:
      self._has_ended = True
      return data[: min(ends) - len(self._recent)]
    reach = max(length for _, length in places) - 1
    self._recent = text[len(text) - min(reach, len(text)) :]
    return data


def token_texts(
  pieces: pieces_lib.Pieces,
  tokens: Sequence[int],
  prompt: Sequence[int] = (),
  eos_ids: Iterable[int] = (),
) -> list[str]:
  """What each token adds to a prompt's text; EOS and its like by name.

  A character of several tokens is with the last of them.
  """
  if not pieces.is_exact:
    decode = pieces.tokenizer.decode
    return [decode([token], skip_special_tokens=False) for token in tokens]
  text, named, texts = Completion(pieces, prompt), frozenset(eos_ids), []
  for token in tokens:
    added = text.add([token])
    if token in named or pieces.is_skipped(token):
      added = pieces.tokenizer.id_to_token(token) or ''
    texts.append(added)
  if texts:
    texts[-1] += text.finish()
  return texts
