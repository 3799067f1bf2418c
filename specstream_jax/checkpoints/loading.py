# SPDX-License-Identifier: Apache-2.0
"""One way to load a base model: by name, folder, hub id or GGUF file."""

from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

import numpy as np
import tokenizers

from specstream_jax import config, memory
from specstream_jax.checkpoints import (
  chat_format,
  eos,
  fetch,
  generation_config,
  gguf,
  huggingface,
  shards,
  tokenizer_files,
  weights,
)

_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w.-]+')


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A base model in host memory.

  Attributes:
    config: sizes.
    params: weights by flat path, in the config's dtype; kernels are [in, out].
    tokenizer: `tokenizers.Tokenizer`, or `MissingTokenizer`.
    chat_template: how it writes a chat, or None.
    eos_ids: token ids that end a text: all that the checkpoint names.
    bos_id: token id that the tokenizer puts in front of a text, or None.
    source: the model's name: known name, hub id, or name of folder or file.
    config_hash: `weights.config_hash` of the config.
    eos_said: `eos_ids` by the file that names them.
    generation: fields of its generation_config.json.
  """

  config: config.ModelConfig
  params: Mapping[str, np.ndarray]
  tokenizer: Any
  chat_template: chat_format.Template | None
  eos_ids: tuple[int, ...]
  bos_id: int | None
  source: str
  config_hash: str
  eos_said: eos.Said = dataclasses.field(default_factory=dict)
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def fingerprint(self) -> str:
    """`weights.fingerprint` of the weights."""
    if isinstance(self.params, weights.LazyParams):
      return self.params.fingerprint
    return weights.fingerprint(self.params)


class MissingTokenizer:
  """Stands in for a tokenizer that could not be read; any use says why."""

  def __init__(self, reason: str):
    self.reason = reason

  def __getattr__(self, name: str):
    if name.startswith('_'):
      raise AttributeError(name)
    raise ValueError(self.reason)


def load_model(
  name: str | os.PathLike, *, dtype: str = 'float32', lazy: bool = False
) -> LoadedModel:
  """Reads configuration, weights and tokenizer.

  Args:
    name: a known name, a Hugging Face folder or hub id, or a GGUF file.
    dtype: of the weights in memory.
    lazy: read each weight anew whenever it is asked for, and keep none.

  Raises:
    ValueError: there is no such model, or it cannot be read exactly.
  """
  path = resolve(name)
  if path.is_file():
    loaded = _load_gguf(path, dtype)
  else:
    loaded = _load_huggingface(path, dtype)
  if not lazy:
    _check_memory(loaded.config)
    loaded = dataclasses.replace(loaded, params=dict(loaded.params))
  return dataclasses.replace(loaded, source=_source(name, loaded))


def _check_memory(cfg: config.ModelConfig) -> None:
  """Raises OutOfMemoryError if the weights do not fit."""
  count = weights.count(cfg)
  memory.check(
    f'{count:,} weights in {cfg.dtype}',
    count * np.dtype(cfg.dtype).itemsize,
    'bfloat16 needs half as much as float32',
  )


def load_config(
  name: str | os.PathLike, *, dtype: str = 'float32'
) -> config.ModelConfig:
  """The configuration alone; of a hub id only config.json is downloaded."""
  path = resolve(name, patterns=('config.json',))
  if path.is_file():
    return gguf.open_file(path, dtype=dtype).config
  return huggingface.read_config(path, dtype=dtype)


def load_outline(
  name: str | os.PathLike, *, dtype: str = 'float32'
) -> LoadedModel:
  """What `load_model` gives but for weights, which are not there.

  Raises:
    ValueError: as `load_model`.
  """
  path = resolve(name, patterns=huggingface.SMALL_FILES)
  if path.is_file():
    return dataclasses.replace(_load_gguf(path, dtype), params={})
  return _load_huggingface(path, dtype, has_weights=False)


def resolve(
  name: str | os.PathLike, patterns: tuple[str, ...] = huggingface.PATTERNS
) -> pathlib.Path:
  """The GGUF file or checkpoint folder that `name` stands for.

  Args:
    name: as for `load_model`.
    patterns: files to download if it is a hub id.

  Raises:
    ValueError: it is none of these; says what is accepted.
  """
  text = os.fspath(name)
  path = pathlib.Path(os.path.expanduser(text))
  if path.is_dir():
    return _resolve_folder(path)
  if path.is_file() and gguf.is_gguf(path):
    return path
  if text in fetch.KNOWN:
    return fetch.fetch(text)
  if _HUB_ID.fullmatch(text) and not path.exists() and path.suffix != '.gguf':
    return _resolve_hub(text, patterns)
  if path.is_file() and path.suffix in shards.PICKLES:
    raise ValueError(shards.pickled(path))
  what = 'not a GGUF file' if path.is_file() else 'not found'
  raise ValueError(
    f'model {text!r} is {what}; accepted: a known name '
    f'({", ".join(fetch.KNOWN)}), a folder with config.json and '
    f'{huggingface.WEIGHTS}, a hub id OWNER/NAME, or a GGUF file'
  )


def _resolve_folder(path: pathlib.Path) -> pathlib.Path:
  if (path / 'config.json').is_file():
    return path
  found = sorted(path.glob('*.gguf'))
  if len(found) == 1:
    return found[0]
  raise ValueError(
    f'model folder {str(path)!r} has no config.json and {len(found)} GGUF '
    f'files; accepted: a folder with config.json and {huggingface.WEIGHTS}, or '
    'with exactly one GGUF file'
  )


def _resolve_hub(name: str, patterns: tuple[str, ...]) -> pathlib.Path:
  try:
    return fetch.download_hub(name, patterns)
  except fetch.FetchError as error:
    raise ValueError(
      f'model {name!r} is no folder here, and as a hub id: {error}'
    ) from error


def _load_gguf(path: pathlib.Path, dtype: str) -> LoadedModel:
  header = gguf.open_file(path, dtype=dtype)
  tokenizer = _tokenizer_or_reason(gguf.read_tokenizer, header)
  return LoadedModel(
    config=header.config,
    params=gguf.open_params(header),
    tokenizer=tokenizer,
    chat_template=chat_format.from_gguf(header.metadata, path),
    eos_ids=gguf.eos_ids(header),
    eos_said={path.name: gguf.eos_ids(header)},
    bos_id=_bos_id(tokenizer),
    source=path.name,
    config_hash=weights.config_hash(header.config),
  )


def _load_huggingface(
  path: pathlib.Path, dtype: str, *, has_weights: bool = True
) -> LoadedModel:
  cfg = huggingface.read_config(path, dtype=dtype)
  tokenizer = _tokenizer_or_reason(tokenizer_files.read, path)
  said = eos.read(path, known_tokenizer(tokenizer), cfg.vocab_size)
  return LoadedModel(
    config=cfg,
    params=huggingface.open_params(path, cfg) if has_weights else {},
    tokenizer=tokenizer,
    chat_template=chat_format.read(path),
    eos_ids=eos.union(*said.values()),
    eos_said=said,
    bos_id=_bos_id(tokenizer),
    source=path.resolve().name,
    config_hash=weights.config_hash(cfg),
    generation=generation_config.read(path),
  )


def _tokenizer_or_reason(read, argument) -> Any:
  """Weights are of use without a tokenizer: its absence waits for its use."""
  try:
    return read(argument)
  except ValueError as error:
    return MissingTokenizer(str(error))


def known_tokenizer(tokenizer: Any) -> Any:
  """The tokenizer, or None where one is missing."""
  return None if isinstance(tokenizer, MissingTokenizer) else tokenizer


def _bos_id(tokenizer: Any) -> int | None:
  """The id that the tokenizer puts in front of every text, if any."""
  if not isinstance(tokenizer, tokenizers.Tokenizer):
    return None
  plain = tokenizer.encode('a', add_special_tokens=False).ids
  asked = tokenizer.encode('a', add_special_tokens=True).ids
  return asked[0] if asked and asked[:1] != plain[:1] else None


def _source(name: str | os.PathLike, loaded: LoadedModel) -> str:
  """A name without local folders: of known weights, the known name."""
  for known_name, known in fetch.KNOWN.items():
    if loaded.fingerprint == known.fingerprint:
      return known_name
  text = os.fspath(name)
  is_local = os.path.exists(os.path.expanduser(text))
  return loaded.source if is_local or text in fetch.KNOWN else text
