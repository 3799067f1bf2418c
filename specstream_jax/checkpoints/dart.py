# SPDX-License-Identifier: Apache-2.0
"""A DART layer on disk, and the model it was trained on.

`dart.safetensors` holds the weights, `dart_config.json` everything else.
Axis letters: J drafts, D model width.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import numpy as np

from specstream_jax import arrays, config
from specstream_jax.checkpoints import pair, trained_on, weights
from specstream_jax.config import checks

FORMAT_VERSION = 1
WEIGHTS = 'dart.safetensors'
CONFIG = 'dart_config.json'
KIND = pair.Kind(
  'DART layer', WEIGHTS, CONFIG, FORMAT_VERSION, 'specstream train_dart'
)
DTYPES = pair.DTYPES
# The root drafts, and at least one mask.
MIN_DRAFTS = 2


@dataclasses.dataclass(frozen=True)
class DartConfig:
  """What the layer is and which model it belongs to.

  Attributes:
    base_model_id: see `trained_on.TrainedOn`.
    base_config_hash: likewise.
    base_fingerprints: likewise.
    adapter: likewise.
    num_drafts: J, tokens that the layer predicts behind the root.
    provenance: how it was trained, JSON types.
    format_version: of the two files.
  """

  base_model_id: str
  base_config_hash: str
  base_fingerprints: tuple[str, ...]
  adapter: str
  num_drafts: int
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION

  def __post_init__(self):
    checks.option_types(self)
    checks.count('num_drafts', self.num_drafts, MIN_DRAFTS, config.MAX_STREAMS)

  @property
  def tree(self) -> config.TreeConfig:
    """A best-first tree of the default size."""
    return config.TreeConfig(depth=min(self.num_drafts, 4))


def is_dart(folder: str | os.PathLike) -> bool:
  """True if the folder holds a DART layer."""
  return KIND.is_in(folder)


def save(
  folder: str | os.PathLike,
  flat: arrays.FlatParams,
  cfg: DartConfig,
  *,
  dtype: str = 'bfloat16',
) -> None:
  """Writes a layer; if that fails, one that was there stays whole.

  Args:
    folder: made if it is not there.
    flat: weights by path, kernels as [in, out].
    cfg: goes to dart_config.json.
    dtype: on disk, one of `DTYPES`.

  Raises:
    ValueError: weights that do not fit `cfg`, an unknown dtype, a full disk.
  """
  _check_masks(os.fspath(folder), flat, cfg)
  pair.save(folder, KIND, flat, cfg, dtype)


def load(
  folder: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], DartConfig]:
  """Reads a layer.

  Returns:
    (weights by flat path in the dtype on disk, their config).

  Raises:
    ValueError: a file is missing, damaged, of another version or does not fit
      the other.
  """
  folder = os.fspath(folder)
  cfg, digest = pair.load_config(folder, KIND, DartConfig)
  tensors = pair.read_tensors(folder, KIND, digest)
  _check_masks(folder, tensors, cfg)
  return tensors, cfg


def read_config(folder: str | os.PathLike) -> DartConfig:
  """The config of a layer, without its weights."""
  return pair.load_config(os.fspath(folder), KIND, DartConfig)[0]


def _check_masks(
  folder: str, tensors: Mapping[str, Any], cfg: DartConfig
) -> None:
  """Raises ValueError unless there are as many masks as the config says."""
  found = getattr(tensors.get('masks'), 'shape', ())
  if len(found) != 2 or found[0] != cfg.num_drafts - 1:
    raise ValueError(
      f'DART layer {folder!r}: masks has shape {tuple(found)}, but num_drafts '
      f'is {cfg.num_drafts}, which takes {cfg.num_drafts - 1} of them; save it '
      'again'
    )


def check_shapes(
  folder: str, tensors: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
  """Raises ValueError unless the weights are those of a layer of the model.

  Args:
    folder: they come from.
    tensors: by flat path.
    expected: anything with a shape, by flat path.
  """
  shapes = lambda flat: {p: tuple(leaf.shape) for p, leaf in flat.items()}
  lines = weights.problems(shapes(expected), shapes(tensors))
  if lines:
    raise ValueError(
      f'DART layer {folder!r}: weights are not those of a layer of the model: '
      f'{"; ".join(lines)}; save it again'
    )


def check_base(
  cfg: DartConfig, base: arrays.Params, model: config.ModelConfig
) -> None:
  """Raises ValueError unless the layer was trained on this model."""
  trained_on.check("The layer's weights", cfg, base, model)
