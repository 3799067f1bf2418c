# SPDX-License-Identifier: Apache-2.0
"""Acceptance by chance, to time a drafter before it is trained.

The output means nothing; the calls cost what they would cost.

Axis letters: B rows, M tree nodes, P path length.
"""

import jax
import jax.numpy as jnp

from specstream_jax import sampling
from specstream_jax.decoding import interface, verify

_PURPOSE = 0x5EED  # apart from the keys of the target's noise


def synthetic(
  verification: interface.Verification,
  settings: sampling.RowSettings | None,
  path_length: int,
  *,
  acceptance: float,
) -> verify.Verified:
  """Goes down first children, each with the chance `acceptance`.

  Args:
    verification: the drafts and the target's logits.
    settings: not read: the bonus is the arg max.
    path_length: P.
    acceptance: chance that a draft is accepted, given its parent was.
  """
  del settings
  tree = verify.surviving_tree(verification)
  rows = jnp.arange(tree.tokens.shape[0])
  nodes = jnp.arange(tree.tokens.shape[1])
  leaf, path, going = jnp.zeros_like(rows), [jnp.zeros_like(rows)], True
  accept_length = jnp.zeros_like(rows)
  for depth in range(path_length - 1):
    positions = verification.root_positions + depth
    lucky = _uniform(verification.row_keys, positions) < acceptance
    is_child = (
      (tree.parents == leaf[:, None]) & (nodes > 0)[None] & (tree.tokens >= 0)
    )
    going = going & lucky & is_child.any(axis=1)
    leaf = jnp.where(going, jnp.argmax(is_child, axis=1), leaf)
    accept_length += going
    path.append(leaf)
  draws = jnp.argmax(verification.logits, axis=-1).astype(jnp.int32)
  return verify.Verified(
    jnp.stack(path, axis=1), accept_length, leaf, draws[rows, leaf], draws
  )


def _uniform(keys, positions):
  """[B] numbers in [0, 1), by row and position."""

  def draw(key, position):
    key = jax.random.fold_in(jax.random.fold_in(key, position), _PURPOSE)
    return jax.random.uniform(key)

  return jax.vmap(draw)(keys, positions)
