# SPDX-License-Identifier: Apache-2.0
"""No drafts: the loop becomes plain autoregressive decoding."""

from typing import Any

from specstream_jax import arrays, config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import interface, tree as tree_lib
from specstream_jax.drafters import loaded


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The base model with LoRA folded in, and no drafts."""
  del cfg, decode
  return loaded.beside(model, NoDraft())


class NoDraft:
  """Trees of the root alone; one token per call."""

  size = 1
  max_depth = 0
  with_streams = False

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> tuple[()]:
    """No state."""
    del params, prompts, prompt_lengths
    return ()

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The root."""
    del params
    return tree_lib.root_only(context.root), state
