# SPDX-License-Identifier: Apache-2.0
"""Keys and values of how prompts begin, so that none is read twice.

What is kept are the chunks of a prompt that lie whole before its last token,
each by a hash of all tokens up to its end and of whose keys and values they
are. They are found as the program that reads chunks wrote them, bit for bit, so
that a prompt that finds its beginning goes on as if it had read it.
"""

import collections
from collections.abc import Sequence
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from specstream_jax.decoding import interface


class Counts(NamedTuple):
  """How much reading was saved.

  Attributes:
    prompts: that were looked up.
    hits: of them, those whose beginning was there.
    tokens: of the prompts that were looked up.
    tokens_saved: of them, those that were not read again.
    num_bytes: that is kept now.
  """

  prompts: int
  hits: int
  tokens: int
  tokens_saved: int
  num_bytes: int


def chunk_bytes(model: interface.ModelFns, chunk: int) -> int:
  """That the keys and values of so many tokens take."""
  cache = jax.eval_shape(lambda: model.init_cache(1, chunk))
  layers = jax.tree.leaves((cache.keys, cache.values))
  return sum(x.size * x.dtype.itemsize for x in layers)


class Prefixes:
  """Chunks by their hash; what was not used for longest goes first."""

  def __init__(self, num_bytes: int, chunk: int, chunk_bytes: int):
    """Keeps nothing yet.

    Args:
      num_bytes: most that it may take.
      chunk: tokens of a chunk.
      chunk_bytes: that its keys and values take.
    """
    self._most, self._chunk = num_bytes // chunk_bytes, chunk
    self._chunk_bytes = chunk_bytes
    self._kept: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
    self._prompts = self._hits = self._tokens = self._saved = 0

  @property
  def most_bytes(self) -> int:
    """That it will come to take."""
    return self._most * self._chunk_bytes

  @property
  def counts(self) -> Counts:
    """What it has done; from any thread."""
    num_bytes = len(self._kept) * self._chunk_bytes
    return Counts(
      self._prompts, self._hits, self._tokens, self._saved, num_bytes
    )

  def keys(self, owner: int, prompt: np.ndarray) -> list[bytes]:
    """A key for each chunk of a prompt that others may share; [] if it is off.

    The last token is always read, as the first new one is drawn from it.

    Args:
      owner: a number for each that has keys and values of its own.
      prompt: [T] int32.
    """
    if not self._most:
      return []
    count = (len(prompt) - 1) // self._chunk
    keys, digest = [], owner.to_bytes(8, 'little')
    for part in np.split(prompt[: count * self._chunk], count or 1)[:count]:
      digest = hashlib.sha256(digest + part.tobytes()).digest()
      keys.append(digest)
    return keys

  def find(self, keys: Sequence[bytes], num_tokens: int) -> list[Any]:
    """The chunks that are there, from the first on.

    Args:
      keys: of a prompt.
      num_tokens: of it.
    """
    found = []
    for key in keys:
      if key not in self._kept:
        break
      found.append(self._kept[key])
    # The first is used last, so that a chunk outlives those that follow it.
    for key in reversed(keys[: len(found)]):
      self._kept.move_to_end(key)
    self._prompts += 1
    self._hits += bool(found)
    self._tokens += num_tokens
    self._saved += len(found) * self._chunk
    return found

  def make_room(self) -> None:
    """For one more chunk."""
    while len(self._kept) >= self._most:
      self._kept.popitem(last=False)

  def add(self, key: bytes, chunk: Any) -> None:
    """Keeps a chunk, for which there is room."""
    self._kept[key] = chunk
