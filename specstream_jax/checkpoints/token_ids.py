# SPDX-License-Identifier: Apache-2.0
"""Token ids that a model has no embedding for, told before they are used.

A gather out of range raises nothing on an accelerator: it reads another row.
"""

from collections.abc import Sequence
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
  ids = np.asarray(ids, np.int64)
  wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
  if not wrong.size:
    return
  token = int(ids[wrong[0]])
  text = None
  if isinstance(tokenizer, tokenizers.Tokenizer) and token >= 0:
    text = tokenizer.id_to_token(token)
  written = str(token) if text is None else f'{token} ({text!r})'
  raise ValueError(
    f'{name}: token {written} has no embedding; accepted: 0 to '
    f"{vocab_size - 1}; use the model's own tokenizer, or a model whose "
    'embedding was enlarged for this one'
  )
