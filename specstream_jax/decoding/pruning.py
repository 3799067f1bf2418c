# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a draft tree go on into the MSA layers (paper, section 3).

Axis letters: B rows, M tree nodes, D model width.
"""

import functools

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import forward, transformer


def best(keep_nodes: int) -> forward.Survivors | None:
  """The `keep_nodes` likeliest nodes M', root included; None (all) for 0."""
  if not keep_nodes:
    return None
  return functools.partial(_survivors, keep_nodes)


def _survivors(
  keep_nodes: int,
  model: transformer.Transformer,
  x: arrays.Array,
  tokens: arrays.Array,
  positions: arrays.Array,
  tree_mask: arrays.Array,
) -> arrays.Array | None:
  """Nodes [B, M'] of highest early-exit path probability.

  A node is scored by its log-probability given its parent, read off the
  parent's state at the insertion layer through o_theta and the LM head, and
  summed along the path.
  """
  if keep_nodes >= tokens.shape[1]:
    return None
  log_probs = jax.nn.log_softmax(model.logits(model.early_hidden(x)), axis=-1)
  is_parent = tree_mask & (positions[:, None] == positions[..., None] - 1)
  parents = jnp.argmax(is_parent, axis=-1)
  depths = positions - positions[:, :1]
  own = jnp.take_along_axis(
    jnp.take_along_axis(log_probs, parents[..., None], axis=1),
    tokens[..., None],
    axis=2,
  )[..., 0]
  tree = tree_lib.DraftTree(tokens, parents, depths)
  scores = tree_lib.path_scores(
    tree, own, max_depth=model.stream_settings.num_streams
  )
  return tree_lib.prune(tree, scores, keep_nodes)[1]
