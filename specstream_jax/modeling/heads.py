# SPDX-License-Identifier: Apache-2.0
"""Medusa heads: one residual block and one vocabulary projection per token.

Medusa (arXiv 2401.10774, section 2.1.1): head j reads the last normalised
hidden state h of the main stream and predicts with

    softmax(U_j (h + SiLU(W_j h + b_j)))

Its vocabulary projection is its own, hence γ(h² + hV) weights and γh biases.

Axis letters: J heads (γ), D model width (h in the paper), V vocabulary.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import layers, params


class Head(nnx.Module):
  """One head; both matrices lie as [out, in]."""

  def __init__(self, cfg: config.ModelConfig):
    width = cfg.hidden_size
    self.kernel = params.AdapterParam(jnp.zeros((width, width)))
    self.bias = params.AdapterParam(jnp.zeros((width,)))
    self.projection = params.AdapterParam(jnp.zeros((cfg.vocab_size, width)))

  def logits(self, hidden: arrays.Array) -> arrays.Array:
    """Normalised hidden states [..., D] -> float32 logits [..., V]."""
    cast = lambda leaf: leaf[...].astype(hidden.dtype)
    inner = layers.project(hidden, cast(self.kernel))
    inner += layers.along_last(cast(self.bias), inner)
    hidden += jax.nn.silu(inner)
    return layers.project(hidden, cast(self.projection), jnp.float32)


class Medusa(nnx.Module):
  """The heads of one model; head j (from 0) at t predicts the token t + 2 + j."""

  def __init__(self, cfg: config.ModelConfig, num_heads: int):
    self.heads = nnx.List(Head(cfg) for _ in range(num_heads))

  def logits(
    self, hidden: arrays.Array, num_heads: int | None = None
  ) -> arrays.Array:
    """[..., D] -> float32 [..., J, V] of the first `num_heads`, all if None."""
    heads = list(self.heads)[:num_heads]
    return jnp.stack([head.logits(hidden) for head in heads], axis=-2)


class Built(NamedTuple):
  """Structure of the heads and the shapes of their weights.

  Attributes:
    num_heads: J.
    graphdef: hashable structure, static under jit.
    shapes: nested dict of float32 ShapeDtypeStruct.
    logit_divisor: of the base, whose LM head the heads start from.
  """

  num_heads: int
  graphdef: Any
  shapes: dict[Any, Any]
  logit_divisor: float = 1.0

  def merge(self, weights: arrays.Params) -> Medusa:
    """The module with these weights; call it inside the compiled function."""
    return nnx.merge(self.graphdef, weights)


def build(cfg: config.ModelConfig, num_heads: int) -> Built:
  """Builds the structure without allocating a weight."""
  abstract = nnx.eval_shape(lambda: Medusa(cfg, num_heads))
  graphdef, shapes = nnx.split(abstract)
  return Built(num_heads, graphdef, nnx.to_pure_dict(shapes), cfg.logit_divisor)


def count(cfg: config.ModelConfig, num_heads: int) -> int:
  """γ(h² + hV) weights and γh biases."""
  width, vocab_size = cfg.hidden_size, cfg.vocab_size
  return num_heads * (width * width + width * vocab_size + width)


def init(built: Built, base: arrays.Params) -> dict[Any, Any]:
  """Heads that start as the base's own next-token prediction.

  W and b are zero, U is the LM head (the same array for every head: copy it
  before it is donated).

  Args:
    built: from `build`.
    base: nested base weights, kernels as [in, out].
  """
  is_tied = 'lm_head' not in base
  head = base['embed']['embedding'] if is_tied else base['lm_head']['kernel'].T
  if built.logit_divisor != 1.0:
    head = head / built.logit_divisor

  def leaf(path, shape):
    if path[-1].key == 'projection':
      return head
    return jnp.zeros(shape.shape, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, built.shapes)
