# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE: how texts are split before bytes merge, by kind."""

from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from specstream_jax.checkpoints import fields

# Contractions, words with a sign or space in front, digits, signs, white space.
_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(pattern: str) -> pre_tokenizers.Split:
  return pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated')


# What splits a text first; where it takes no words apart, the bytes' own does.
_FIRST = {
  'gpt-2': list,
  'smollm': lambda: [pre_tokenizers.Digits(individual_digits=True)],
  'llama-bpe': lambda: [_split(_SPLIT % r'\p{N}{1,3}')],
  'qwen2': lambda: [_split(_SPLIT % r'\p{N}')],
}
_SPLITS_WORDS = ('llama-bpe', 'qwen2')
KINDS = tuple(_FIRST)


def build(
  kind: str,
  vocab: Mapping[str, int],
  merges: Sequence[tuple[str, str]],
  *,
  has_prefix: bool = False,
  composes: bool = False,
) -> tokenizers.Tokenizer:
  """A tokenizer without added tokens.

  Args:
    kind: one of `KINDS`.
    vocab: ids by token.
    merges: of tokens into tokens, best first.
    has_prefix: whether a text gets a space in front, unless one is there.
    composes: whether letters and their marks are put together first (NFC), as
      Qwen 2 always does.
  """
  # Llama 3 takes a whole word that is a token, however it would merge.
  bpe = models.BPE(dict(vocab), list(merges), ignore_merges=kind == 'llama-bpe')
  tokenizer = tokenizers.Tokenizer(bpe)
  if composes or kind == 'qwen2':
    tokenizer.normalizer = normalizers.NFC()
  spelled = pre_tokenizers.ByteLevel(
    add_prefix_space=has_prefix, use_regex=kind not in _SPLITS_WORDS
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_FIRST[kind](), spelled])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def merge_pairs(
  merges: Iterable[str], vocab: Mapping[str, int], source: str
) -> list[tuple[str, str]]:
  """What each merge joins, which a space parts.

  Args:
    merges: as files have them.
    vocab: ids by token.
    source: of the merges, for messages.

  Raises:
    ValueError: a part or the whole is no token; the library would panic.
  """
  pairs = []
  for merge in merges:
    left, _, right = merge.partition(' ')
    if not {left, right, left + right} <= vocab.keys():
      raise ValueError(
        f'{source} holds {fields.shown(merge)}; accepted: two tokens of the '
        'vocabulary, a space between them, that make a third'
      )
    pairs.append((left, right))
  return pairs
