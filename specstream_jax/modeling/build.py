# SPDX-License-Identifier: Apache-2.0
"""Splitting a Transformer once into (graphdef, base, adapter)."""

from typing import Any, NamedTuple

from flax import nnx

from specstream_jax import arrays, config
from specstream_jax.modeling import params, stacks, transformer


class Built(NamedTuple):
  """A model's structure and the shapes of its two weight dicts.

  Attributes:
    cfg: sizes of the base model.
    graphdef: hashable structure, static under jit.
    base: nested dict of ShapeDtypeStruct.
    adapter: nested dict of ShapeDtypeStruct; empty without adapter weights.
    stacked_at: the first MSA layer, if the base holds stacks of layers
      (`stacks`); the adapter holds layers in any case.
    num_streams: J, 0 without streams.
  """

  cfg: config.ModelConfig
  graphdef: Any
  base: dict[Any, Any]
  adapter: dict[Any, Any]
  stacked_at: int | None = None
  num_streams: int = 0

  def merge(
    self, base: arrays.Params, adapter: arrays.Params
  ) -> transformer.Transformer:
    """The module with these weights; call it inside the compiled function."""
    if self.stacked_at is not None:
      flat = stacks.stack(params.flatten(adapter), self.stacked_at)
      adapter = params.unflatten(flat)
    return nnx.merge(self.graphdef, base, adapter)


def without_layers(tree: arrays.Params) -> dict[Any, Any]:
  """Nested weights but for those of layers."""
  return {name: leaf for name, leaf in tree.items() if name != 'layers'}


def shell(built: Built) -> Built:
  """Everything of a model but its layers, which are not stacked."""
  model = built.merge(built.base, built.adapter)
  model.layers = nnx.List([])
  return built._replace(
    graphdef=nnx.split(model)[0],
    base=without_layers(built.base),
    adapter=without_layers(built.adapter),
  )


def build(
  cfg: config.ModelConfig,
  streams: config.StreamConfig | None = None,
  lora: config.LoraConfig | None = None,
  layout: str = 'in_out',
  is_stacked: bool = False,
) -> Built:
  """Builds the structure without allocating a weight.

  Args:
    cfg: sizes of the base model.
    streams: settings of the streams, if any.
    lora: LoRA settings, if any.
    layout: of the kernels, `in_out` or `out_in`, see `layers.Linear`.
    is_stacked: the base holds stacks of layers, over which a pass scans.

  Raises:
    ValueError: the model has fewer layers than there are MSA layers.
  """
  if streams:
    streams.check_fits(cfg)
  if lora and not lora.rank:
    lora = None

  def split(is_stacked):
    abstract = nnx.eval_shape(
      lambda: transformer.Transformer(cfg, streams, lora, layout, is_stacked)
    )
    graphdef, *kinds = nnx.split(
      abstract, params.BaseParam, params.AdapterParam
    )
    base, adapter = map(nnx.to_pure_dict, kinds)
    return graphdef, base, adapter

  graphdef, base, adapter = split(is_stacked)
  num_streams = streams.num_streams if streams else 0
  if not is_stacked:
    return Built(cfg, graphdef, base, adapter, num_streams=num_streams)
  first_msa = cfg.num_layers - (streams.num_msa_layers if streams else 0)
  return Built(cfg, graphdef, base, split(False)[2], first_msa, num_streams)
