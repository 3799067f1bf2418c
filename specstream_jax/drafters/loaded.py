# SPDX-License-Identifier: Apache-2.0
"""What a drafter's `load` takes and gives; see the package."""

from typing import Any, NamedTuple, Protocol

from specstream_jax.config import (
  LoraConfig,
  ModelConfig,
  StreamConfig,
  TreeConfig,
)
from specstream_jax.decoding import interface, transformer_fns
from specstream_jax.modeling import build, fused, params as params_lib


class Target(Protocol):
  """What a drafter may see of the loaded model that it drafts for.

  Attributes:
    config: sizes of the base model.
    base: its nested weights on device, LoRA folded in when fine-tuned.
    adapter: nested weights of its streams; empty without.
    stream: settings of the streams, or None.
    lora: LoRA left unfolded (lossless mode), or None.
    tree: the adapter's default tree.
    tokenizer: `tokenizers.Tokenizer`, or what stands in for a missing one.
    layout: of the kernels, see `layers.Linear`.
    adapter_dir: folder of the adapter, empty without.
  """

  config: ModelConfig
  base: dict[Any, Any]
  adapter: dict[Any, Any]
  stream: StreamConfig | None
  lora: LoraConfig | None
  tree: TreeConfig
  tokenizer: Any
  layout: str
  adapter_dir: str


class Loaded(NamedTuple):
  """What a decoder needs besides its sizes.

  Attributes:
    model: used by every step.
    drafter: proposes trees.
    params: weights of the model and of the drafter.
    prompt_model: used by the prompt pass.
    chunk_model: used by passes over parts of a prompt; None takes `model`.
  """

  model: interface.ModelFns
  drafter: interface.Drafter
  params: transformer_fns.Params
  prompt_model: interface.ModelFns
  chunk_model: interface.ModelFns | None = None


def beside(
  model: Target, drafter: interface.Drafter, weights: Any = ()
) -> Loaded:
  """A drafter that stands beside the model, which decodes without streams.

  Args:
    model: LoRA folded in.
    drafter: proposes trees.
    weights: of the drafter, its `params.drafter`.
  """
  built = build.build(model.config, layout=model.layout)
  return Loaded(
    transformer_fns.model_fns(built),
    drafter,
    transformer_fns.Params(model.base, drafter=weights),
    transformer_fns.model_fns(built, is_prompt=True),
  )


def known_weights(model: Target, name: str) -> dict[str, Any]:
  """Flat weights of the model, kernels as [in, out], as drafters know it by.

  Args:
    model: LoRA folded in.
    name: of the drafter.

  Raises:
    ValueError: they are stored in another type than they were trained for.
  """
  if model.config.weights_dtype:
    raise ValueError(
      f'drafter {name!r} knows its model by its weights, which are not the same '
      f'in {model.config.weights_dtype}; load the model without weights_dtype'
    )
  flat = fused.split(params_lib.flatten(model.base), model.config)
  if fused.of_kernels(model.layout) == 'out_in':
    flat = params_lib.transpose_kernels(flat)
  return flat
