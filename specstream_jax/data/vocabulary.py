# SPDX-License-Identifier: Apache-2.0
"""A tokenizer with the ids that start and end a sequence."""

import dataclasses
import json
import os

import numpy as np
import tokenizers

from specstream_jax.checkpoints import chat_format, gguf
from specstream_jax.data import records


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
    return records.tokenizer_hash(self.tokenizer)

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone."""
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode_inputs(self, text: str) -> np.ndarray:
    """Prompt ids int32 [I], with BOS if there is one; a chat has its own."""
    is_chat = isinstance(text, chat_format.Text)
    bos = [] if self.bos_id is None or is_chat else [self.bos_id]
    return np.asarray(bos + self.encode(text), np.int32)

  def encode_targets(self, text: str) -> np.ndarray:
    """Answer ids int32 [A], with EOS."""
    return np.asarray([*self.encode(text), self.eos_id], np.int32)

  def decode(self, ids) -> str:
    """The text up to the first EOS, special tokens left out."""
    ids = [int(i) for i in ids]
    if self.eos_id in ids:
      ids = ids[: ids.index(self.eos_id)]
    return self.tokenizer.decode(ids, skip_special_tokens=True)


def _configured_eos(folder: str) -> str | None:
  """The `eos_token` of tokenizer_config.json, if there is one."""
  path = os.path.join(folder, 'tokenizer_config.json')
  if not os.path.isfile(path):
    return None
  with open(path, encoding='utf-8') as file:
    token = json.load(file).get('eos_token')
  return token.get('content') if isinstance(token, dict) else token


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
  file = os.path.join(path, 'tokenizer.json') if os.path.isdir(path) else path
  if not os.path.isfile(file) or not file.endswith('.json'):
    raise ValueError(
      f'tokenizer {path!r} is neither a tokenizer.json, nor a folder with one, '
      'nor a GGUF file'
    )
  tokenizer = tokenizers.Tokenizer.from_file(file)
  eos_token = _configured_eos(os.path.dirname(file))
  return tokenizer, tokenizer.token_to_id(eos_token) if eos_token else None


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
