# SPDX-License-Identifier: Apache-2.0
"""Decoder layers, and the ways of running many of them.

Decoding unrolls them, each with weights and a cache of its own. Training may
scan over stacked weights instead: one layer is compiled, not all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config, partitioning
from specstream_jax.modeling import attention, mlp, norms

# What the backward pass keeps of a layer, beside its input; the rest is
# computed again.
REMAT: dict[str, Callable[..., Any] | None] = {
  'none': None,  # keeps everything
  'minimal': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class DecoderLayer(nnx.Module):
  """Attention and MLP around norms, for main and stream tokens alike.

  `ModelConfig.block` says where the norms stand, and whether both read the
  same input.
  """

  def __init__(
    self,
    cfg: config.ModelConfig,
    lora: config.LoraConfig | None,
    rotation_step: float,
    layout: str,
  ):
    norm = lambda: norms.Norm(cfg.hidden_size, cfg)
    self.cfg = cfg
    if cfg.block != 'post':
      self.attention_norm = norm()
    if cfg.block not in ('post', 'parallel_shared'):
      self.mlp_norm = norm()
    if cfg.block in ('post', 'pre_post'):
      self.attention_post_norm, self.mlp_post_norm = norm(), norm()
    self.attention = attention.Attention(
      cfg, lora, rotation_step=rotation_step, layout=layout
    )
    self.mlp = mlp.Mlp(cfg, lora, layout)

  def __call__(
    self,
    x: arrays.Array,
    rows: attention.Rows,
    cached: attention.KeyValues | None,
  ) -> tuple[arrays.Array, attention.New | None]:
    """x [B, T, D] -> x, and the K/V of its main tokens if they are kept."""
    x = partitioning.constrain(x, 'batch', 'length', 'activation')
    block = self.cfg.block
    has_post = block in ('post', 'pre_post')
    y = x if block == 'post' else self.attention_norm(x)
    attended, new = self.attention(y, rows, cached)
    if block.startswith('parallel'):
      y = y if block == 'parallel_shared' else self.mlp_norm(x)
      return x + self._scaled(attended + self.mlp(y, rows.lora_start)), new
    attended = self.attention_post_norm(attended) if has_post else attended
    x += self._scaled(attended)
    y = x if block == 'post' else self.mlp_norm(x)
    y = self.mlp(y, rows.lora_start)
    x += self._scaled(self.mlp_post_norm(y) if has_post else y)
    return x, new

  def keys_and_values(
    self, x: arrays.Array, rows: attention.Rows
  ) -> attention.New:
    """What others see of x [B, N, D]; nothing goes through the layer."""
    y = x if self.cfg.block == 'post' else self.attention_norm(x)
    return self.attention.keys_and_values(y, rows)

  def _scaled(self, y: arrays.Array) -> arrays.Array:
    scale = self.cfg.residual_scale
    return y if scale == 1.0 else y * jnp.asarray(scale, y.dtype)


def run(
  layers_: list[DecoderLayer],
  x: arrays.Array,
  rows: Sequence[attention.Rows],
  cached: list[attention.KeyValues] | None = None,
  remat: str = 'none',
) -> tuple[arrays.Array, list[attention.New]]:
  """x [B, T, D] through layers one after the other, and their new K/V.

  Args:
    layers_: bottom first.
    x: hidden states.
    rows: of each layer.
    cached: K/V per layer, or None.
    remat: a name of `REMAT`.

  Returns:
    x, and new K/V per layer or none, see `attention.Rows.start`.
  """
  written = []
  for i, layer in enumerate(layers_):
    own = cached[i] if cached else None
    if remat == 'none':
      x, own = layer(x, rows[i], own)
    else:
      graphdef, state = nnx.split(layer)
      x, own = _call(graphdef, rows[i], remat)(state, x, own, {})
    written.append(own)
  return x, [] if rows[0].start is None else written


def scan(
  stack: DecoderLayer,
  x: arrays.Array,
  rows: Sequence[attention.Rows],
  cached: list[attention.KeyValues] | None = None,
  remat: str = 'none',
) -> tuple[arrays.Array, list[attention.New]]:
  """As `run`, with a layer whose weights are stacks [N, ...]; N may be 0.

  Layers that see or turn differently share one body: tables and masks of each
  kind are stacked, and a layer takes those of its kind.
  """
  graphdef, state = nnx.split(stack)
  call = _call(graphdef, rows[0], remat, prevent_cse=False)
  kinds = [i for i, one in enumerate(rows) if _first(rows, one) == i]
  tables = [rows[i].tables() for i in kinds]
  which = jnp.array([kinds.index(_first(rows, one)) for one in rows])
  if len(kinds) > 1:
    tables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)

  def body(x, xs):
    state, cached, kind = xs
    own = {}
    if len(kinds) > 1:
      own = jax.tree.map(lambda leaf: leaf[kind], tables)
    return call(state, x, cached, own)

  stacked = (
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *cached) if cached else None
  )
  x, written = jax.lax.scan(body, x, (state, stacked, which))
  if written is None:
    return x, []
  return x, [
    jax.tree.map(lambda leaf, i=i: leaf[i], written)
    for i in range(len(written.keys))
  ]


def _first(rows, wanted):
  """Index of the first layer that has the same rows."""
  return next(i for i, one in enumerate(rows) if one is wanted)


def _call(graphdef, rows, remat, prevent_cse=True):
  """(state, x, cached, tables) -> (x, cached), recomputed as `remat` says.

  `tables` replace those of `rows`.
  """

  def call(state, x, cached, tables):
    return nnx.merge(graphdef, state)(x, rows._replace(**tables), cached)

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
