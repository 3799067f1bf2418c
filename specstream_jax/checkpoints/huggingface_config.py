# SPDX-License-Identifier: Apache-2.0
"""Hugging Face `config.json` to `ModelConfig` and back, refusing the unknown.

Reads what transformers 4 writes (`rope_theta`, `rope_scaling`, `torch_dtype`)
and what version 5 writes (`rope_parameters`, `dtype`).
"""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import families


def parse(
  raw: Mapping[str, Any], source: str, *, dtype: str = 'float32'
) -> config.ModelConfig:
  """The config of any family, see `families.Family.read`."""
  return families.family_of(raw, source).read(raw, source, dtype=dtype)


def dump(
  cfg: config.ModelConfig, *, dtype: str, eos_ids: tuple[int, ...]
) -> dict[str, Any]:
  """The config.json of a plain checkpoint of the config's family."""
  family = families.by_name(cfg.family)
  return family.write(cfg, dtype=dtype, eos_ids=eos_ids)
