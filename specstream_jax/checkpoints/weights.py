# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and hashes of base weights, whatever file they come from.

Axis letters: N heads, K KV heads, H head dim, D model, F MLP, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config
from specstream_jax.config import model as config_model
from specstream_jax.modeling import build, params

_SAMPLES = 4096
# The number of a layer in the name of a tensor.
_LAYER = re.compile(r'(?<=[./])\d{1,9}(?=[./])')


@functools.lru_cache(maxsize=64)
def _one_layer(cfg: config.ModelConfig) -> dict[str, tuple[int, ...]]:
  """`shapes` of a model whose layers are the first alone."""
  one = config_model.lowest_layers(cfg, 1)
  flat = params.flatten(build.build(one).base)
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def shapes(cfg: config.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shape of every base weight by flat path; kernels are [in, out]."""
  flat = {}
  for path, shape in _one_layer(cfg).items():
    if not path.startswith('layers/0/'):
      flat[path] = shape
      continue
    for i in range(cfg.num_layers):
      flat[path.replace('layers/0/', f'layers/{i}/', 1)] = shape
  return dict(sorted(flat.items()))


def count(cfg: config.ModelConfig) -> int:
  """Number of base parameters."""
  sizes = {p: math.prod(shape) for p, shape in _one_layer(cfg).items()}
  layer = sum(n for path, n in sizes.items() if path.startswith('layers/'))
  return sum(sizes.values()) + (cfg.num_layers - 1) * layer


def problems(
  expected: Mapping[str, tuple[int, ...]],
  found: Mapping[str, tuple[int, ...]],
) -> list[str]:
  """One line for every missing, unexpected or misshapen tensor.

  Args:
    expected: shape by tensor name, as the config says.
    found: shape by tensor name, as the file says.
  """
  lines = [f'missing {name}' for name in expected if name not in found]
  lines += [f'unexpected {name}' for name in found if name not in expected]
  for name, shape in expected.items():
    if name in found and tuple(found[name]) != shape:
      lines.append(f'{name} has shape {tuple(found[name])}, not {shape}')
  return lines


def refuse(source: str, problems: Iterable[str], fix: str) -> None:
  """Raises one ValueError of one line with all `problems`, if there are any.

  Args:
    source: what is refused.
    problems: texts; those that differ in the number of a layer alone are said
      together.
    fix: what to do about them.
  """
  said = _by_layer(problems)
  if not said:
    return
  if len(said) > 1:
    said = [f'({i}) {text}' for i, text in enumerate(said, start=1)]
  raise ValueError(
    f'{source} cannot be read exactly, so it is refused: {"; ".join(said)}; '
    f'{fix}'
  )


def _by_layer(problems: Iterable[str]) -> list[str]:
  """Each problem once for all layers that have it: layers.{0-29}.mlp."""
  layers: dict[tuple[str, str], list[int]] = {}
  for text in problems:
    found = _LAYER.search(text)
    first, last = found.span() if found else (len(text), len(text))
    numbers = layers.setdefault((text[:first], text[last:]), [])
    numbers += [int(found.group())] if found else []
  return [
    before + _span(numbers) + after
    for (before, after), numbers in layers.items()
  ]


def _span(numbers: list[int]) -> str:
  """'' for none, '3', '{0,2}' or '{0-29}'."""
  if len(numbers) < 2:
    return ''.join(map(str, numbers))
  first, last = min(numbers), max(numbers)
  shown = ','.join(map(str, sorted(numbers)))
  if len(numbers) > 2 and sorted(numbers) == list(range(first, last + 1)):
    shown = f'{first}-{last}'
  return f'{{{shown}}}'


def check_layers(
  source: str, cfg: config.ModelConfig, num_tensors: int, fix: str
) -> None:
  """Raises ValueError if a file has too few tensors for the layers of `cfg`.

  Before anything is listed layer by layer, which a wrong number makes endless.
  """
  if num_tensors < cfg.num_layers:
    line = f'{cfg.num_layers:,} layers, but only {num_tensors:,} tensors'
    refuse(source, [line], fix)


class LazyParams(Mapping[str, np.ndarray]):
  """Base weights by flat path that are read when asked for, and not kept.

  Attributes:
    shapes: ShapeDtypeStruct by path, known without reading.
    files: all that they are read from; empty for weights that are computed.
  """

  def __init__(
    self,
    cfg: config.ModelConfig,
    read: Callable[[str], np.ndarray],
    files: Sequence[str] = (),
  ):
    self._read = read
    self.files = tuple(sorted(files))
    self.shapes = {
      path: jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.dtype))
      for path, shape in shapes(cfg).items()
    }

  def __getitem__(self, path: str) -> np.ndarray:
    return self._read(path)

  @functools.cached_property
  def fingerprint(self) -> str:
    """`fingerprint` of them, which reads them all."""
    return fingerprint(self)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def config_hash(cfg: config.ModelConfig) -> str:
  """sha256 of the sizes and constants; number types do not count."""
  fields = config_model.beyond_defaults(cfg)
  del fields['dtype']
  fields.pop('weights_dtype', None)
  canonical = json.dumps(fields, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(flat: Mapping[str, Any], *, whole: bool = False) -> str:
  """sha256 over names, shapes and a sample of the values in bfloat16.

  Equal for the same weights loaded as float32 and as bfloat16, unless `whole`.

  Args:
    flat: arrays by path.
    whole: every value as it is, for what is small or holds integers.
  """
  digest = hashlib.sha256()
  for path in sorted(flat):
    leaf = np.asarray(flat[path])
    digest.update(f'{path}{leaf.shape}'.encode())
    if not whole:
      sample = leaf.reshape(-1)[:: max(1, leaf.size // _SAMPLES)]
      with np.errstate(invalid='ignore'):  # numpy warns of some NaNs
        leaf = sample.astype(jnp.bfloat16)
    digest.update(leaf.tobytes())
  return digest.hexdigest()
