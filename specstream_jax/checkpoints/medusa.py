# SPDX-License-Identifier: Apache-2.0
"""Medusa heads on disk, and the model they were trained on.

`medusa.safetensors` holds the weights, `medusa_config.json` everything else.
Axis letters: J heads, D model width, V vocabulary.
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
WEIGHTS = 'medusa.safetensors'
CONFIG = 'medusa_config.json'
KIND = pair.Kind(
  'Medusa heads', WEIGHTS, CONFIG, FORMAT_VERSION, 'specstream train_medusa'
)
DTYPES = pair.DTYPES


@dataclasses.dataclass(frozen=True)
class MedusaConfig:
  """What the heads are and which model they belong to.

  Attributes:
    base_model_id: see `trained_on.TrainedOn`.
    base_config_hash: likewise.
    base_fingerprints: likewise.
    adapter: likewise.
    num_heads: J.
    choices: rank paths of the calibrated tree; empty if none was made.
    provenance: how they were trained, JSON types.
    format_version: of the two files.
  """

  base_model_id: str
  base_config_hash: str
  base_fingerprints: tuple[str, ...]
  adapter: str
  num_heads: int
  choices: tuple[tuple[int, ...], ...] = ()
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION

  def __post_init__(self):
    checks.option_types(self)
    checks.count('num_heads', self.num_heads, 1, config.MAX_STREAMS)
    _ = self.tree  # refuses choices that make none

  @property
  def tree(self) -> config.TreeConfig:
    """The calibrated tree, else a best-first tree of the default size."""
    if self.choices:
      return config.TreeConfig('fixed', choices=self.choices)
    return config.TreeConfig(depth=min(self.num_heads, 4))


def is_medusa(folder: str | os.PathLike) -> bool:
  """True if the folder holds Medusa heads."""
  return KIND.is_in(folder)


def save_heads(
  folder: str | os.PathLike,
  flat: arrays.FlatParams,
  cfg: MedusaConfig,
  *,
  dtype: str = 'bfloat16',
) -> None:
  """Writes heads; if that fails, those that were there stay whole.

  Args:
    folder: made if it is not there.
    flat: weights by path.
    cfg: goes to medusa_config.json.
    dtype: on disk, one of `DTYPES`.

  Raises:
    ValueError: weights that do not fit `cfg`, an unknown dtype, a full disk.
  """
  _check_tensors(os.fspath(folder), flat, cfg)
  pair.save(folder, KIND, flat, cfg, dtype)


def load_heads(
  folder: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], MedusaConfig]:
  """Reads heads.

  Returns:
    (weights by flat path in the dtype on disk, their config).

  Raises:
    ValueError: a file is missing, damaged, of another version or does not fit
      the other.
  """
  folder = os.fspath(folder)
  cfg, digest = pair.load_config(folder, KIND, MedusaConfig)
  tensors = pair.read_tensors(folder, KIND, digest)
  _check_tensors(folder, tensors, cfg)
  return tensors, cfg


def read_config(folder: str | os.PathLike) -> MedusaConfig:
  """The config of heads, without their weights."""
  return pair.load_config(os.fspath(folder), KIND, MedusaConfig)[0]


def _check_tensors(
  folder: str, tensors: Mapping[str, Any], cfg: MedusaConfig
) -> None:
  """Raises ValueError if the weights are not what the config says."""
  found = {path: tuple(leaf.shape) for path, leaf in tensors.items()}
  width, vocab_size = sizes(tensors)
  shapes = {
    'kernel': (width, width),
    'bias': (width,),
    'projection': (vocab_size, width),
  }
  expected = {
    f'heads/{j}/{name}': shape
    for j in range(cfg.num_heads)
    for name, shape in shapes.items()
  }
  lines = weights.problems(expected, found)
  if lines:
    raise ValueError(
      f'Medusa heads {folder!r}: weights do not fit the config: '
      f'{"; ".join(lines)}; save them again'
    )


def sizes(tensors: Mapping[str, Any]) -> tuple[int, int]:
  """(D, V) of heads; (0, 0) if the first has no projection."""
  first = tensors.get('heads/0/projection')
  return (0, 0) if first is None else (first.shape[1], first.shape[0])


def check_base(
  cfg: MedusaConfig, base: arrays.Params, model: config.ModelConfig
) -> None:
  """Raises ValueError unless the heads were trained on this model.

  Args:
    cfg: of the heads.
    base: flat weights of the model that decodes, kernels as [in, out].
    model: its sizes.
  """
  trained_on.check(KIND.noun, cfg, base, model)
