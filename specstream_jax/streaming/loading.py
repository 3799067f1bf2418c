# SPDX-License-Identifier: Apache-2.0
"""Which decoder a model has whose layers pass through memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from specstream_jax import config
from specstream_jax.checkpoints import fitted, loading as base_loading
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import verifiers
from specstream_jax.streaming import (
  contents,
  decoder,
  store,
  weights as weights_lib,
)

_REFUSED = {
  'medusa': 'its heads are held against all weights of the base',
  'dart': 'its layer is held against all weights of the base',
}


# Settings that need what is not in memory, and what leaves them out.
_UNSET = {'pays_above': 0.0, 'budgets': ''}


def check(cfg: config_drafting.DrafterConfig, num_devices: int) -> None:
  """Raises ValueError if a drafter needs what is not in memory."""
  checks.check(
    cfg.name not in _REFUSED,
    f'drafter is {cfg.name!r}, which does not go with streamed weights: '
    f'{_REFUSED.get(cfg.name)}; use streams or prompt_lookup',
  )
  for name, nothing in _UNSET.items():
    value = getattr(cfg, name)
    checks.check(
      value == nothing,
      f'{cfg.name} has {name}={value}, which does not go with streamed weights; '
      'leave it out',
    )
  checks.check(
    num_devices == 1,
    f'weights are streamed to one device, not to {num_devices}; use one, or '
    'weights that stay',
  )


def make_decoder(
  made: Any,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
  weights: weights_lib.Source,
  most_positions: int,
) -> decoder.StreamedDecoder:
  """The decoder of what a drafter's `load` made, a `drafters.Loaded`.

  Args:
    made: its weights have no layers.
    cfg: of the drafter.
    decode: sizes and stop conditions.
    weights: the layers.
    most_positions: of the model.
  """
  return decoder.StreamedDecoder(
    made.model,
    made.drafter,
    decode,
    weights,
    prompt_model=made.prompt_model,
    verifier=verifiers.make(cfg),
    params=made.params,
    most_positions=most_positions,
  )


def split(
  folded: Mapping[str, Any],
  loaded: base_loading.LoadedModel,
  found: fitted.Fitted,
  rest: Mapping[str, Any],
  cfg: config.StreamedWeightsConfig,
) -> tuple[Mapping[str, Any], weights_lib.LayerWeights]:
  """(flat weights of no layer, the layers), of a base whose LoRA is folded in.

  Args:
    folded: flat weights of the base, as they are stored.
    loaded: the base as it was.
    found: its adapter.
    rest: flat weights of the adapter that stay beside the base.
    cfg: where layers lie, and how many stay in memory.

  Raises:
    ValueError: nothing fits the memory budget, or files cannot be written.
  """
  own = contents.sha256(loaded.params, store.root(cfg))
  name = store.key(f'{own} {loaded.config_hash}', folded, found.folded)
  folder, stays = store.prepare(folded, name, cfg)
  size = sum(
    np.asarray(leaf).nbytes for leaf in (*stays.values(), *rest.values())
  )
  twice = found.stream.num_msa_layers if found.stream and rest else 0
  return stays, weights_lib.LayerWeights(folder, cfg, stays=size, twice=twice)
