# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the kinds that models come with.

All have <unk>, <s> and </s> as ids 0 to 2.
"""

import functools

from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
)

SPECIAL = ('<unk>', '<s>', '</s>')
BYTES = tuple(f'<0x{byte:02X}>' for byte in range(256))
LETTERS = tuple('abcdeghilnorstuw.,!?:\n')
WORDS = (
  '▁the',
  '▁a',
  '▁ab',
  'ing',
  '▁It',
  '▁是',
  '是',
  'é',
  '▁▁',
  'ab',
  '▁User:',
)


def _special(tokenizer):
  tokens = [AddedToken(t, normalized=False, special=True) for t in SPECIAL]
  tokenizer.add_special_tokens(tokens)
  return tokenizer


def _merged(pieces, alphabet):
  """(vocabulary, merges) that build each piece from left to right."""
  vocabulary = {t: i for i, t in enumerate((*SPECIAL, *alphabet))}
  merges = []
  for piece in pieces:
    for char in piece:
      vocabulary.setdefault(char, len(vocabulary))
    for i in range(1, len(piece)):
      pair = piece[:i], piece[i]
      if pair not in merges:
        merges.append(pair)
      vocabulary.setdefault(piece[: i + 1], len(vocabulary))
  return vocabulary, merges


def byte_level(texts=(' the', ' a', 'ab', '\n\n', 'ing', '是', '\n\n\n')):
  """As GPT-2; some tokens are part of a character, some several of them."""
  pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  spelled = [
    ''.join(part for part, _ in pre.pre_tokenize_str(t)) for t in texts
  ]
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = Tokenizer(models.BPE(*_merged(spelled, alphabet)))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return _special(tokenizer)


def sentencepiece(pieces=WORDS):
  """As Llama 2: a space in front of a text, bytes for unknown characters."""
  vocabulary, merges = _merged(pieces, (*BYTES, '▁', *LETTERS))
  bpe = models.BPE(
    vocabulary, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True
  )
  tokenizer = Tokenizer(bpe)
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  return _special(tokenizer)


def unigram(pieces=WORDS):
  """As XLM-R or T5, with bytes for unknown characters."""
  scored = [(token, 0.0) for token in SPECIAL]
  scored += [(byte, -9.0) for byte in BYTES]
  scored += [(letter, -5.0) for letter in ('▁', *LETTERS)]
  scored += [(piece, -3.0 - len(piece) / 9) for piece in pieces]
  tokenizer = Tokenizer(models.Unigram(scored, 0, byte_fallback=True))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Sequence(
    [decoders.ByteFallback(), decoders.Metaspace()]
  )
  return _special(tokenizer)


def wordpiece():
  """As BERT: pieces within a word start with ##."""
  names = [*SPECIAL, *'abcint.,!', '##a', '##b', '##ing', '##t', 'the', "n't"]
  vocabulary = {name: i for i, name in enumerate(names)}
  tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  return _special(tokenizer)


def words():
  """Whole words and no decoder."""
  names = [*SPECIAL, 'one', 'two', 'three', '.']
  vocabulary = {name: i for i, name in enumerate(names)}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return _special(tokenizer)


def suffixed():
  """As the first GPT: </w> ends a word, so a token's text needs the next."""
  vocabulary, merges = _merged((), (*'abc', *(f'{c}</w>' for c in 'abc')))
  bpe = models.BPE(vocabulary, merges, end_of_word_suffix='</w>')
  tokenizer = Tokenizer(bpe)
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.decoder = decoders.BPEDecoder('</w>')
  return _special(tokenizer)


KINDS = {
  'byte_level': byte_level,
  'sentencepiece': sentencepiece,
  'unigram': unigram,
  'wordpiece': wordpiece,
  'words': words,
  'suffixed': suffixed,
}


@functools.cache
def make(kind):
  """The tokenizer of a kind, made once; do not change it."""
  return KINDS[kind]()
