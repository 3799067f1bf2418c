# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of tokens as the two endpoints show them."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from specstream_jax.serving import scoring
from specstream_jax.text import pieces as pieces_lib

_LEAST = -9999.0  # JSON knows no infinity


class _Token(NamedTuple):
  """A token and its rivals: (bytes, name, log-probability) of each.

  Attributes:
    own: its log-probability is None where nothing comes before it.
    rivals: the likeliest there, best first.
  """

  own: tuple[bytes, str, float | None]
  rivals: list[tuple[bytes, str, float]]


def of_text(
  pieces: pieces_lib.Pieces,
  tokens: Sequence[int],
  scores: scoring.Scores,
  *,
  start: int,
  num_top: int,
) -> dict[str, Any]:
  """`logprobs` of a choice of /v1/completions.

  Args:
    pieces: of the tokenizer.
    tokens: of prompt and completion.
    scores: of `tokens`.
    start: the first token to show.
    num_top: rivals to show beside each token.
  """
  utf8 = codecs.getincrementaldecoder('utf-8')('replace')
  answer: dict[str, Any] = {
    name: []
    for name in ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset')
  }
  length = 0
  for token in _tokens(pieces, tokens, scores, start, num_top):
    data, name, logprob = token.own
    top = None
    if logprob is not None:
      # Of two that are spelled alike, the likelier.
      top = {name: value for _, name, value in reversed(token.rivals)}
      top.setdefault(name, logprob)
    answer['tokens'].append(name)
    answer['token_logprobs'].append(logprob)
    answer['top_logprobs'].append(top)
    answer['text_offset'].append(length)
    length += len(utf8.decode(data))
  return answer


def of_chat(
  pieces: pieces_lib.Pieces,
  tokens: Sequence[int],
  scores: scoring.Scores,
  *,
  start: int,
  num_top: int,
) -> dict[str, Any]:
  """`logprobs` of a choice of /v1/chat/completions; see `of_text`."""
  entry = lambda data, name, logprob: {
    'token': name, 'logprob': logprob, 'bytes': list(data)
  }  # fmt: skip
  shown = _tokens(pieces, tokens, scores, start, num_top)
  content = [
    entry(*token.own) | {'top_logprobs': [entry(*one) for one in token.rivals]}
    for token in shown
  ]
  return {'content': content, 'refusal': None}


def _tokens(pieces, tokens, scores, start, num_top) -> Iterator[_Token]:
  """The tokens from `start` on."""
  is_first = True
  for index, token in enumerate(tokens):
    at = index - 1  # where the scores have it
    if index >= start:
      own = None if at < 0 else _number(scores.logprobs[at])
      best = []
      if at >= 0:
        ids = scores.candidates[at, :num_top].tolist()
        values = map(_number, scores.candidate_logprobs[at, :num_top])
        best = [
          (*spell(pieces, rival, is_first), value)
          for rival, value in zip(ids, values)
        ]
      yield _Token((*spell(pieces, token, is_first), own), best)
    is_first &= pieces.is_skipped(token)


def spell(
  pieces: pieces_lib.Pieces, token: int, is_first: bool
) -> tuple[bytes, str]:
  """Bytes that a token adds to a text, its first or not, and how it is called."""
  if pieces.is_skipped(token):
    return b'', pieces.tokenizer.id_to_token(token) or f'token_id:{token}'
  if pieces.is_exact:
    data = pieces.spell(token, is_first=is_first)
  else:
    data = pieces.tokenizer.decode([token]).encode()
  try:
    return data, data.decode()
  except UnicodeDecodeError:
    return data, 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in data)


def _number(value: float) -> float:
  """As JSON has it."""
  value = float(value)
  return value if value > _LEAST else _LEAST  # of NaN, too
