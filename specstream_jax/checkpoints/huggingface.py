# SPDX-License-Identifier: Apache-2.0
"""Hugging Face checkpoint folders: safetensors in and out."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import re
from typing import Any, NamedTuple

import numpy as np
from safetensors import numpy as safetensors_numpy
import tokenizers

from specstream_jax import arrays, config
from specstream_jax.checkpoints import (
  chat_format,
  families,
  files,
  huggingface_config,
  quantized,
  shards,
  tokenizer_files,
  weights,
)

WEIGHTS, INDEX = shards.WEIGHTS, shards.INDEX
SMALL_FILES = (
  'config.json',
  'generation_config.json',
  *tokenizer_files.FILES,
  *chat_format.FILES,
)
# What a checkpoint needs; keeps other formats of the same weights away.
PATTERNS = (*SMALL_FILES, 'model*.safetensors', INDEX)
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
_FIX = 'use the unmodified checkpoint that belongs to this config.json'


def read_config(
  folder: str | os.PathLike, *, dtype: str = 'float32'
) -> config.ModelConfig:
  """The sizes of the model in a folder.

  Raises:
    ValueError: config.json is missing or asks for what is not understood.
  """
  path = os.path.join(folder, 'config.json')
  raw = files.read_json(path)
  quantized.refuse(raw, folder)
  return huggingface_config.parse(raw, repr(path), dtype=dtype)


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
  family = families.by_name(cfg.family)
  tensors = {
    family.canonical(name): _Tensor(name, opened)
    for name, opened in shards.open_tensors(os.fspath(folder)).items()
  }
  source = f'checkpoint {os.fspath(folder)!r}'
  weights.check_layers(source, cfg, len(tensors), _FIX)
  wanted = family.tensors(cfg)
  _check_tensors(source, cfg, tensors, wanted)
  places = {path: one for one in wanted.values() for path in one.paths}

  def read(path: str) -> np.ndarray:
    """One weight."""
    stored = places[path]
    leaf = stored.split(tensors[stored.name].read())[path]
    return np.ascontiguousarray(leaf, dtype=np.dtype(cfg.dtype))

  return weights.LazyParams(cfg, read, shards.paths(os.fspath(folder)))


class _Tensor(NamedTuple):
  """A tensor of an opened file, by the name that it has there."""

  name: str
  opened: Any

  def read(self) -> np.ndarray:
    return self.opened.get_tensor(self.name)

  def view(self) -> Any:
    """Knows shape and dtype without reading."""
    return self.opened.get_slice(self.name)


def _check_tensors(
  source: str,
  cfg: config.ModelConfig,
  tensors: Mapping[str, _Tensor],
  wanted: Mapping[str, families.Stored],
) -> None:
  family = families.by_name(cfg.family)
  views = {
    name: tensor.view()
    for name, tensor in tensors.items()
    if not family.derived.fullmatch(name)
  }
  found = {name: tuple(view.get_shape()) for name, view in views.items()}
  if cfg.tie_word_embeddings and _is_copy(tensors, *family.tied_names):
    found.pop(family.tied_names[0])
  expected = {name: one.shape for name, one in wanted.items()}
  tied = _tie_problems(*family.tied_names)
  lines = [tied.get(x, x) for x in weights.problems(expected, found)]
  for name, view in views.items():
    if view.get_dtype() not in _FLOATS:
      lines.append(f'{name} is {view.get_dtype()}; accepted: {_FLOATS}')
  weights.refuse(source, lines, _FIX)


def _tie_problems(head: str, embedding: str) -> dict[str, str]:
  """What is said in place of an LM head's being missing or unexpected."""
  return {
    f'unexpected {head}': f'{head} is another than {embedding}, but '
    'tie_word_embeddings is true; if the head is right, set it to false in '
    'config.json',
    f'missing {head}': f'missing {head}, as tie_word_embeddings is false; if '
    f'the head is {embedding}, set it to true in config.json',
  }


def _is_copy(tensors, head: str, embedding: str) -> bool:
  """True if a tied checkpoint stores its LM head a second time."""
  if not (head in tensors and embedding in tensors):
    return False
  return np.array_equal(tensors[head].read(), tensors[embedding].read())


@dataclasses.dataclass(frozen=True)
class Extras:
  """What travels beside the weights.

  Attributes:
    tokenizer: written as tokenizer.json, if any.
    chat_template: chat format, if any.
    eos_ids: token ids that end a text.
    special_ids: other fields of config.json that hold the id of a token.
  """

  tokenizer: tokenizers.Tokenizer | None = None
  chat_template: chat_format.Template | None = None
  eos_ids: tuple[int, ...] = ()
  special_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)


def export(
  folder: str | os.PathLike,
  cfg: config.ModelConfig,
  flat: arrays.FlatParams,
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
  made = writers(
    cfg, flat, extras, dtype=dtype, max_shard_bytes=max_shard_bytes
  )
  files.write_all(os.fspath(folder), made)
  _remove_stale(os.fspath(folder), made)


def writers(
  cfg: config.ModelConfig,
  flat: arrays.FlatParams,
  extras: Extras = Extras(),
  *,
  dtype: str = 'float32',
  max_shard_bytes: int = 5 * 10**9,
) -> dict[str, Callable[[str], None]]:
  """What writes each file of a checkpoint, for `files.write_all`.

  Weights are read when they are written; arguments as of `export`.
  """
  shaped = getattr(flat, 'shapes', flat)
  found = {path: tuple(leaf.shape) for path, leaf in shaped.items()}
  weights.refuse(
    'the checkpoint to write',
    weights.problems(weights.shapes(cfg), found),
    'pass the base weights that belong to this config',
  )
  made, index = {}, {}
  parts = list(_shards(cfg, dtype, max_shard_bytes))
  for i, held in enumerate(parts, start=1):
    name = WEIGHTS
    if len(parts) > 1:
      name = f'model-{i:05d}-of-{len(parts):05d}.safetensors'
    made[name] = _shard_writer(flat, held, dtype)
    index |= dict.fromkeys((stored.name for stored in held), name)
  if len(parts) > 1:
    listing = {'metadata': {}, 'weight_map': index}
    made[INDEX] = lambda path: files.write_json(path, listing)
  return made | _extra_writers(cfg, extras, dtype)


def _shards(
  cfg: config.ModelConfig, dtype: str, max_bytes: int
) -> Iterator[list[families.Stored]]:
  """Tensors of each shard, in order."""
  shard, used = [], 0
  for stored in families.by_name(cfg.family).tensors(cfg).values():
    size = int(np.prod(stored.shape)) * np.dtype(dtype).itemsize
    if shard and used + size > max_bytes:
      yield shard
      shard, used = [], 0
    shard.append(stored)
    used += size
  yield shard


def _shard_writer(flat, held: list[families.Stored], dtype: str):
  def write(file: str) -> None:
    tensors = {
      stored.name: _narrowed(stored.name, stored.join(flat), dtype)
      for stored in held
    }
    safetensors_numpy.save_file(tensors, file, metadata={'format': 'pt'})

  return write


def _narrowed(name: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
  """A tensor in the type that it has on disk.

  Raises:
    ValueError: a number is too large for that.
  """
  with np.errstate(over='ignore'):
    narrow = np.ascontiguousarray(leaf, dtype=np.dtype(dtype))
  if dtype == 'float16' and not np.array_equal(
    np.isfinite(narrow), np.isfinite(leaf)
  ):
    raise ValueError(
      f'{name} has numbers beyond 65,504, the largest of float16; use bfloat16 '
      'or float32'
    )
  return narrow


def _extra_writers(cfg, extras: Extras, dtype: str):
  """Writers of the small files, config.json last."""
  writers: dict[str, Any] = {}
  if extras.tokenizer is not None:
    writers['tokenizer.json'] = extras.tokenizer.save
    writers['tokenizer_config.json'] = lambda path: files.write_json(
      path, _tokenizer_config(extras)
    )
  raw = huggingface_config.dump(cfg, dtype=dtype, eos_ids=extras.eos_ids)
  if not extras.eos_ids:
    raw['eos_token_id'] = None  # left out, transformers would take a default
  raw |= extras.special_ids
  writers['config.json'] = lambda path: files.write_json(path, raw)
  return writers


def _tokenizer_config(extras: Extras) -> Mapping[str, Any]:
  values: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    # Texts as the tokenizer spells them.
    'clean_up_tokenization_spaces': False,
  }
  if extras.eos_ids and extras.tokenizer is not None:
    values['eos_token'] = extras.tokenizer.id_to_token(extras.eos_ids[0])
  if extras.chat_template is not None:
    values |= chat_format.fields(extras.chat_template)
  return values


def _remove_stale(folder: str, written: Mapping[str, Any]) -> None:
  """Deletes weights of an earlier export that would shadow the new ones."""
  for name in os.listdir(folder):
    is_weights = re.fullmatch(r'model(-\d+-of-\d+)?\.safetensors', name)
    if (is_weights or name == INDEX) and name not in written:
      os.remove(os.path.join(folder, name))
