# SPDX-License-Identifier: Apache-2.0
"""Prompt look-up: nothing to load but the model."""

from specstream_jax import assembly
from specstream_jax.decoding import transformer_fns
from specstream_jax.decoding.drafters import prompt_lookup
from specstream_jax.modeling import build


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The model without streams, LoRA folded in, and the drafter.

  Raises:
    ValueError: the drafter cannot draft or be verified this way.
  """
  del decode
  built = build.build(model.config, layout=model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(built),
    prompt_lookup.PromptLookup(cfg),
    transformer_fns.Params(model.base),
    prompt_model=transformer_fns.model_fns(built, is_prompt=True),
  )
