# SPDX-License-Identifier: Apache-2.0
"""Plain decoding."""

from specstream_jax import assembly
from specstream_jax.decoding import transformer_fns
from specstream_jax.decoding.drafters import none
from specstream_jax.modeling import build


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The base model with LoRA folded in, and no drafts."""
  del cfg, decode
  built = build.build(model.config, layout=model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(built),
    none.NoDraft(),
    transformer_fns.Params(model.base),
    prompt_model=transformer_fns.model_fns(built, is_prompt=True),
  )
