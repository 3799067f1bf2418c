# SPDX-License-Identifier: Apache-2.0
"""Decoder layers, and the ways of running many of them.

Decoding unrolls them, each with weights and a cache of its own. Training may
scan over stacked weights instead: one layer is compiled, not all of them.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import config, partitioning, typing
from specstream_jax.modeling import attention, layers

# What the backward pass keeps of a layer, beside its input; the rest is
# computed again.
REMAT: dict[str, Callable[..., Any] | None] = {
  'none': None,  # keeps everything
  'minimal': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class DecoderLayer(nnx.Module):
  """Pre-norm attention and SwiGLU, for main and stream tokens alike."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    lora: config.LoraConfig | None,
    rotation_step: float,
    layout: str,
  ):
    norm = lambda: layers.RMSNorm(
      cfg.hidden_size, epsilon=cfg.rms_norm_eps, dtype=cfg.dtype
    )
    self.attention_norm, self.mlp_norm = norm(), norm()
    self.attention = attention.Attention(
      cfg, lora, rotation_step=rotation_step, layout=layout
    )
    self.mlp = layers.SwiGLU(cfg, lora, layout)

  def __call__(
    self,
    x: typing.Array,
    rows: attention.Rows,
    cached: attention.KeyValues | None,
  ) -> tuple[typing.Array, attention.New | None]:
    """x [B, T, D] -> x, and the K/V of its main tokens if they are kept."""
    x = partitioning.constrain(x, 'batch', 'length', 'activation')
    attended, new = self.attention(self.attention_norm(x), rows, cached)
    x += attended
    x += self.mlp(self.mlp_norm(x), rows.lora_start)
    return x, new


def run(
  layers_: list[DecoderLayer],
  x: typing.Array,
  rows: attention.Rows,
  cached: list[attention.KeyValues] | None = None,
  remat: str = 'none',
) -> tuple[typing.Array, list[attention.New] | None]:
  """x [B, T, D] through layers one after the other, and their new K/V.

  Args:
    layers_: bottom first.
    x: hidden states.
    rows: of every layer.
    cached: K/V per layer, or None.
    remat: a name of `REMAT`.

  Returns:
    x, and new K/V per layer or None, see `attention.Rows.start`.
  """
  written = []
  for i, layer in enumerate(layers_):
    own = cached[i] if cached else None
    if remat == 'none':
      x, own = layer(x, rows, own)
    else:
      graphdef, state = nnx.split(layer)
      x, own = _call(graphdef, rows, remat)(state, x, own)
    written.append(own)
  return x, None if rows.start is None else written


def scan(
  stack: DecoderLayer,
  x: typing.Array,
  rows: attention.Rows,
  cached: list[attention.KeyValues] | None = None,
  remat: str = 'none',
) -> tuple[typing.Array, list[attention.New] | None]:
  """As `run`, with a layer whose weights are stacks [N, ...]; N may be 0."""
  graphdef, state = nnx.split(stack)
  call = _call(graphdef, rows, remat, prevent_cse=False)

  def body(x, xs):
    return call(xs[0], x, xs[1])

  stacked = (
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *cached) if cached else None
  )
  x, written = jax.lax.scan(body, x, (state, stacked))
  if written is None:
    return x, None
  return x, [
    jax.tree.map(lambda leaf, i=i: leaf[i], written)
    for i in range(len(written.keys))
  ]


def _call(graphdef, rows, remat, prevent_cse=True):
  """(state, x, cached) -> (x, cached), recomputed as `remat` says."""

  def call(state, x, cached):
    return nnx.merge(graphdef, state)(x, rows, cached)

  if remat == 'none':
    return call
  return jax.checkpoint(call, policy=REMAT[remat], prevent_cse=prevent_cse)


def stacked(count: int, layer: DecoderLayer) -> DecoderLayer:
  """A layer whose weights are `count` times those of `layer`, as stacks."""
  graphdef, state = nnx.split(layer)
  state = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), state
  )
  return nnx.merge(graphdef, state)


def check_remat(name: str) -> None:
  """Raises ValueError if `REMAT` has no such policy."""
  if name not in REMAT:
    raise ValueError(
      f'remat is {name!r}; accepted: {", ".join(map(repr, REMAT))}'
    )
