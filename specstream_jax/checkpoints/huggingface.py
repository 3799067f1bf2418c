# SPDX-License-Identifier: Apache-2.0
"""Hugging Face checkpoint folders: Llama-type safetensors in and out."""

from collections.abc import Iterator, Mapping
import dataclasses
import os
import re
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy
import tokenizers

from specstream_jax import config, typing
from specstream_jax.checkpoints import (
  fields,
  files,
  huggingface_config,
  tensor_files,
  tokenizer_errors,
  weights,
)

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SMALL_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
)
# What a checkpoint needs; keeps other formats of the same weights away.
PATTERNS = (*SMALL_FILES, 'model*.safetensors', INDEX)
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
# Tables that old checkpoints store though they follow from the config.
_DERIVED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')
# Beyond any vocabulary; the library counts up to the largest id.
_MAX_TOKENS = 2**24
_FILES = fields.Kind(
  'an object that gives the file of every tensor',
  lambda value: (
    isinstance(value, dict) and fields.TEXTS.fits([*value.values()])
  ),
)
_TEMPLATES = fields.Kind(
  'a text, or a list of {"name": …, "template": …} with texts',
  lambda value: (
    isinstance(value, str)
    or (isinstance(value, list) and all(map(_is_template, value)))
  ),
)
_FIX = 'use the unmodified checkpoint that belongs to this config.json'


def _is_template(entry: Any) -> bool:
  """Whether it is a template with its name."""
  return isinstance(entry, dict) and all(
    isinstance(entry.get(name), str) for name in ('name', 'template')
  )


def read_config(
  folder: str | os.PathLike, *, dtype: str = 'float32'
) -> config.ModelConfig:
  """The sizes of the model in a folder.

  Raises:
    ValueError: config.json is missing or asks for what is not understood.
  """
  path = os.path.join(folder, 'config.json')
  return huggingface_config.parse(
    files.read_json(path), repr(path), dtype=dtype
  )


def open_params(
  folder: str | os.PathLike, cfg: config.ModelConfig
) -> weights.LazyParams:
  """Every weight, read when asked for, in the config's dtype.

  Args:
    folder: with model.safetensors, or its shards and their index.
    cfg: what `read_config` gave.

  Returns:
    Mapping from flat path to array; kernels are [in, out]. It keeps the files
    open.

  Raises:
    ValueError: a file is missing or truncated, or tensors are missing,
      unexpected or of the wrong shape; all are listed.
  """
  tensors = _open_tensors(os.fspath(folder))
  source = f'checkpoint {os.fspath(folder)!r}'
  weights.check_layers(source, cfg, len(tensors), _FIX)
  _check_tensors(folder, cfg, tensors)
  names = weights.huggingface_names(cfg)

  def read(path: str) -> np.ndarray:
    """One weight."""
    leaf = tensors[names[path]].get_tensor(names[path])
    leaf = leaf.T if path.endswith('kernel') else leaf
    return np.ascontiguousarray(leaf, dtype=np.dtype(cfg.dtype))

  return weights.LazyParams(cfg, read)


def _open_tensors(folder: str) -> dict[str, Any]:
  """The opened file of every tensor, by tensor name."""
  if os.path.isfile(os.path.join(folder, WEIGHTS)):
    shards = [WEIGHTS]
  elif os.path.isfile(os.path.join(folder, INDEX)):
    shards = _shards_of(os.path.join(folder, INDEX))
  else:
    raise ValueError(
      f'{folder!r} has neither {WEIGHTS} nor {INDEX}; weights in other formats '
      'must be saved as safetensors first'
    )
  tensors = {}
  for shard in shards:
    opened = tensor_files.open_file(os.path.join(folder, shard))
    tensors |= dict.fromkeys(opened.keys(), opened)
  return tensors


def _shards_of(path: str) -> list[str]:
  """The files that an index names.

  Raises:
    ValueError: it gives no file for each tensor, or one that is not there.
  """
  index = fields.get(files.read_json(path), 'weight_map', _FILES, repr(path))
  shards = sorted(set(index.values()))
  for shard in shards:
    file = os.path.join(os.path.dirname(path), shard)
    if not os.path.isfile(file):
      raise ValueError(
        f'{file!r} is named in {INDEX} but does not exist; download it again'
      )
  return shards


def _check_tensors(folder, cfg, tensors) -> None:
  names, shapes = weights.huggingface_names(cfg), weights.shapes(cfg)
  expected = {names[p]: weights.stored_shape(p, shapes[p]) for p in shapes}
  views = {
    name: opened.get_slice(name)
    for name, opened in tensors.items()
    if not _DERIVED.fullmatch(name)
  }
  found = {name: tuple(view.get_shape()) for name, view in views.items()}
  if cfg.tie_word_embeddings and _is_copy_of_embedding(tensors):
    found.pop('lm_head.weight')
  lines = weights.problems(expected, found)
  for name, view in views.items():
    if view.get_dtype() not in _FLOATS:
      lines.append(f'{name} is {view.get_dtype()}; accepted: {_FLOATS}')
  weights.refuse(f'checkpoint {os.fspath(folder)!r}', lines, _FIX)


def _is_copy_of_embedding(tensors) -> bool:
  """True if a tied checkpoint stores its LM head a second time."""
  pair = ('lm_head.weight', 'model.embed_tokens.weight')
  if not all(name in tensors for name in pair):
    return False
  return np.array_equal(*(tensors[name].get_tensor(name) for name in pair))


def read_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer:
  """The tokenizer of a folder, see `open_tokenizer`.

  Raises:
    ValueError: there is no tokenizer.json, or it cannot be read.
  """
  path = os.path.join(folder, 'tokenizer.json')
  if not os.path.isfile(path):
    raise ValueError(
      f'{os.fspath(folder)!r} has no tokenizer.json; save the fast tokenizer '
      'of the model there'
    )
  return open_tokenizer(path)


def open_tokenizer(path: str) -> tokenizers.Tokenizer:
  """The tokenizer of a tokenizer.json, which encodes texts whole.

  Some files were saved with settings of a training run, which cut texts or
  fill them up; they are switched off.

  Raises:
    ValueError: the file cannot be read, or its tokenizer not used.
  """
  fix = 'download it again'
  errors = tokenizer_errors.naming(f'{path!r} cannot be read', fix)
  with errors, tokenizer_errors.quiet():
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for has_special in (False, True):
      tokenizer.encode('a', add_special_tokens=has_special)
    most = max(tokenizer.get_vocab().values(), default=-1)
  if most >= _MAX_TOKENS:
    raise ValueError(
      f'{path!r} has the token id {most:,}; accepted: below {_MAX_TOKENS:,}; '
      f'{fix}'
    )
  return tokenizer


def read_chat_template(folder: str | os.PathLike) -> str | None:
  """Jinja source of the chat format, if the folder has one.

  Raises:
    ValueError: a file cannot be read, or holds no such text.
  """
  path = os.path.join(folder, 'chat_template.jinja')
  if os.path.isfile(path):
    return files.read_text(path)
  path = os.path.join(folder, 'tokenizer_config.json')
  if not os.path.isfile(path):
    return None
  raw = files.read_json(path)
  template = fields.get(raw, 'chat_template', _TEMPLATES, repr(path), None)
  if isinstance(template, list):  # Several, by name.
    named = {entry['name']: entry['template'] for entry in template}
    template = named.get('default')
  return template


@dataclasses.dataclass(frozen=True)
class Extras:
  """What travels beside the weights.

  Attributes:
    tokenizer: written as tokenizer.json, if any.
    chat_template: Jinja source, if any.
    eos_ids: token ids that end a text.
  """

  tokenizer: tokenizers.Tokenizer | None = None
  chat_template: str | None = None
  eos_ids: tuple[int, ...] = ()


def export(
  folder: str | os.PathLike,
  cfg: config.ModelConfig,
  flat: typing.FlatParams,
  extras: Extras = Extras(),
  *,
  dtype: str = 'float32',
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a plain Hugging Face checkpoint, one shard in memory at a time.

  Args:
    folder: made if it is not there.
    cfg: sizes.
    flat: base weights by path, LoRA folded in if wanted.
    extras: tokenizer, chat template and EOS ids.
    dtype: on disk; `float32` reads back exactly.
    max_shard_bytes: a shard holds at most so much, one tensor at least.

  Raises:
    ValueError: `flat` is not the weights of `cfg`, or the disk is full.
  """
  found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
  weights.refuse(
    f'export to {os.fspath(folder)!r}',
    weights.problems(weights.shapes(cfg), found),
    'pass the base weights that belong to this config',
  )
  writers, index = {}, {}
  shards = list(_shards(cfg, dtype, max_shard_bytes))
  for i, paths in enumerate(shards, start=1):
    name = WEIGHTS
    if len(shards) > 1:
      name = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
    writers[name] = _shard_writer(cfg, flat, paths, dtype)
    index |= {weights.huggingface_names(cfg)[path]: name for path in paths}
  if len(shards) > 1:
    listing = {'metadata': {}, 'weight_map': index}
    writers[INDEX] = lambda path: files.write_json(path, listing)
  files.write_all(
    os.fspath(folder), writers | _extra_writers(cfg, extras, dtype)
  )
  _remove_stale(os.fspath(folder), writers)


def _shards(
  cfg: config.ModelConfig, dtype: str, max_bytes: int
) -> Iterator[list[str]]:
  """Paths of each shard, in order."""
  shard, used = [], 0
  for path, shape in weights.shapes(cfg).items():
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if shard and used + size > max_bytes:
      yield shard
      shard, used = [], 0
    shard.append(path)
    used += size
  yield shard


def _shard_writer(cfg, flat, paths, dtype):
  names = weights.huggingface_names(cfg)

  def write(file: str) -> None:
    tensors = {}
    for path in paths:
      leaf = np.asarray(flat[path])
      leaf = leaf.T if path.endswith('kernel') else leaf
      tensors[names[path]] = np.ascontiguousarray(leaf, dtype=np.dtype(dtype))
    safetensors_numpy.save_file(tensors, file, metadata={'format': 'pt'})

  return write


def _extra_writers(cfg, extras: Extras, dtype: str):
  """Writers of the small files, config.json last."""
  writers: dict[str, Any] = {}
  if extras.tokenizer is not None:
    writers['tokenizer.json'] = extras.tokenizer.save
    writers['tokenizer_config.json'] = lambda path: files.write_json(
      path, _tokenizer_config(extras)
    )
  raw = huggingface_config.dump(cfg, dtype=dtype, eos_ids=extras.eos_ids)
  writers['config.json'] = lambda path: files.write_json(path, raw)
  return writers


def _tokenizer_config(extras: Extras) -> Mapping[str, Any]:
  values = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  if extras.eos_ids:
    values['eos_token'] = extras.tokenizer.id_to_token(extras.eos_ids[0])
  if extras.chat_template is not None:
    values['chat_template'] = extras.chat_template
  return values


def _remove_stale(folder: str, written: Mapping[str, Any]) -> None:
  """Deletes weights of an earlier export that would shadow the new ones."""
  for name in os.listdir(folder):
    is_weights = re.fullmatch(r'model(-\d+-of-\d+)?\.safetensors', name)
    if (is_weights or name == INDEX) and name not in written:
      os.remove(os.path.join(folder, name))
