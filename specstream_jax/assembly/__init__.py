# SPDX-License-Identifier: Apache-2.0
"""Puts a loaded model and a drafter together; one module per drafter.

Each module has `assemble(model, cfg, decode) -> Assembled`, where `model` is a
`runtime.Model`, `cfg` a `DrafterConfig` and `decode` a `DecodeConfig`.
"""

import importlib
from typing import Any, NamedTuple

from specstream_jax import config_drafting
from specstream_jax.decoding import interface, transformer_fns


class Assembled(NamedTuple):
  """What a decoder needs besides its sizes.

  Attributes:
    model: used by every step.
    drafter: proposes trees.
    params: weights of the model and of the drafter.
    prompt_model: used by the prompt pass; None takes `model`.
  """

  model: interface.ModelFns
  drafter: interface.Drafter
  params: transformer_fns.Params
  prompt_model: interface.ModelFns | None = None


def assemble(
  model: Any, cfg: config_drafting.DrafterConfig, decode: Any
) -> Assembled:
  """The pieces of the decoder that `cfg` asks for.

  Raises:
    ValueError: the drafter does not fit the model, or its weights are missing.
  """
  module = importlib.import_module(f'specstream_jax.assembly.{cfg.name}')
  return module.assemble(model, cfg, decode)
