# SPDX-License-Identifier: Apache-2.0
"""Speculative streams of the loaded adapter."""

from specstream_jax import assembly
from specstream_jax.decoding import transformer_fns
from specstream_jax.decoding.drafters import streams
from specstream_jax.modeling import build


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The model with its streams.

  Raises:
    ValueError: no adapter is loaded, or the tree is deeper than its streams.
  """
  if model.stream is None:
    raise ValueError(
      "drafter is 'streams' but no adapter is loaded; load one with "
      "adapter=…, or use drafter='none'"
    )
  tree = cfg.tree or model.tree
  tree.check_fits(model.stream)
  built = build.build(model.config, model.stream, model.lora, model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(built, decode.schedule, tree.keep_nodes),
    streams.Streams(tree, model.stream.num_streams, cfg),
    transformer_fns.Params(model.base, model.adapter),
    prompt_model=transformer_fns.model_fns(built),
  )
