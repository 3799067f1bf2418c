# SPDX-License-Identifier: Apache-2.0
"""Tokens that a task's answers are made of, most frequent first.

A draft needs no token that the task never uses, so streams may read only those
rows of the LM head. The verifier keeps the whole vocabulary: the output stays.
The idea is that of FR-Spec (arXiv 2502.14856), there for another drafter.
"""

from collections.abc import Iterable
import json
import os
from typing import Any

import numpy as np

from specstream_jax.checkpoints import fields, files

FILE = 'draft_vocabulary.json'  # in an adapter's folder
FORMAT = 'specstream draft vocabulary 1'
_IDS = fields.lists(fields.COUNT, 'token ids')


def build(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]], source: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
  """Token ids and metadata of token records.

  Args:
    pairs: (prompt ids, answer ids), see `data.records.with_source`.
    source: where they come from.

  Returns:
    (int32 ids of every token in an answer, most frequent first, ties by id;
    the metadata).
  """
  answers = [answer for _, answer in pairs]
  ids, counts = np.unique(np.concatenate(answers), return_counts=True)
  order = np.argsort(-counts, kind='stable')
  return ids[order].astype(np.int32), source | {'num_tokens': len(ids)}


def save(path: str, ids: np.ndarray, metadata: dict[str, Any]) -> None:
  """Writes the file; it appears only when complete."""
  value = {'format': FORMAT, **metadata, 'ids': ids.tolist()}
  folder, name = os.path.split(os.path.abspath(path))
  text = json.dumps(value) + '\n'
  files.write_all(folder, {name: lambda path: files.write_text(path, text)})


def num_tokens(folder: str) -> int:
  """How many an adapter's folder has; 0 without a vocabulary.

  Raises:
    ValueError: the file cannot be read.
  """
  path = os.path.join(folder, FILE)
  if not (folder and os.path.isfile(path)):
    return 0
  return len(files.read_json(path).get('ids', ()))


def load(
  path: str, *, tokenizer_sha256: str | None, vocab_size: int, size: int = 0
) -> np.ndarray:
  """The first `size` ids of a file, ascending; see `by_frequency`."""
  return np.unique(
    by_frequency(
      path,
      tokenizer_sha256=tokenizer_sha256,
      vocab_size=vocab_size,
      size=size,
    )
  )


def by_frequency(
  path: str, *, tokenizer_sha256: str | None, vocab_size: int, size: int = 0
) -> np.ndarray:
  """The first `size` ids of a file, most frequent first; 0 takes all.

  Args:
    path: written by `save`.
    tokenizer_sha256: of the model, or None for no check.
    vocab_size: of the model.
    size: how many.

  Raises:
    ValueError: no such file, another format or tokenizer, or no such ids.
  """
  found = files.read_json(path)
  source = f'draft vocabulary {path!r}'
  fix = 'write one with `specstream prepare --draft_vocabulary=FILE`'
  if found.get('format') != FORMAT or not found.get('ids'):
    raise ValueError(
      f'{source} has format {fields.shown(found.get("format"))}; accepted: '
      f'{FORMAT!r} with ids; {fix}'
    )
  written = found.get('tokenizer_sha256')
  if tokenizer_sha256 is not None and written != tokenizer_sha256:
    raise ValueError(
      f'{source} was made with tokenizer {str(written)[:12]}… but the model has '
      f'{tokenizer_sha256[:12]}…; {fix}'
    )
  ids = fields.get(found, 'ids', _IDS, source)[: size or None]
  if max(ids) >= vocab_size:
    raise ValueError(
      f'{source} has ids {min(ids)} to {max(ids)}; the model has 0 to '
      f'{vocab_size - 1}; {fix}'
    )
  return np.asarray(ids, np.int32)
