# SPDX-License-Identifier: Apache-2.0
"""The model that a drafter beside it is trained for, and stays as it is."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.checkpoints import (
  fitted,
  loading,
  weights as weights_lib,
)
from specstream_jax.modeling import lora


class FrozenTarget(NamedTuple):
  """The model, and what tells which it is.

  Attributes:
    loaded: with the adapter's LoRA folded in, in the dtype asked for.
    known_by: fields of `checkpoints.trained_on.TrainedOn`.
  """

  loaded: loading.LoadedModel
  known_by: dict[str, Any]


def load(base: str, adapter: str | None, dtype: str) -> FrozenTarget:
  """Reads it.

  Args:
    base: model name, folder, hub id or GGUF file.
    adapter: folder or name of an adapter; None is the base.
    dtype: of the weights.

  Raises:
    ValueError: they cannot be read, or do not go together.
  """
  loaded = loading.load_model(base)
  flats = {d: _cast(loaded.params, d) for d in config.DTYPES}
  if adapter is not None:
    found = fitted.read(adapter, loaded)
    fold = lambda flat: lora.merge(flat, found.folded, found.folded_lora)[0]
    flats = {d: fold(flat) for d, flat in flats.items()}
  fingerprints = {weights_lib.fingerprint(flat) for flat in flats.values()}
  known_by = {
    'base_model_id': str(loaded.source),
    'base_config_hash': loaded.config_hash,
    'base_fingerprints': tuple(sorted(fingerprints)),
    'adapter': adapter or '',
  }
  sizes = dataclasses.replace(loaded.config, dtype=dtype)
  made = dataclasses.replace(loaded, config=sizes, params=flats[dtype])
  return FrozenTarget(made, known_by)


def _cast(flat: arrays.FlatParams, dtype: str) -> dict[str, Any]:
  return {k: leaf.astype(jnp.dtype(dtype)) for k, leaf in flat.items()}
