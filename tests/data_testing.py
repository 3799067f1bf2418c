# SPDX-License-Identifier: Apache-2.0
"""A byte-level tokenizer and random records for the data tests."""

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from specstream_jax.data import records, vocabulary

EOS = '<eos>'


def make_tokenizer() -> tokenizers.Tokenizer:
  """One token per byte; id 0 is an ordinary byte, EOS the last id."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {byte: i for i, byte in enumerate(alphabet)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([EOS])
  return tokenizer


def make_vocabulary(bos_id: int | None = None) -> vocabulary.Vocabulary:
  tokenizer = make_tokenizer()
  return vocabulary.Vocabulary(tokenizer, tokenizer.token_to_id(EOS), bos_id)


def make_examples(count: int, seed: int = 0):
  """(prompt ids, answer ids); the first prompt id names the example."""
  rng = np.random.default_rng(seed)
  return [
    (
      np.append(1000 + i, rng.integers(3, 99, rng.integers(0, 6))).astype(
        np.int32
      ),
      np.append(rng.integers(3, 99, rng.integers(0, 7)), 2).astype(np.int32),
    )
    for i in range(count)
  ]


def write_records(path, count: int, **options):
  """Writes `make_examples(count)`; returns (examples, manifest)."""
  examples = make_examples(count)
  metadata = {'task': 'numbers', 'split': 'train', 'tokenizer_sha256': 'abc'}
  manifest = records.write(examples, str(path), metadata=metadata, **options)
  return examples, manifest
