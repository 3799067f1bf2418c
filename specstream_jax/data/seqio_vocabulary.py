# SPDX-License-Identifier: Apache-2.0
"""Whose ids a seqio vocabulary gives; loads TensorFlow."""

from typing import Any

import numpy as np
import seqio

from specstream_jax.data import tasks, vocabulary as vocabulary_lib


def is_models(theirs: Any, own: vocabulary_lib.Vocabulary) -> bool:
  """Whether ids of a seqio vocabulary are those of the model.

  So it is with our `SeqioVocabulary` of the model's tokenizer, and with a
  SentencePiece file that has the same piece for every id.
  """
  if isinstance(theirs, tasks.SeqioVocabulary):
    return theirs.vocabulary.sha256 == own.sha256
  if not isinstance(theirs, seqio.SentencePieceVocabulary):
    return False
  pieces = theirs.tokenizer
  count = pieces.get_piece_size()
  return theirs.vocab_size == count <= own.size and all(
    pieces.id_to_piece(i) == own.tokenizer.id_to_token(i) for i in range(count)
  )


def read_back(theirs: Any, ids: np.ndarray) -> str | None:
  """The text of ids; None if encoding it does not give the same ids."""
  listed = [int(i) for i in ids]
  text = theirs.decode(listed)
  if not isinstance(text, str):
    return None
  if listed and listed[-1] == theirs.eos_id:
    listed.pop()
  return text if list(theirs.encode(text)) == listed else None
