# SPDX-License-Identifier: Apache-2.0
"""Prompt and answer as the ids of one text.

Generation gives the model the ids of the prompt alone, so those stay. What
follows them is, as a rule, the rest of the ids of prompt and answer together:
encoded apart, an answer would get a space in front from SentencePiece, which
puts one before every text. Where a token of the whole text covers the end of
the prompt, as after a prompt that ends in a space, there is no such rest; the
answer is then encoded as a text that goes on.
"""

from typing import NamedTuple

from specstream_jax.text import completion, pieces as pieces_lib

# Texts that a going-on text can be encoded behind, and cut off again.
_CONTEXTS = ('', '\n', ':', 'a', '.\n')


class Joined(NamedTuple):
  """Ids of a prompt and of the answer to it.

  Attributes:
    prompt: what generation starts from, without BOS.
    answer: without EOS.
    is_inside: the answer starts inside a token of the whole text.
  """

  prompt: list[int]
  answer: list[int]
  is_inside: bool


def encode(pieces: pieces_lib.Pieces, prompt: str, answer: str) -> Joined:
  """Ids of prompt and answer, which together spell both texts.

  Where the prompt ends in an added token, a tokenizer may put a space after it
  or take one away; the ids are then those that spell the answer as it is, if
  there are some.
  """
  before = _encode(pieces, prompt)
  whole = _encode(pieces, prompt + answer)
  count = len(before)
  rest = whole[count:] if whole[:count] == before else None
  if rest is not None and before and not pieces.is_added(before[-1]):
    return Joined(before, rest, False)
  spells = lambda ids: (
    ''.join(completion.token_texts(pieces, ids, before)) == answer
  )
  if rest is not None and spells(rest):
    return Joined(before, rest, False)
  for context in _CONTEXTS:
    ids = _behind(pieces, context, answer)
    if ids is not None and spells(ids):
      return Joined(before, ids, rest is None)
  if rest is None:
    return Joined(before, _encode(pieces, answer), True)
  return Joined(before, rest, False)


def _behind(pieces, context, answer):
  """Ids of the answer behind another text, None if a token covers both."""
  before = _encode(pieces, context)
  whole = _encode(pieces, context + answer)
  is_apart = whole[: len(before)] == before
  return whole[len(before) :] if is_apart else None


def _encode(pieces, text):
  return pieces.tokenizer.encode(text, add_special_tokens=False).ids
