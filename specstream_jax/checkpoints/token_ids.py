# SPDX-License-Identifier: Apache-2.0
"""Which ids a tokenizer gives, and whether the model has embeddings for them.

A gather out of range raises nothing on an accelerator: it reads another row.
"""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

import numpy as np
import tokenizers


def check(
  ids: Sequence[int] | np.ndarray,
  vocab_size: int,
  name: str,
  tokenizer: Any = None,
) -> None:
  """Raises ValueError if an id is none of the vocabulary.

  Args:
    ids: [T].
    vocab_size: V, rows of the embedding.
    name: what holds the ids, for the message.
    tokenizer: for the token's text, if it is a `tokenizers.Tokenizer`.
  """
  try:
    ids = np.asarray(ids, np.int64)
  except OverflowError:
    wrong = [i for i in ids if not 0 <= i < vocab_size]
  else:
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
  if not len(wrong):
    return
  token, text = int(wrong[0]), None
  # The tokenizer takes numbers of 32 bits.
  if isinstance(tokenizer, tokenizers.Tokenizer) and 0 <= token < 2**32:
    text = tokenizer.id_to_token(token)
  written = str(token) if text is None else f'{token} ({text!r})'
  raise ValueError(
    f'{name}: token {written} has no embedding; accepted: 0 to '
    f"{vocab_size - 1}; use the model's own tokenizer, or a model whose "
    'embedding was enlarged for this one'
  )


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
  """sha256 of what decides the ids; padding, truncation and BOS do not."""
  parts = json.loads(tokenizer.to_str())
  model = parts['model']
  decisive = {
    'vocab': model.get('vocab'),
    'merges': model.get('merges'),
    'added_tokens': [[t['id'], t['content']] for t in parts['added_tokens']],
    'normalizer': parts['normalizer'],
    'pre_tokenizer': parts['pre_tokenizer'],
  }
  text = json.dumps(decisive, sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()
