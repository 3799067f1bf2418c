# SPDX-License-Identifier: Apache-2.0
"""No drafts: the loop becomes plain autoregressive decoding."""

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding.plain import NoDraft as NoDraft
from specstream_jax.drafters import loaded


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The base model with LoRA folded in, and no drafts."""
  del cfg, decode
  return loaded.beside(model, NoDraft())
