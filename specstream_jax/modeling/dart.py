# SPDX-License-Identifier: Apache-2.0
"""One transformer layer that drafts several tokens in one pass (DART).

DART (arXiv 2601.19278): one layer reads the target's hidden states, then mask
positions that stand for the tokens to come, and predicts all of them at once.
Here, for the token x_t at position t with the target's last hidden state h_t:

    prefix    z_t = fuse [norm(h_t); norm(embed(x_t))]             t <= leaf
    root      z   = fuse [norm(h_leaf); norm(embed(root))]         leaf + 1
    mask i    m_i, learned                                 leaf + 2, leaf + 3 …

Root and masks attend to the prefix and to those before them; what leaves the
layer behind root and masks goes through a norm and the target's LM head. The
prefix gives keys and values alone, from which nobody queries.

Paper: hidden states of three layers, and a prefix of [h_t; embed(x_{t+1})].
Here: the last state, and the token itself in the prefix, as a pass knows h_t
and x_t of every node of its tree, but not which child will be accepted; so the
keys are written with those of the target's layers, and committed with them.

Axis letters: B rows, T positions, S prefix positions, A anchors, J drafts,
K KV heads, H head dim, D model width.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import (
  attention,
  blocks,
  layers,
  norms,
  params,
  rope,
)

# By so much masks differ at the start.
_MASK_STD = 0.02


class Dart(nnx.Module):
  """The layer, and what stands around it."""

  def __init__(self, cfg: config.ModelConfig, num_drafts: int, layout: str):
    norm = lambda: norms.Norm(cfg.hidden_size, cfg)
    self.cfg = cfg
    self.hidden_norm, self.embedding_norm = norm(), norm()
    shape = (2 * cfg.hidden_size, cfg.hidden_size)
    self.fuse = layers.Linear(*shape, dtype=cfg.dtype, layout=layout)
    self.masks = params.BaseParam(
      jnp.zeros((num_drafts - 1, cfg.hidden_size), cfg.dtype)
    )
    self.layer = blocks.DecoderLayer(cfg, None, 0.0, layout)
    self.final_norm = norm()

  def prefix(
    self,
    hidden: arrays.Array,
    embedded: arrays.Array,
    positions: arrays.Array,
  ) -> attention.New:
    """Keys and values [B, T, K, H] of tokens whose hidden states are known.

    Args:
      hidden: [B, T, D] of the target, normalised.
      embedded: [B, T, D] the same tokens in front of its first layer.
      positions: [B, T] int32.
    """
    x = self._fused(hidden, embedded)
    length = x.shape[1]
    mask = jnp.ones((1, length, length), bool)  # nobody queries
    rows = attention.Rows(*self._turns(positions), mask, length, 0)
    return self.layer.keys_and_values(x, rows)

  def drafts(
    self,
    hidden: arrays.Array,
    embedded: arrays.Array,
    positions: arrays.Array,
    prefix: attention.KeyValues,
    visible: arrays.Array,
    num_drafts: int,
  ) -> arrays.Array:
    """States [B, A, J, D] of the tokens behind roots, ready for the LM head.

    Args:
      hidden: [B, A, D] of the target at the leaves, normalised.
      embedded: [B, A, D] the roots in front of its first layer.
      positions: [B, A] int32 of the roots.
      prefix: [B, K, S, H] each, of `prefix`.
      visible: [B, A, S] bool, what is prefix to a leaf; itself is.
      num_drafts: J, at most those of the layer.
    """
    root = self._fused(hidden, embedded)[:, :, None]
    masks = self.masks[...][: num_drafts - 1].astype(root.dtype)
    shape = (*root.shape[:2], num_drafts - 1, root.shape[-1])
    masks = jnp.broadcast_to(masks[None, None], shape)
    x = jnp.concatenate([root, masks], axis=2)
    shape = x.shape
    offsets = jnp.arange(num_drafts, dtype=positions.dtype)[None, None]
    positions = (positions[..., None] + offsets).reshape(len(x), -1)
    visible = jnp.repeat(visible, num_drafts, axis=1)
    rows = attention.Rows(
      *self._turns(positions), visible[..., :0], 0, num_drafts
    )._replace(cache_mask=visible)
    flat, _ = self.layer(x.reshape(len(x), -1, shape[-1]), rows, prefix)
    return self.final_norm(flat).reshape(shape)

  def _fused(self, hidden, embedded):
    """What the layer reads of states and tokens, both [B, T, D]."""
    parts = self.hidden_norm(hidden), self.embedding_norm(embedded)
    both = jnp.concatenate(parts, axis=-1)
    return self.fuse(both.astype(self.cfg.dtype))

  def _turns(self, positions):
    """cos and sin of the layer's RoPE; None without."""
    if self.cfg.num_learned_positions:
      return None, None
    return rope.tables(positions, self.cfg, self.cfg.kinds[0])


class Built(NamedTuple):
  """Structure of a layer and the shapes of its weights.

  Attributes:
    cfg: of the layer.
    num_drafts: J, tokens behind the root.
    graphdef: hashable structure, static under jit.
    shapes: nested dict of ShapeDtypeStruct.
  """

  cfg: config.ModelConfig
  num_drafts: int
  graphdef: Any
  shapes: dict[Any, Any]

  def merge(self, weights: arrays.Params) -> Dart:
    """The module with these weights; call it inside the compiled function."""
    return nnx.merge(self.graphdef, weights)


def sizes(cfg: config.ModelConfig, dtype: str) -> config.ModelConfig:
  """Those of the layer of a target: as its layers that see everything."""
  kind = 'full' if 'full' in cfg.kinds else cfg.kinds[-1]
  is_near = kind == 'window'
  return dataclasses.replace(
    cfg,
    num_layers=1,
    layer_kinds=() if kind == 'full' else (kind,),
    window=cfg.window if is_near else 0,
    local_rope_theta=cfg.local_rope_theta if is_near else 0.0,
    dtype=dtype,
    weights_dtype='',
  )


def build(
  cfg: config.ModelConfig,
  num_drafts: int,
  *,
  dtype: str,
  layout: str = 'in_out',
) -> Built:
  """Builds the structure without allocating a weight.

  Args:
    cfg: of the target.
    num_drafts: J, at least 2.
    dtype: of the layer's weights.
    layout: of its kernels, see `layers.Linear`.
  """
  own = sizes(cfg, dtype)
  abstract = nnx.eval_shape(lambda: Dart(own, num_drafts, layout))
  graphdef, shapes = nnx.split(abstract)
  return Built(own, num_drafts, graphdef, nnx.to_pure_dict(shapes))


def count(cfg: config.ModelConfig, num_drafts: int) -> int:
  """Weights of a layer."""
  return params.count(build(cfg, num_drafts, dtype='float32').shapes)


def init(
  built: Built,
  base: arrays.FlatParams,
  key: arrays.Array,
  mean: arrays.Array | None = None,
) -> dict[Any, Any]:
  """A layer that starts as the target's last one, and adds nothing yet.

  What it adds to its input, `out` and `down`, is zero; the input is the normed
  state, which the target's own norm has left already. So the norm behind is
  flat, as large as the target's: a second one would sharpen what the first
  says. Masks that start as small noise say tokens at random, and surely.

  Args:
    built: from `build`, kernels as [in, out].
    base: flat weights of the target, likewise.
    key: of the masks.
    mean: [D] normed state that masks start near, see
      `training.dart_losses.mean_state`; zero if not given.
  """
  last = 1 + max(
    int(path.split('/')[1]) for path in base if path.startswith('layers/')
  )
  flat = {}
  for path, shape in params.flatten(built.shapes).items():
    source = path.replace('layer/', f'layers/{last - 1}/')
    leaf = jnp.zeros(shape.shape)
    if path == 'masks':
      leaf = _MASK_STD * jax.random.normal(key, shape.shape)
      leaf = leaf if mean is None else leaf + mean[None]
    elif path == 'fuse/kernel':
      width = shape.shape[1]
      leaf = jnp.eye(2 * width, width)  # the state alone
    elif path == 'final_norm/scale':
      leaf = leaf + _flat(jnp.asarray(base[path], 'float32'), built.cfg)
    elif path.endswith('norm/scale') and source not in base:
      leaf = leaf + (0.0 if built.cfg.norm.is_unit_offset else 1.0)
    elif source in base and not path.endswith(_LEFT_OUT):
      leaf = base[source]
    flat[path] = jnp.asarray(leaf, shape.dtype)
  return params.unflatten(flat)


def _flat(scale, cfg):
  """One number instead of a norm's scale [D], of the same RMS."""
  offset = 1.0 if cfg.norm.is_unit_offset else 0.0
  return jnp.sqrt(jnp.mean((scale + offset) ** 2)) - offset


# Zero at the start: what the layer adds, and what the state has already.
_LEFT_OUT = (
  *('attention/out/kernel', 'mlp/down/kernel'),
  *('attention/out/bias', 'mlp/down/bias', 'final_norm/bias'),
)
