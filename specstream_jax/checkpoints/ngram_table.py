# SPDX-License-Identifier: Apache-2.0
"""Builds, writes and reads the n-gram table of `decoding.ngrams`.

Bigrams and trigrams that end in an answer token are counted; those that begin
in the prompt are among them. P(c | context) = (count - 0.5) / count(context):
absolute discounting, without which a context seen once would be certain.

The file is safetensors: `checks` [H, E] uint32, `probs` [H, E] float16, and
what it was made of in the metadata.
"""

from collections.abc import Iterable
import json
import os
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from specstream_jax.checkpoints import fields, files, tensor_files
from specstream_jax.decoding import ngrams
from specstream_jax.outputs import writing

FILE = 'ngrams.safetensors'  # in an adapter's folder
FORMAT = 'specstream n-gram table 1'
MAX_ENTRIES = 2**19
_DISCOUNT = 0.5
_LOAD = 0.5  # entries per place; buckets rarely overflow below that


def build(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]],
  source: dict[str, Any],
  *,
  max_entries: int = MAX_ENTRIES,
) -> tuple[ngrams.NgramTable, dict[str, Any]]:
  """Table and metadata of token records.

  Args:
    pairs: (prompt ids, answer ids), see `data.records.with_source`.
    source: where they come from; goes into the metadata.
    max_entries: if there are more n-grams, the rarest are left out.

  Raises:
    ValueError: no record has an answer.
  """
  table, metadata = from_pairs(pairs, max_entries=max_entries)
  return table, source | metadata


def from_pairs(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  max_entries: int = MAX_ENTRIES,
) -> tuple[ngrams.NgramTable, dict[str, Any]]:
  """Table (numpy) and its sizes, from (prompt ids, answer ids)."""
  trigrams = _trigrams(pairs)
  bigrams = trigrams.copy()
  bigrams[:, 0] = ngrams.NOTHING
  # Where a text begins there is no grandparent, and the bigram says it all.
  trigrams = trigrams[trigrams[:, 0] != ngrams.NOTHING]
  parts = [_probabilities(part) for part in (bigrams, trigrams) if len(part)]
  if not parts:
    raise ValueError(
      'the records hold no answer with a token before it, so there are no '
      'n-grams to count; prepare records of a task with prompts and answers'
    )
  keys, probs, counts = (np.concatenate(x) for x in zip(*parts, strict=True))
  order = np.argsort(-counts, kind='stable')[:max_entries]
  table, num_placed = _place(keys[order], probs[order])
  metadata = {
    'num_bigrams': len(parts[0][0]),
    'num_trigrams': len(keys) - len(parts[0][0]),
    'num_entries': num_placed,
    'max_entries': max_entries,
  }
  return table, metadata


def _trigrams(pairs):
  """(grandparent, parent, token) of every answer token, int32 [N, 3]."""
  found = [np.zeros((0, 3), np.int32)]
  for inputs, targets in pairs:
    before = np.append([ngrams.NOTHING] * 2, inputs)[-2:]
    text = np.append(before, targets).astype(np.int32)
    windows = np.stack([text[:-2], text[1:-1], text[2:]], axis=1)
    found.append(windows[windows[:, 1] != ngrams.NOTHING])
  return np.concatenate(found)


def _probabilities(grams):
  """Distinct n-grams [N, 3], P(last | first two) [N] and counts [N]."""
  keys, counts = np.unique(grams, axis=0, return_counts=True)
  _, context, totals = _contexts(keys, counts)
  return keys, (counts - _DISCOUNT) / totals[context], counts


def _contexts(keys, counts):
  """Distinct contexts, the one of each n-gram, and their counts."""
  contexts, index = np.unique(keys[:, :2], axis=0, return_inverse=True)
  index = index.reshape(-1)
  return contexts, index, np.bincount(index, weights=counts)


def _place(keys, probs):
  """The table of n-grams, most frequent first, and how many it could take."""
  size = ngrams.BUCKET_SIZE
  num_buckets = 1 << max(int(len(keys) / _LOAD / size) - 1, 0).bit_length()
  hashed, check = ngrams.hashes(*keys.T)
  bucket = (hashed & np.uint32(num_buckets - 1)).astype(np.int64)
  order = np.argsort(bucket, kind='stable')
  bucket = bucket[order]
  rank = np.arange(len(order)) - np.searchsorted(bucket, bucket)
  fits = rank < size  # of an overfull bucket, the rarest are left out
  at, order = (bucket[fits], rank[fits]), order[fits]
  checks = np.full((num_buckets, size), ngrams.EMPTY, np.uint32)
  values = np.zeros((num_buckets, size), np.float16)
  checks[at], values[at] = check[order], probs[order]
  return ngrams.NgramTable(checks, values), len(order)


def save(path: str, table: ngrams.NgramTable, metadata: dict[str, Any]) -> None:
  """Writes the file; it appears only when complete."""
  text = {name: json.dumps(value) for name, value in metadata.items()}
  tensors = {
    'checks': np.asarray(table.checks),
    'probs': np.asarray(table.probs),
  }
  content = safetensors_numpy.save(tensors, text | {'format': FORMAT})
  with writing.replacing(path) as place, open(place, 'wb') as file:
    file.write(content)


def load(path: str) -> tuple[ngrams.NgramTable, dict[str, Any]]:
  """Table (numpy) and metadata of a file.

  Raises:
    ValueError: no such file, or not one of `save`.
  """
  fix = 'write one with `specstream prepare --ngram_table=FILE`'
  if not os.path.isfile(path):
    raise ValueError(f'n-gram table {path!r} is no file; {fix}')
  tensors, text = tensor_files.read(path, fix)
  written = text.pop('format', None)
  if written != FORMAT or set(tensors) != {'checks', 'probs'}:
    raise ValueError(
      f'n-gram table {path!r} has format {fields.shown(written)} and arrays '
      f'{fields.shown(sorted(tensors))}; accepted: {FORMAT!r} with checks, '
      f'probs; {fix}'
    )
  table = ngrams.NgramTable(**tensors)
  if problem := _problem(table):
    raise ValueError(f'n-gram table {path!r}: {problem}; {fix}')
  return table, _metadata(path, text, fix)


def _problem(table: ngrams.NgramTable) -> str:
  """What is wrong with the arrays of a table; empty if nothing is."""
  for name, dtype in (('checks', np.uint32), ('probs', np.float16)):
    leaf = getattr(table, name)
    rows = leaf.shape[0] if leaf.ndim else 0
    is_power = rows > 0 and rows & (rows - 1) == 0
    if leaf.dtype != dtype or leaf.ndim != 2 or not (leaf.size and is_power):
      return (
        f'{name} is {leaf.dtype} {leaf.shape}; accepted: {np.dtype(dtype)} '
        '[H, E], H a power of two'
      )
  if table.checks.shape != table.probs.shape:
    return f'checks is {table.checks.shape}, probs {table.probs.shape}'
  if not np.all((table.probs >= 0) & (table.probs <= 1)):
    return 'probs has a number that is no probability'
  return ''


def _metadata(path: str, text: dict[str, str], fix: str) -> dict[str, Any]:
  try:
    return {name: files.loads(value) for name, value in text.items()}
  except ValueError as error:
    raise ValueError(
      f'n-gram table {path!r}: its metadata is not JSON ({error}); {fix}'
    ) from error


def check_tokenizer(
  path: str, metadata: dict[str, Any], tokenizer_sha256: str
) -> None:
  """Raises ValueError if the table counts tokens of another tokenizer."""
  written = metadata.get('tokenizer_sha256')
  if written != tokenizer_sha256:
    raise ValueError(
      f'n-gram table {path!r} was made with tokenizer {str(written)[:12]}… but '
      f'the model has {tokenizer_sha256[:12]}…; make one from records of the '
      "model's tokenizer"
    )
