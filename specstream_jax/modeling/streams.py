# SPDX-License-Identifier: Apache-2.0
"""Stream insertion and the pruning adapter (paper, eq. 3 and section 3).

Axis letters: B rows, A anchors, or groups of slots, J streams, D model width.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import params


class Slots(NamedTuple):
  """Which streams a training pass runs, where not every anchor has all.

  A group has room for J streams. It holds those of one anchor, or the first
  ones of several anchors, block after block. Streams 1 2 3 of position 4 and
  stream 1 of position 9, J = 4:

    anchors 4 4 4 9
    numbers 0 1 2 0

  A stream sees only lower ones of its own anchor, so those of a block are what
  they would be if the anchor had all J.

  Attributes:
    anchors: [B, A, J] int32, position whose stream a slot holds.
    numbers: [B, A, J] int32, which one, from 0; 0 begins a block.
  """

  anchors: arrays.Array
  numbers: arrays.Array


def own_mask(numbers: arrays.Array) -> arrays.Array:
  """Which slots of its group a slot sees, bool [B, A, J, J]; for 0 1 0:

  1 0 0
  1 1 0
  0 0 1

  Args:
    numbers: see `Slots`.
  """
  block = jnp.cumsum(numbers == 0, axis=-1)
  same = block[..., :, None] == block[..., None, :]
  return same & jnp.tri(numbers.shape[-1], dtype=bool)[None, None]


class LowRank(nnx.Module):
  """x + up(down(x)), bias-free; the identity while `up` is zero.

  Without the residual, up(down(x)).
  """

  def __init__(self, features: int, rank: int, *, is_residual: bool = True):
    self.is_residual = is_residual
    self.down = params.AdapterParam(jnp.zeros((features, rank)))
    self.up = params.AdapterParam(jnp.zeros((rank, features)))

  def __call__(self, x: arrays.Array) -> arrays.Array:
    low = x @ self.down[...].astype(x.dtype)
    change = low @ self.up[...].astype(x.dtype)
    return x + change if self.is_residual else change


class Coupling(nnx.Module):
  """What a draft token's parent adds to the stream state that ranks it.

  A stream predicts its token whatever the token before it turns out to be. In
  a tree that token is known: the parent. With e the parent's embedding and h
  the normalised stream state, up(down(e / rms(e))) is added to h in front of
  the LM head or, of kind `mlp`, up(silu(down(e / rms(e)) + state(h))), as what
  a parent means depends on what the stream has seen. Zero while `up` is. Ours,
  beyond the paper; samplers of this kind are in arXiv 2507.11851.
  """

  def __init__(self, features: int, rank: int, kind: str = 'bilinear'):
    self.down = params.AdapterParam(jnp.zeros((features, rank)))
    self.up = params.AdapterParam(jnp.zeros((rank, features)))
    self.sees_state = kind == 'mlp'
    if self.sees_state:
      self.state = params.AdapterParam(jnp.zeros((features, rank)))

  def __call__(
    self, embedding: arrays.Array, hidden: arrays.Array
  ) -> arrays.Array:
    """Corrections float32 [..., D] of the stream states.

    Args:
      embedding: [..., D] of the parents.
      hidden: [..., D] normalised stream states, of a shape that broadcasts.
    """
    embedding = embedding.astype(jnp.float32)
    square = jnp.mean(embedding**2, axis=-1, keepdims=True)
    low = (embedding * jax.lax.rsqrt(square + 1e-12)) @ self.down[...]
    if self.sees_state:
      low = jax.nn.silu(low + hidden.astype(jnp.float32) @ self.state[...])
    return low @ self.up[...]


class StreamInsertion(nnx.Module):
  """S_tj = f_eta(M_t) + P_j at the input of the first MSA layer.

  Paper: f_eta is a low-rank linear map or the identity. Here the low-rank map
  is added to the identity, because a map of rank 8 alone would discard the
  token. Of kind `mask`, S_tj = P_j: the token is seen by attention alone, as in
  arXiv 2507.11851.
  """

  def __init__(self, features: int, cfg: config.StreamConfig):
    self.cfg = cfg
    if cfg.embedding == 'learned':
      shape = (cfg.num_streams, features)
      self.embedding = params.AdapterParam(jnp.zeros(shape))
    if cfg.insertion == 'low_rank':
      self.insertion = LowRank(features, cfg.insertion_rank)

  def __call__(
    self, hidden: arrays.Array, slots: Slots | None = None
  ) -> arrays.Array:
    """Streams [B, A, J, D] from main-stream hidden states.

    Args:
      hidden: [B, A, D] of the anchors; with slots [B, A, J, D] of theirs.
      slots: None if every anchor has all its streams.
    """
    if self.cfg.insertion == 'low_rank':
      hidden = self.insertion(hidden)
    if self.cfg.insertion == 'mask':
      hidden = jnp.zeros_like(hidden)
    if slots is None:
      count = self.cfg.num_streams
      shape = (*hidden.shape[:2], count, hidden.shape[-1])
      hidden = jnp.broadcast_to(hidden[:, :, None], shape)
    if self.cfg.embedding == 'value_rotation':
      return hidden
    embedding = self.embedding[...].astype(hidden.dtype)
    if slots is not None:
      return hidden + embedding[slots.numbers]
    # One for all rows, or, with an axis more, one for each.
    return hidden + embedding.reshape(-1, 1, *embedding.shape[-2:])


def stream_positions(
  positions: arrays.Array,
  cfg: config.StreamConfig,
  slots: Slots | None = None,
) -> arrays.Array:
  """RoPE positions [B, A * J] of streams.

  `anchor`: stream j stands at t. `future`: at t + j, the place of the main
  token it mirrors.

  Args:
    positions: int32 [B, A] of the anchors; with slots [B, A * J] of theirs.
    cfg: of the streams.
    slots: None if every anchor has all its streams.
  """
  if slots is not None:
    offsets = 1 + slots.numbers
    positions = positions.reshape(offsets.shape)
  else:
    offsets = jnp.arange(1, cfg.num_streams + 1, dtype=positions.dtype)
    positions, offsets = positions[:, :, None], offsets[None, None]
  if cfg.position == 'anchor':
    offsets = jnp.zeros_like(offsets)
  return (positions + offsets).reshape(len(positions), -1)
