# SPDX-License-Identifier: Apache-2.0
"""Chat templates as checkpoints hold them, and the texts they make."""

from collections.abc import Mapping
import os
from typing import Any

from specstream_jax.checkpoints import fields as fields_lib, files

_JINJA = 'chat_template.jinja'
_CONFIG = 'tokenizer_config.json'
_TOKENS = 'special_tokens_map.json'
FILES = (_JINJA, _CONFIG, _TOKENS)
# The names of special tokens that templates may use.
TOKEN_NAMES = tuple(
  f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
)


class Text(str):
  """A chat as its template wrote it, which is encoded as it is: no BOS before."""

  __slots__ = ()


class Template(str):
  """Jinja source of a chat format.

  Attributes:
    tokens: texts of the special tokens, by the names of `TOKEN_NAMES`.
    tool_source: Jinja source of the same for chats with tools, '' if it is
      the same.
    origin: the file it comes from, '' if from none.
  """

  tokens: Mapping[str, str]
  tool_source: str
  origin: str

  def __new__(
    cls,
    source: str,
    tokens: Mapping[str, str] | None = None,
    *,
    tool_source: str = '',
    origin: str = '',
  ):
    self = super().__new__(cls, source)
    self.tokens = dict(tokens or {})
    self.tool_source = tool_source
    self.origin = origin
    return self


def of(source: str) -> Template:
  """The template itself, or one without special tokens from a plain text."""
  return source if isinstance(source, Template) else Template(source)


def read(folder: str | os.PathLike) -> Template | None:
  """The chat format of a Hugging Face folder; None if it has none.

  Raises:
    ValueError: a file that cannot be read, or a template that is no text.
  """
  folder = os.fspath(folder)
  config = os.path.join(folder, _CONFIG)
  fields = files.read_json(config) if os.path.isfile(config) else {}
  origin = os.path.join(folder, _JINJA)
  if os.path.isfile(origin):
    named = {'default': files.read_text(origin)}
  else:
    origin, named = config, _named(config, fields.get('chat_template'))
  if not named:
    return None
  return Template(
    named.get('default', ''),
    _tokens(folder, fields),
    tool_source=named.get('tool_use', ''),
    origin=origin,
  )


def from_gguf(
  metadata: Mapping[str, Any], path: str | os.PathLike
) -> Template | None:
  """The chat format in the metadata of a GGUF file; None if it has none."""
  key = 'tokenizer.chat_template'
  place = f'GGUF file {os.fspath(path)!r}'
  source = fields_lib.get(metadata, key, fields_lib.TEXT, place, default=None)
  if not source:
    return None
  get = lambda key, kind, default: fields_lib.get(
    metadata, f'tokenizer.ggml.{key}', kind, place, default
  )
  texts, tokens = get('tokens', fields_lib.TEXTS, []), {}
  for name in TOKEN_NAMES:
    # The format's own spelling.
    word = {'unk': 'unknown', 'sep': 'seperator', 'pad': 'padding'}
    kind = name.removesuffix('_token')
    key = f'{word.get(kind, kind)}_token_id'
    index = get(key, fields_lib.COUNT, None)
    if index is not None and index < len(texts):
      tokens[name] = texts[index]
  return Template(source, tokens, origin=os.fspath(path))


def fields(template: str) -> dict[str, Any]:
  """What tokenizer_config.json says of a chat format."""
  template = of(template)
  named = {'default': str(template), 'tool_use': template.tool_source}
  several = [{'name': n, 'template': s} for n, s in named.items() if s]
  whole = several if template.tool_source else str(template)
  return {**template.tokens, 'chat_template': whole}


def _named(path: str, value: Any) -> dict[str, str]:
  """Sources by name, from any of the forms that they are saved in."""
  if isinstance(value, str):
    value = {'default': value}
  elif isinstance(value, list) and all(isinstance(v, dict) for v in value):
    value = {entry.get('name'): entry.get('template') for entry in value}
  value = value or {}
  is_text = isinstance(value, dict) and all(
    isinstance(part, str) for part in (*value, *value.values())
  )
  if not is_text or (value and not {'default', 'tool_use'} & set(value)):
    raise ValueError(
      f'{path!r}: chat_template is {str(value)[:80]!r}; accepted: a text, or '
      'texts by name with one called "default"; correct it, or download the '
      'file again'
    )
  return value


def _tokens(folder: str, fields: Mapping[str, Any]) -> dict[str, str]:
  """Special tokens by name; tokenizer_config.json has the last word."""
  path = os.path.join(folder, _TOKENS)
  values = files.read_json(path) if os.path.isfile(path) else {}
  values = {**values, **fields}
  tokens = {}
  for name in TOKEN_NAMES:
    value = values.get(name)
    value = value.get('content') if isinstance(value, dict) else value
    if isinstance(value, str):
      tokens[name] = value
  return tokens
