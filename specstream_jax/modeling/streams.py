# SPDX-License-Identifier: Apache-2.0
"""Stream insertion and the pruning adapter (paper, eq. 3 and section 3).

Axis letters: B rows, A anchors, J streams, D model width.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import params


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
  token.
  """

  def __init__(self, features: int, cfg: config.StreamConfig):
    self.cfg = cfg
    if cfg.embedding == 'learned':
      shape = (cfg.num_streams, features)
      self.embedding = params.AdapterParam(jnp.zeros(shape))
    if cfg.insertion == 'low_rank':
      self.insertion = LowRank(features, cfg.insertion_rank)

  def __call__(self, hidden: arrays.Array) -> arrays.Array:
    """Main-stream hidden states [B, A, D] -> streams [B, A, J, D]."""
    if self.cfg.insertion == 'low_rank':
      hidden = self.insertion(hidden)
    streams = jnp.broadcast_to(
      hidden[:, :, None],
      (*hidden.shape[:2], self.cfg.num_streams, hidden.shape[-1]),
    )
    if self.cfg.embedding == 'learned':
      embedding = self.embedding[...].astype(hidden.dtype)
      # One for all rows, or, with an axis more, one for each.
      streams += embedding.reshape(-1, 1, *embedding.shape[-2:])
    return streams


def stream_positions(
  positions: arrays.Array, cfg: config.StreamConfig
) -> arrays.Array:
  """RoPE positions [B, A * J] of the streams of anchors at `positions` [B, A].

  `anchor`: stream j stands at t. `future`: at t + j, the place of the main
  token it mirrors.
  """
  offsets = jnp.arange(1, cfg.num_streams + 1, dtype=positions.dtype)
  if cfg.position == 'anchor':
    offsets = jnp.zeros_like(offsets)
  spread = positions[:, :, None] + offsets[None, None]
  return spread.reshape(positions.shape[0], -1)
