# SPDX-License-Identifier: Apache-2.0
"""The MLP of a layer, with a gate or without."""

from collections.abc import Callable
import functools

from flax import nnx
import jax

from specstream_jax import arrays, config
from specstream_jax.modeling import fused, layers

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'relu': jax.nn.relu,
}


class Mlp(nnx.Module):
  """down(act(gate(x)) * up(x)) or, without a gate, down(act(up(x)))."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    lora: config.LoraConfig | None,
    layout: str = 'in_out',
  ):
    def linear(name: str, shape: tuple[int, int]) -> layers.Linear:
      adapted = lora if lora and name in lora.modules else None
      return layers.Linear(
        *shape,
        dtype=cfg.dtype,
        lora=adapted,
        layout=fused.of_kernels(layout),
        has_bias=cfg.mlp.has_bias,
        weights_dtype=cfg.weights_dtype,
      )

    wide = (cfg.hidden_size, cfg.intermediate_size)
    self.cfg = cfg.mlp
    if cfg.mlp.is_gated:
      self.gate = linear('gate', wide)
    self.up = linear('up', wide)
    self.down = linear('down', (cfg.intermediate_size, cfg.hidden_size))

  def __call__(self, x: arrays.Array, lora_start: int = 0) -> arrays.Array:
    act = _ACTIVATIONS[self.cfg.activation]
    if self.cfg.is_gated:
      gate = act(self.gate(x, lora_start))
      inner = gate * self.up(x, lora_start)
    else:
      inner = act(self.up(x, lora_start))
    return self.down(inner, lora_start)
