# SPDX-License-Identifier: Apache-2.0
"""Splitting a Transformer once into (graphdef, base, adapter)."""

from typing import Any, NamedTuple

from flax import nnx

from specstream_jax import config, typing
from specstream_jax.modeling import params, transformer


class Built(NamedTuple):
  """A model's structure and the shapes of its two weight dicts.

  Attributes:
    cfg: sizes of the base model.
    graphdef: hashable structure, static under jit.
    base: nested dict of ShapeDtypeStruct.
    adapter: nested dict of ShapeDtypeStruct; empty without adapter weights.
  """

  cfg: config.ModelConfig
  graphdef: Any
  base: dict[Any, Any]
  adapter: dict[Any, Any]

  def merge(
    self, base: typing.Params, adapter: typing.Params
  ) -> transformer.Transformer:
    """The module with these weights; call it inside the compiled function."""
    return nnx.merge(self.graphdef, base, adapter)


def build(
  cfg: config.ModelConfig,
  streams: config.StreamConfig | None = None,
  lora: config.LoraConfig | None = None,
  layout: str = 'in_out',
) -> Built:
  """Builds the structure without allocating a weight.

  Args:
    cfg: sizes of the base model.
    streams: settings of the streams, if any.
    lora: LoRA settings, if any.
    layout: of the kernels, `in_out` or `out_in`, see `layers.Linear`.

  Raises:
    ValueError: the model has fewer layers than there are MSA layers.
  """
  if streams:
    streams.check_fits(cfg)
  if lora and not lora.rank:
    lora = None
  abstract = nnx.eval_shape(
    lambda: transformer.Transformer(cfg, streams, lora, layout)
  )
  graphdef, base, adapter = nnx.split(
    abstract, params.BaseParam, params.AdapterParam
  )
  return Built(cfg, graphdef, nnx.to_pure_dict(base), nnx.to_pure_dict(adapter))
