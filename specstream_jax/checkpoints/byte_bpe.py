# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE: how texts are split before bytes merge, by kind."""

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

# Contractions, words with a sign or space in front, digits, signs, white space.
_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _bytes(use_regex: bool = True) -> pre_tokenizers.ByteLevel:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(digits: str) -> pre_tokenizers.Sequence:
  pattern = tokenizers.Regex(_SPLIT % digits)
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Split(pattern, 'isolated'), _bytes(use_regex=False)]
  )


_PRE_TOKENIZERS = {
  'gpt-2': _bytes,
  'smollm': lambda: pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _bytes()]
  ),
  'llama-bpe': lambda: _split(r'\p{N}{1,3}'),
  'qwen2': lambda: _split(r'\p{N}'),
}
KINDS = tuple(_PRE_TOKENIZERS)


def build(
  kind: str, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> tokenizers.Tokenizer:
  """A tokenizer without added tokens.

  Args:
    kind: one of `KINDS`.
    vocab: ids by token.
    merges: of tokens into tokens, best first.
  """
  # Llama 3 takes a whole word that is a token, however it would merge.
  bpe = models.BPE(dict(vocab), list(merges), ignore_merges=kind == 'llama-bpe')
  tokenizer = tokenizers.Tokenizer(bpe)
  if kind == 'qwen2':
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _PRE_TOKENIZERS[kind]()
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer
