# SPDX-License-Identifier: Apache-2.0
"""Reads GGUF files, quantised ones too.

Axis letters: N heads, K KV heads, H head dim, D model.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

import gguf
import numpy as np
import tokenizers

from specstream_jax import config
from specstream_jax.checkpoints import (
  eos,
  fields,
  gguf_architectures,
  gguf_file,
  gguf_tokenizer,
  weights,
)
from specstream_jax.config import checks

_REQUIRED = (
  'block_count',
  'context_length',
  'embedding_length',
  'feed_forward_length',
  'attention.head_count',
)
_UNDERSTOOD = {
  'block_count': fields.SIZE,
  'context_length': fields.SIZE,
  'embedding_length': fields.SIZE,
  'feed_forward_length': fields.SIZE,
  'attention.head_count': fields.SIZE,
  'attention.head_count_kv': fields.SIZE,
  'attention.key_length': fields.SIZE,
  'attention.value_length': fields.SIZE,
  'rope.dimension_count': fields.SIZE,
  'rope.freq_base': fields.POSITIVE,
  'rope.scaling.type': fields.TEXT,
  'rope.scaling.factor': fields.POSITIVE,
  'vocab_size': fields.SIZE,
}
# Keys that change nothing while they have this value.
_NEUTRAL = {
  'expert_count': 0,
  'expert_used_count': 0,
  'attention.causal': True,
  'attention.sliding_window': 0,
}
# Keys that say where the numbers came from.
_IGNORED = ('rope.scaling.finetuned', 'rope.scaling.original_context_length')
_OTHER_PREFIXES = ('general.', 'tokenizer.', 'quantize.')
_EOS = ('tokenizer.ggml.eos_token_id', 'tokenizer.ggml.eot_token_id')
_ARCHITECTURE = 'general.architecture'
_FREQUENCIES = 'rope_freqs.weight'
_FACTORS = tuple(
  f'{name}.weight'
  for name in (
    gguf_architectures.SHORT_FACTORS,
    gguf_architectures.LONG_FACTORS,
  )
)
# `rope_freqs.weight` of Llama 3.x comes without the numbers that made it.
_LLAMA3 = tuple(
  config.RopeScaling('llama3', factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0)
)
_ORIGINAL = 'rope.scaling.original_context_length'
_FACTOR_KEY = 'rope.scaling.attn_factor'
_FIX = 'use the Hugging Face checkpoint of the same model, or one without these'


@dataclasses.dataclass(frozen=True)
class Header:
  """An opened GGUF file, weights not read yet.

  Attributes:
    path: the file.
    metadata: values by key.
    tensors: by name, backed by the mapped file.
    config: sizes.
  """

  path: str
  metadata: dict[str, Any]
  tensors: dict[str, gguf_file.Tensor]
  config: config.ModelConfig

  @property
  def architecture(self) -> gguf_architectures.Architecture:
    """What its metadata and tensors mean."""
    return _architecture(self.metadata)


def is_gguf(path: str | os.PathLike) -> bool:
  """True if the file starts with GGUF's magic, or is named like one."""
  if str(path).endswith('.gguf'):
    return True
  with open(path, 'rb') as file:
    return file.read(4) == b'GGUF'


def open_file(path: str | os.PathLike, *, dtype: str = 'float32') -> Header:
  """Reads metadata and the list of tensors, and checks both.

  Args:
    path: the file.
    dtype: of the model that will be built.

  Raises:
    ValueError: the file is truncated, or something in it is not understood;
      all such things are listed.
  """
  path = os.fspath(path)
  metadata, tensors = _open(path)
  weights.refuse(f'GGUF file {path!r}', _metadata_problems(metadata), _FIX)
  try:
    cfg = _config(metadata, tensors, dtype)
  except ValueError as error:  # sizes that do not go together
    problem = checks.message(error)
    raise ValueError(f'GGUF file {path!r}: {problem}') from error
  weights.check_layers(f'GGUF file {path!r}', cfg, len(tensors), _FIX)
  tables = (_FREQUENCIES, *(_FACTORS if _has_factors(metadata) else ()))
  found = {
    name: tensor.shape for name, tensor in tensors.items() if name not in tables
  }
  stored = _architecture(metadata).tensors(cfg, tensors)
  expected = {name: one.shape for name, one in stored.items()}
  weights.refuse(f'GGUF file {path!r}', weights.problems(expected, found), _FIX)
  return Header(path, metadata, tensors, cfg)


def _open(path: str) -> tuple[dict[str, Any], dict[str, gguf_file.Tensor]]:
  try:
    return gguf_file.read(path)
  except FileNotFoundError:
    raise ValueError(f'GGUF file {path!r} does not exist') from None
  except ValueError as error:
    raise ValueError(
      f'GGUF file {path!r} ({os.path.getsize(path):,} bytes) is truncated or '
      f'corrupt ({error}); delete it and download it again'
    ) from error


def _metadata_problems(metadata: Mapping[str, Any]) -> list[str]:
  """Everything about the metadata that could change the model's output."""
  shown, found = fields.shown, metadata.get(_ARCHITECTURE)
  known = gguf_architectures.ARCHITECTURES
  if not isinstance(found, str) or found not in known:
    accepted = ', '.join(map(repr, known))
    return [f'{_ARCHITECTURE} is {shown(found)}; accepted: {accepted}']
  made = known[found]
  keys = [_key(metadata, name) for name in (*_REQUIRED, made.epsilon)]
  lines = [f'missing {key}' for key in keys if key not in metadata]
  for key, value in metadata.items():
    name = key.removeprefix(f'{found}.')
    if key.startswith(_OTHER_PREFIXES):
      continue
    if name in (*_UNDERSTOOD, *_IGNORED, *made.understood, made.epsilon):
      continue
    if name not in _NEUTRAL:
      lines.append(f'{key} = {shown(value)} is not understood')
    elif value != _NEUTRAL[name]:
      lines.append(f'{key} is {shown(value)}; accepted: {_NEUTRAL[name]}')
  return lines + (_type_problems(metadata) or _dimension_problems(metadata))


def _architecture(
  metadata: Mapping[str, Any],
) -> gguf_architectures.Architecture:
  return gguf_architectures.ARCHITECTURES[metadata[_ARCHITECTURE]]


def _has_factors(metadata: Mapping[str, Any]) -> bool:
  """Whether tables of RoPE divisors belong to it."""
  return _FACTOR_KEY in _architecture(metadata).understood


def _key(metadata: Mapping[str, Any], name: str) -> str:
  """The metadata key of a field of this architecture."""
  return f'{metadata[_ARCHITECTURE]}.{name}'


def _type_problems(metadata: Mapping[str, Any]) -> list[str]:
  """Sizes and numbers that are none, or differ between layers."""
  made, lines = _architecture(metadata), []
  known = {**_UNDERSTOOD, **made.understood, made.epsilon: fields.POSITIVE}
  for name, kind in known.items():
    key = _key(metadata, name)
    if isinstance(metadata.get(key), list):
      lines.append(f'{key} differs between layers')
    elif key in metadata:
      lines.append(fields.problem(key, metadata[key], kind))
  return list(filter(None, lines))


def _dimension_problems(metadata: Mapping[str, Any]) -> list[str]:
  """Partial rotation and odd RoPE scaling."""
  get = lambda name: metadata.get(_key(metadata, name))
  lines = []
  if get('embedding_length') is None or get('attention.head_count') is None:
    return lines
  head_dim = _head_dim(metadata)
  whole = ['attention.value_length']
  if not _architecture(metadata).has_partial_rope:
    whole.insert(0, 'rope.dimension_count')
  for name in whole:
    if get(name) not in (None, head_dim):
      key = _key(metadata, name)
      lines.append(f'{key} is {get(name)}; accepted: {head_dim}')
  if get('rope.scaling.type') not in (None, 'none', 'linear'):
    lines.append(
      f'{_key(metadata, "rope.scaling.type")} is '
      f'{get("rope.scaling.type")!r}; '
      "accepted: 'none', 'linear'"
    )
  return lines


def _head_dim(metadata: Mapping[str, Any]) -> int:
  key_length = metadata.get(_key(metadata, 'attention.key_length'))
  heads = metadata[_key(metadata, 'attention.head_count')]
  width = metadata[_key(metadata, 'embedding_length')]
  return int(key_length or width // heads)


def _float(value: float) -> float:
  """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))


def _config(metadata, tensors, dtype) -> config.ModelConfig:
  get = lambda name, default=None: metadata.get(_key(metadata, name), default)
  made = _architecture(metadata)
  if 'token_embd.weight' not in tensors:
    raise ValueError('it has no tensor token_embd.weight')
  cfg = config.ModelConfig(
    vocab_size=int(get('vocab_size', tensors['token_embd.weight'].shape[0])),
    hidden_size=int(get('embedding_length')),
    intermediate_size=int(get('feed_forward_length')),
    num_layers=int(get('block_count')),
    num_heads=int(get('attention.head_count')),
    num_kv_heads=int(
      get('attention.head_count_kv', get('attention.head_count'))
    ),
    head_dim=_head_dim(metadata),
    rope_theta=_float(get('rope.freq_base', 10000.0)),
    rms_norm_eps=_float(get(made.epsilon)),
    max_position_embeddings=int(get('context_length')),
    tie_word_embeddings='output.weight' not in tensors,
    dtype=dtype,
    family=made.family,
    **made.read(get, _head_dim(metadata)),
  )
  return dataclasses.replace(
    cfg, rope_scaling=_rope_scaling(metadata, tensors, cfg)
  )


def _rope_scaling(metadata, tensors, cfg) -> config.RopeScaling:
  """Linear scaling from metadata, Llama 3's from its table of divisors."""
  factor = metadata.get(_key(metadata, 'rope.scaling.factor'), 1.0)
  # llama.cpp scales linearly where only a factor is given.
  kind = metadata.get(_key(metadata, 'rope.scaling.type'), 'linear')
  is_linear = kind == 'linear'
  scaling = config.RopeScaling()
  if any(name in tensors for name in _FACTORS) and _has_factors(metadata):
    return _longrope(metadata, tensors, cfg)
  if is_linear and factor != 1.0:
    scaling = config.RopeScaling('linear', factor=_float(factor))
  if _FREQUENCIES not in tensors:
    return scaling
  table = np.asarray(tensors[_FREQUENCIES].data, np.float32)
  if scaling.kind == 'default' and table.shape == (cfg.head_dim // 2,):
    for known in (scaling, *_LLAMA3):
      divisors = _rope_divisors(known, cfg)
      if np.allclose(table, divisors, 1e-4):
        return known
  raise ValueError(
    f'it has {_FREQUENCIES} that is neither all ones nor that of Llama 3.1 or '
    '3.2; use the Hugging Face checkpoint of the same model'
  )


def _longrope(metadata, tensors, cfg) -> config.RopeScaling:
  """Phi-3's two tables of divisors."""
  for name in _FACTORS:
    if name not in tensors:
      raise ValueError(f'it has no tensor {name}')
    if tensors[name].shape != (cfg.num_rotated // 2,):
      raise ValueError(
        f'{name} has shape {tensors[name].shape}, not ({cfg.num_rotated // 2},)'
      )
  get = lambda name, default: metadata.get(_key(metadata, name), default)
  original = int(get(_ORIGINAL, cfg.max_position_embeddings))
  short, long = (
    tuple(map(_float, tensors[name].data.tolist())) for name in _FACTORS
  )
  return config.RopeScaling(
    'longrope',
    original_max_position_embeddings=original,
    attention_factor=_float(get(_FACTOR_KEY, 1.0)),
    divisors=short,
    long_divisors=long,
  )


def _rope_divisors(
  scaling: config.RopeScaling, cfg: config.ModelConfig
) -> np.ndarray:
  """What Llama 3 divides each RoPE frequency by, [H / 2]."""
  if scaling.kind == 'default':
    return np.ones(cfg.head_dim // 2, np.float32)
  exponents = np.arange(0, cfg.head_dim, 2) / cfg.head_dim
  wavelength = 2 * math.pi * cfg.rope_theta**exponents
  turns = scaling.original_max_position_embeddings / wavelength
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def open_params(header: Header) -> weights.LazyParams:
  """Every weight, dequantised when asked for, in the config's dtype.

  Returns:
    Mapping from flat path to array; kernels are [in, out].
  """
  cfg, made = header.config, header.architecture
  places = {
    path: one
    for one in made.tensors(cfg, header.tensors).values()
    for path in one.paths
  }

  def read(path: str) -> np.ndarray:
    """One weight."""
    stored = places[path]
    whole = _dequantise(header.path, header.tensors[stored.name])
    leaf = stored.split(whole)[path]
    if made.is_permuted and path.endswith('query/kernel'):
      leaf = _unpermute(leaf.T, cfg.num_heads).T
    elif made.is_permuted and path.endswith('key/kernel'):
      leaf = _unpermute(leaf.T, cfg.num_kv_heads).T
    elif made.is_shifted and path.endswith('/scale'):
      leaf = leaf - 1.0
    return np.ascontiguousarray(leaf, dtype=np.dtype(cfg.dtype))

  return weights.LazyParams(cfg, read, [header.path])


def _dequantise(path: str, tensor) -> np.ndarray:
  """One tensor as float32, rows first."""
  try:
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
  except NotImplementedError as error:
    raise ValueError(
      f'GGUF file {path!r} stores {tensor.name} as {tensor.tensor_type.name}, '
      'which cannot be dequantised; use a Q8_0, Q4_1, F16 or BF16 file'
    ) from error


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes llama.cpp's row order: (2i, 2i+1) pairs -> halves (i, i + H/2).

  Args:
    rows: [N * H, D], or [K * H, D] for keys.
    num_heads: N or K.
  """
  split = rows.reshape(num_heads, -1, 2, rows.shape[-1])
  return split.swapaxes(1, 2).reshape(rows.shape)


def read_tokenizer(header: Header) -> tokenizers.Tokenizer:
  """The file's tokenizer.

  Raises:
    ValueError: it is of a kind that is not understood.
  """
  try:
    return gguf_tokenizer.build(header.metadata, header.config.vocab_size)
  except ValueError as error:
    raise ValueError(
      f'tokenizer of GGUF file {header.path!r}: {error}; use the Hugging Face '
      'checkpoint of the same model'
    ) from error


def eos_ids(header: Header) -> tuple[int, ...]:
  """Token ids that end a text, by the file's metadata.

  Raises:
    ValueError: an id is none of the vocabulary.
  """
  ids = [
    eos.check(
      f'GGUF file {header.path!r}: {key}',
      header.metadata[key],
      header.config.vocab_size,
    )
    for key in _EOS
    if key in header.metadata
  ]
  return eos.union(*ids)
