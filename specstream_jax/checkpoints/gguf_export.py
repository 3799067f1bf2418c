# SPDX-License-Identifier: Apache-2.0
"""A GGUF file with other weights: what a program that reads no adapters wants.

Metadata, the tokenizer among them, stay as they are; every tensor of the model
is written anew, so LoRA may be folded in. For comparisons with other engines.
"""

from collections.abc import Mapping
from typing import Any

import gguf as gguf_package
import numpy as np

from specstream_jax.checkpoints import gguf

DTYPES = ('float32', 'float16', 'bfloat16', 'q8_0', 'q4_0')
_BLOCK = 32  # numbers that share a scale in the quantised ones
_FILE_TYPE = {
  'float32': gguf_package.LlamaFileType.ALL_F32,
  'float16': gguf_package.LlamaFileType.MOSTLY_F16,
  'bfloat16': gguf_package.LlamaFileType.MOSTLY_BF16,
  'q8_0': gguf_package.LlamaFileType.MOSTLY_Q8_0,
  'q4_0': gguf_package.LlamaFileType.MOSTLY_Q4_0,
}
_KINDS = {
  'bfloat16': gguf_package.GGMLQuantizationType.BF16,
  'q8_0': gguf_package.GGMLQuantizationType.Q8_0,
  'q4_0': gguf_package.GGMLQuantizationType.Q4_0,
}
# Written by the package itself.
_OWN = ('GGUF.', 'general.architecture', 'general.file_type')


def save(
  path: str,
  source: str,
  flat: Mapping[str, np.ndarray],
  *,
  dtype: str = 'float16',
) -> None:
  """Writes a file.

  Args:
    path: to write.
    source: GGUF file of the same model.
    flat: weights by our paths; kernels are [in, out].
    dtype: one of `DTYPES`, of matrices; vectors are float32. Where it is
      quantised, rows of no whole blocks are float16, and with q4_0 embeddings
      and LM head are q8_0.

  Raises:
    ValueError: the source cannot be read, or keeps several weights in a tensor.
  """
  header = gguf.open_file(source)
  made, cfg = header.architecture, header.config
  writer = gguf_package.GGUFWriter(path, made.name)
  for field in gguf_package.GGUFReader(source).fields.values():
    if not field.name.startswith(_OWN):
      kind = field.types[0]
      sub = (
        field.types[-1] if kind == gguf_package.GGUFValueType.ARRAY else None
      )
      writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
  writer.add_file_type(_FILE_TYPE[dtype])
  places = made.tensors(cfg, header.tensors)
  for name, tensor in header.tensors.items():
    if name not in places:  # a table of RoPE
      writer.add_tensor(name, np.array(tensor.data, np.float32))
      continue
    leaf = _stored(places[name], flat, made, cfg)
    _add(writer, name, leaf, _dtype_of(name, leaf, dtype))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _dtype_of(name: str, leaf: np.ndarray, dtype: str) -> str:
  """What a tensor is kept in."""
  if leaf.ndim < 2:
    return 'float32'
  if not dtype.startswith('q'):
    return dtype
  if leaf.shape[-1] % _BLOCK:
    return 'float16'
  return 'q8_0' if name in ('token_embd.weight', 'output.weight') else dtype


def _add(writer, name, leaf, dtype) -> None:
  """Adds a float32 tensor to a file as `dtype`."""
  if dtype not in _KINDS:
    writer.add_tensor(name, leaf.astype(dtype))
    return
  kind = _KINDS[dtype]
  writer.add_tensor(name, gguf_package.quantize(leaf, kind), raw_dtype=kind)


def _stored(place: Any, flat, made, cfg) -> np.ndarray:
  """A tensor in float32, rows first."""
  if len(place.paths) != 1:
    raise ValueError(
      f'tensor {place.name} holds {len(place.paths)} weights; a GGUF file is '
      'written of models that keep each by itself'
    )
  [path] = place.paths
  leaf = np.asarray(flat[path], np.float32)
  if path.endswith('kernel'):
    leaf = leaf.T
  if made.is_permuted and path.endswith('query/kernel'):
    leaf = _permute(leaf, cfg.num_heads)
  elif made.is_permuted and path.endswith('key/kernel'):
    leaf = _permute(leaf, cfg.num_kv_heads)
  elif made.is_shifted and path.endswith('/scale'):
    leaf = leaf + 1.0
  return np.ascontiguousarray(leaf)


def _permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Halves (i, i + H/2) -> llama.cpp's pairs (2i, 2i + 1); rows [N * H, D]."""
  split = rows.reshape(num_heads, 2, -1, rows.shape[-1])
  return split.swapaxes(1, 2).reshape(rows.shape)
