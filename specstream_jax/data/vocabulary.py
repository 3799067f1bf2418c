# SPDX-License-Identifier: Apache-2.0
"""A tokenizer with the ids that start and end a sequence."""

from collections.abc import Iterable
import dataclasses
import functools
import os
from typing import NamedTuple

import numpy as np
import tokenizers

from specstream_jax.checkpoints import (
  chat_format,
  eos,
  gguf,
  token_ids,
  tokenizer_errors,
  tokenizer_files,
)
from specstream_jax.text import joined as joined_lib, pieces


class Pair(NamedTuple):
  """A training example.

  Attributes:
    inputs: prompt ids int32 [I].
    targets: answer ids int32 [A].
    is_inside: a token of the joined text covers the end of the prompt.
  """

  inputs: np.ndarray
  targets: np.ndarray
  is_inside: bool


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Turns prompts and answers into ids; never splits them differently twice.

  Attributes:
    tokenizer: Hugging Face `tokenizers.Tokenizer`.
    eos_id: ends every answer.
    bos_id: starts every prompt, or None if the model takes none.
  """

  tokenizer: tokenizers.Tokenizer
  eos_id: int
  bos_id: int | None = None

  @property
  def size(self) -> int:
    return self.tokenizer.get_vocab_size()

  @property
  def sha256(self) -> str:
    return token_ids.tokenizer_hash(self.tokenizer)

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone."""
    encode = self.tokenizer.encode
    with tokenizer_errors.naming(*tokenizer_errors.AT_USE):
      return encode(text, add_special_tokens=False).ids

  def encode_inputs(self, text: str) -> np.ndarray:
    """Prompt ids int32 [I], with BOS if there is one; a chat has its own."""
    return np.asarray(self._bos(text) + self.encode(text), np.int32)

  def _bos(self, text: str) -> list[int]:
    is_chat = isinstance(text, chat_format.Text)
    return [] if self.bos_id is None or is_chat else [self.bos_id]

  def encode_targets(self, text: str) -> np.ndarray:
    """Ids int32 [A] of an answer by itself, with EOS; see `encode_pair`."""
    return np.asarray([*self.encode(text), self.eos_id], np.int32)

  def encode_pair(
    self, prompt: str, answer: str, *, is_cut: bool = False
  ) -> Pair:
    """Ids of a prompt and of the answer that follows it, see `text.joined`.

    Args:
      prompt: starts with BOS if there is one; a chat has its own.
      answer: ends with EOS.
      is_cut: the answer stopped before its end, so EOS does not follow.
    """
    joined = joined_lib.encode(self._pieces, prompt, answer)
    eos = [] if is_cut else [self.eos_id]
    return Pair(
      np.asarray(self._bos(prompt) + joined.prompt, np.int32),
      np.asarray(joined.answer + eos, np.int32),
      joined.is_inside,
    )

  @functools.cached_property
  def _pieces(self) -> pieces.Pieces:
    return pieces.Pieces(self.tokenizer)

  def decode(self, ids: Iterable[int]) -> str:
    """The text up to the first EOS, special tokens left out."""
    ids = [int(i) for i in ids]
    if self.eos_id in ids:
      ids = ids[: ids.index(self.eos_id)]
    return self.tokenizer.decode(ids, skip_special_tokens=True)


def _asked_bos(tokenizer: tokenizers.Tokenizer) -> int | None:
  """The id the tokenizer's own post-processing puts in front, if any."""
  plain = tokenizer.encode('a', add_special_tokens=False).ids
  asked = tokenizer.encode('a', add_special_tokens=True).ids
  return asked[0] if asked and asked[:1] != plain[:1] else None


def _read(path: str) -> tuple[tokenizers.Tokenizer, int | None]:
  """Tokenizer and, where the file or its folder says so, EOS id."""
  if os.path.isfile(path) and gguf.is_gguf(path):
    header = gguf.open_file(path)
    return gguf.read_tokenizer(header), next(iter(gguf.eos_ids(header)), None)
  if os.path.isdir(path):
    folder, tokenizer = path, tokenizer_files.read(path)
  elif os.path.isfile(path) and path.endswith('.json'):
    folder, tokenizer = os.path.dirname(path), tokenizer_files.open_json(path)
  else:
    raise ValueError(
      f'tokenizer {path!r} is neither a tokenizer.json, nor a folder with a '
      'tokenizer, nor a GGUF file'
    )
  eos_token = eos.configured_token(folder)
  return tokenizer, tokenizer.token_to_id(eos_token) if eos_token else None


def eos_said(path: str, tokenizer: tokenizers.Tokenizer) -> eos.Said:
  """EOS ids by the file that names them, beside a tokenizer of `load`.

  Raises:
    ValueError: a file names something else than ids.
  """
  if os.path.isfile(path) and gguf.is_gguf(path):
    return {os.path.basename(path): gguf.eos_ids(gguf.open_file(path))}
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  return eos.read(folder, tokenizer)


def load(path: str, *, eos_token: str = '') -> Vocabulary:
  """Reads a `tokenizer.json`, the one in a model folder, or a GGUF file's.

  Args:
    path: the file or the folder.
    eos_token: text of the token that ends an answer; '' takes the one that
      the GGUF file or the folder's tokenizer_config.json names.

  Raises:
    ValueError: no such file, or no (known) EOS token.
  """
  tokenizer, eos_id = _read(path)
  if eos_token:
    eos_id = tokenizer.token_to_id(eos_token)
  if eos_id is None:
    raise ValueError(
      f'tokenizer {path!r} has no EOS token {eos_token!r}; pass eos_token, '
      'the text of the token that ends an answer'
    )
  return Vocabulary(tokenizer, eos_id, _asked_bos(tokenizer))
