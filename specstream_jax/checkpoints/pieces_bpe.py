# SPDX-License-Identifier: Apache-2.0
"""SentencePiece's BPE, with bytes for what it does not know, as in Llama 2."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers

SPACE = '▁'  # its mark of a space
_LONGEST = 1024


def build(
  tokens: Sequence[str],
  merges: Sequence[tuple[str, str]],
  *,
  unknown: str,
  has_prefix: bool,
  has_bytes: bool = True,
) -> tokenizers.Tokenizer:
  """A tokenizer without added tokens.

  Args:
    tokens: by id.
    merges: of tokens into tokens, best first.
    unknown: token of what has no bytes either.
    has_prefix: whether a text gets a space in front.
    has_bytes: whether what it does not know is spelled in bytes.
  """
  vocab = {token: i for i, token in enumerate(tokens)}
  bpe = models.BPE(
    vocab,
    list(merges),
    unk_token=unknown,
    fuse_unk=True,
    byte_fallback=has_bytes,
  )
  tokenizer = tokenizers.Tokenizer(bpe)
  mark_spaces(tokenizer, has_prefix)
  return tokenizer


def mark_spaces(tokenizer: tokenizers.Tokenizer, has_prefix: bool) -> None:
  """Makes it write spaces as marks, with one in front, and read them back."""
  steps: list[normalizers.Normalizer] = [normalizers.Replace(' ', SPACE)]
  undo: list[decoders.Decoder] = [
    decoders.Replace(SPACE, ' '),
    decoders.ByteFallback(),
  ]
  undo.append(decoders.Fuse())
  if has_prefix:
    steps.insert(0, normalizers.Prepend(SPACE))
    undo.append(decoders.Strip(' ', 1, 0))
  tokenizer.normalizer = normalizers.Sequence(steps)
  tokenizer.decoder = decoders.Sequence(undo)


def merges(
  tokens: Sequence[str], scores: Sequence[float], name: str
) -> list[tuple[str, str]]:
  """Merges in the order of the pieces' scores, best first.

  Args:
    tokens: by id.
    scores: of each.
    name: what holds them, for messages.

  Raises:
    ValueError: not a score for each, or a token too long to take apart.
  """
  if len(scores) != len(tokens):
    raise ValueError(
      f'{name}.scores has {len(scores):,} numbers; accepted: one for each of '
      f'{len(tokens):,} tokens'
    )
  longest = max(map(len, tokens))
  if longest > _LONGEST:  # all of its parts are tried
    raise ValueError(
      f'{name}.tokens has one of {longest:,} characters; accepted: up to '
      f'{_LONGEST:,}'
    )
  ids = {token: i for i, token in enumerate(tokens)}
  ranked = []
  for token, score in zip(tokens, scores, strict=True):
    pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
    known = [p for p in pairs if p[0] in ids and p[1] in ids]
    known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    ranked += [
      (score, len(left), len(right), left, right) for left, right in known
    ]
  ranked.sort(key=lambda item: item[:3], reverse=True)
  return [item[3:] for item in ranked]
