# SPDX-License-Identifier: Apache-2.0
"""Weights of the base in 8 bits: W ≈ Q s, one scale for each output channel.

Symmetric rounding to nearest, s = max |W| / 127 of a channel, as in LLM.int8()
(arXiv 2208.07339, section 2.1) without its outliers. Kernels are stored so, and
the LM head, tied or not; norms, biases and tables that are only looked up keep
their type, as do adapters. Products are taken with Q as numbers of the
activations' type, of which each holds -127 to 127 exactly, and scaled after.

Axis letters: I inputs, O output channels, V vocabulary, D model width.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from specstream_jax import arrays, config

_LARGEST = 127
_KERNEL, _TABLE = '/kernel', 'embed/embedding'


def scale_path(path: str) -> str:
  """Where the scales of the weight at `path` are."""
  return f'{path}_scale'


def is_stored_so(path: str, cfg: config.ModelConfig) -> bool:
  """Whether the base weight at `path` is one that is stored in 8 bits."""
  is_head = path == _TABLE and cfg.tie_word_embeddings
  return bool(cfg.weights_dtype) and (path.endswith(_KERNEL) or is_head)


def _inputs(path: str) -> int:
  """The axis of I: kernels are [I, O], a table [V, D] has a channel a token."""
  return 0 if path.endswith(_KERNEL) else 1


def quantize(leaf: Any, axis: int) -> tuple[np.ndarray, np.ndarray]:
  """A matrix in 8 bits.

  Args:
    leaf: [I, O] or [O, I], of any float type.
    axis: of I.

  Returns:
    (int8 in the shape of `leaf`, float32 scales [O]).
  """
  wide = np.asarray(leaf, np.float32)
  scale = np.abs(wide).max(axis=axis, keepdims=True) / np.float32(_LARGEST)
  scale[scale == 0] = 1.0  # a channel of zeros
  narrow = np.rint(wide / scale).clip(-_LARGEST, _LARGEST).astype(np.int8)
  return narrow, scale.squeeze(axis)


class Quantized(Mapping[str, Any]):
  """A view of flat base weights in 8 bits, each made when it is asked for.

  Attributes:
    shapes: what has a shape and a dtype, by path, known without reading.
  """

  def __init__(self, base: Mapping[str, Any], cfg: config.ModelConfig):
    """Wraps weights.

    Args:
      base: by flat path, kernels [I, O].
      cfg: says that weights are to be stored so.
    """
    self._base, self._cfg = base, cfg
    self._last: tuple[str, Any] = ('', None)
    self.shapes: dict[str, Any] = {}
    for path, leaf in getattr(base, 'shapes', base).items():
      self.shapes[path] = leaf
      if is_stored_so(path, cfg):
        num_channels = leaf.shape[1 - _inputs(path)]
        self.shapes |= {
          path: jax.ShapeDtypeStruct(leaf.shape, np.int8),
          scale_path(path): jax.ShapeDtypeStruct((num_channels,), np.float32),
        }

  def __getitem__(self, path: str) -> Any:
    stem = path.removesuffix('_scale')
    if not is_stored_so(stem, self._cfg):
      return self._base[path]
    if self._last[0] != stem:  # the scales are asked for next
      self._last = stem, quantize(self._base[stem], _inputs(stem))
    return self._last[1][path != stem]

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def stored(
  base: arrays.FlatParams, cfg: config.ModelConfig
) -> arrays.FlatParams:
  """Flat weights, kernels [I, O], as `cfg` says that they are stored."""
  return Quantized(base, cfg) if cfg.weights_dtype else base


def dequantize(
  flat: arrays.FlatParams, cfg: config.ModelConfig
) -> dict[str, Any]:
  """Flat weights, kernels [I, O], as numbers of `cfg.dtype` again.

  Weights that are not in 8 bits stay as they are.
  """
  made = {}
  for path, leaf in flat.items():
    if path.endswith('_scale') and path.removesuffix('_scale') in flat:
      continue
    if is_stored_so(path, cfg):
      scale = np.expand_dims(np.asarray(flat[scale_path(path)]), _inputs(path))
      wide = np.asarray(leaf, np.float32) * scale
      leaf = wide.astype(np.dtype(cfg.dtype))
    made[path] = leaf
  return made
