# SPDX-License-Identifier: Apache-2.0
"""Token ids that end a text; up to three files of a checkpoint name some.

`prepare` ends answers with the tokenizer's, `transformers` stops at those of
`generation_config.json`, else of `config.json`. Where they differ a tuned
model would run past its own end, so decoding stops at all of them.
"""

from collections.abc import Iterable, Mapping
import os
from typing import Any

from specstream_jax.checkpoints import fields, files

TOKENIZER_CONFIG = 'tokenizer_config.json'
_CONFIGS = ('generation_config.json', 'config.json')
_KEY = 'eos_token_id'
Said = dict[str, tuple[int, ...]]  # ids by the file that names them


def configured_token(folder: str | os.PathLike) -> str | None:
  """The text of `eos_token` in tokenizer_config.json, if there is one.

  Raises:
    ValueError: it is no text, or the file is no JSON.
  """
  path = os.path.join(folder, TOKENIZER_CONFIG)
  if not os.path.isfile(path):
    return None
  token = files.read_json(path).get('eos_token')
  text = token.get('content') if isinstance(token, dict) else token
  if text is not None and not isinstance(text, str):
    raise ValueError(
      f"{path!r}: eos_token is {fields.shown(token)}; accepted: the token's text"
    )
  return text


def read(
  folder: str | os.PathLike,
  tokenizer: Any = None,
  vocab_size: int | None = None,
) -> Said:
  """The ids that each file of a folder names, the tokenizer's first.

  Args:
    folder: of a Hugging Face checkpoint.
    tokenizer: `tokenizers.Tokenizer`; None leaves out what it names.
    vocab_size: ids from there on are refused; the tokenizer's are left out, as
      no model writes them.

  Raises:
    ValueError: a file names something else than ids.
  """
  said: Said = {}
  own = None
  if tokenizer is not None and (token := configured_token(folder)):
    own = tokenizer.token_to_id(token)
  if own is not None and (vocab_size is None or own < vocab_size):
    said[TOKENIZER_CONFIG] = (own,)
  for name in _CONFIGS:
    path = os.path.join(folder, name)
    value = files.read_json(path).get(_KEY) if os.path.isfile(path) else None
    if value is not None:
      said[name] = check(f'{path!r}: {_KEY}', value, vocab_size)
  return said


def check(name: str, value: Any, vocab_size: int | None) -> tuple[int, ...]:
  """An id or a list of ids as a tuple.

  Raises:
    ValueError: it is neither, or an id is out of range.
  """
  ids = value if isinstance(value, list | tuple) else [value]
  good = all(type(i) is int and i >= 0 for i in ids)
  if not good or any(vocab_size and i >= vocab_size for i in ids):
    most = f' to {vocab_size - 1}' if vocab_size else ''
    raise ValueError(
      f'{name} is {fields.shown(value)}; accepted: a token id from 0{most}, or a list of '
      'them'
    )
  return tuple(ids)


def union(*ids: Iterable[int]) -> tuple[int, ...]:
  """All of them, each once, in this order."""
  return tuple(dict.fromkeys(i for some in ids for i in some))


def words(ids: Iterable[int], tokenizer: Any) -> str:
  """`2 '</s>', 7 '<|im_end|>'`; ids alone where the tokenizer is not there."""
  texts = []
  for i in ids:
    text = tokenizer.id_to_token(i) if tokenizer is not None else None
    texts.append(str(i) if text is None else f'{i} {text!r}')
  return ', '.join(texts) or 'none'


def difference(
  said: Mapping[str, tuple[int, ...]],
  tokenizer: Any,
  written: int | None = None,
) -> str:
  """Who names which ids, in one line; '' where they go together.

  Args:
    said: ids by file.
    tokenizer: for their texts, or None.
    written: the id that ends the answers of records. They go together if every
      file names it; without records, if all files name the same.
  """
  if written is not None:
    differ = any(written not in ids for ids in said.values())
    said = {'the records': (written,), **said}
  else:
    differ = len({frozenset(ids) for ids in said.values()}) > 1
  if not differ:
    return ''
  named = [f'{name} {words(ids, tokenizer)}' for name, ids in said.items()]
  return f'EOS differs: {"; ".join(named)}'
