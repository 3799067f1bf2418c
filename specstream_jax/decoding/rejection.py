# SPDX-License-Identifier: Apache-2.0
"""Verification of drafts that were drawn at random: accept or correct them.

The children of a node take an accept test in the order of their draws, with
probability min(1, target_probs / draft_probs) of the child's token; a rejection
leaves the residual norm(max(target_probs - draft_probs, 0)) for the next one,
and what is left after the last child is the law of the bonus token.

- `recursive_rejection`: siblings drawn without replacement; a rejected token
  also leaves the draft law (RSD, arXiv 2402.14160, algorithm 1).
- `multi_step`: independent siblings; the draft law stays (SpecInfer, arXiv
  2305.09781, algorithm 2).

Each test keeps the law: accepted or not, the token at a node follows the target
law, provided that a child follows its draft law given its earlier siblings and
given all that decided whether it takes a test. Hence a pruned child takes its
test like any other; if it is accepted the path ends at its parent and its token
is the bonus. An unused node (token -1) takes none.

Axis letters: B rows, M tree nodes (M' surviving), P path length, V vocabulary.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, sampling
from specstream_jax.decoding import interface, verify

_TINY = 1e-37


class Laws(NamedTuple):
  """What the next sibling is tested with.

  Attributes:
    target_probs: [B, V] float32, law of the token still to find.
    draft_probs: [B, V] float32, law of the sibling given the earlier ones.
  """

  target_probs: arrays.Array
  draft_probs: arrays.Array


class Walk(NamedTuple):
  """Where the accept tests led, nodes numbered as in the drafted tree.

  Attributes:
    leaf: [B] int32 last accepted node that has logits.
    accept_length: [B] int32 depth of the leaf.
    laws: at the leaf, after its children were tested.
    pruned_token: [B] int32 accepted token of a pruned child of the leaf, or -1.
    accept_probs: [B, M] float32, of each node that took the test; -1 elsewhere.
    is_done: [B] bool.
  """

  leaf: arrays.Array
  accept_length: arrays.Array
  laws: Laws
  pruned_token: arrays.Array
  accept_probs: arrays.Array
  is_done: arrays.Array


def accept_probability(laws: Laws, tokens: arrays.Array) -> arrays.Array:
  """[B] float32 with which the drafts `tokens` [B] are accepted."""
  rows = jnp.arange(tokens.shape[0])
  target_prob = laws.target_probs[rows, tokens]
  draft_prob = laws.draft_probs[rows, tokens]
  return jnp.minimum(1.0, target_prob / jnp.maximum(draft_prob, _TINY))


def without_replacement(laws: Laws, tokens: arrays.Array) -> Laws:
  """Laws after `tokens` [B] were rejected; siblings differ."""
  rows = jnp.arange(tokens.shape[0])
  left = laws.draft_probs.at[rows, tokens].set(0.0)
  return Laws(_residual(laws), _normalize(left, laws.draft_probs))


def with_replacement(laws: Laws, tokens: arrays.Array) -> Laws:
  """Laws after `tokens` [B] were rejected; siblings are independent."""
  del tokens
  return Laws(_residual(laws), laws.draft_probs)


def _residual(laws):
  left = jnp.maximum(laws.target_probs - laws.draft_probs, 0.0)
  return _normalize(left, laws.target_probs)


def _normalize(left, otherwise):
  """`left` [B, V] summing to 1; `otherwise` where rounding left nothing."""
  total = left.sum(axis=-1, keepdims=True)
  return jnp.where(total > 0, left / jnp.maximum(total, _TINY), otherwise)


Reject = Callable[[Laws, arrays.Array], Laws]


def walk(
  verification: interface.Verification,
  settings: sampling.RowSettings | None,
  uniforms: arrays.Array,
  reject: Reject,
) -> Walk:
  """Tests the children of the root, then those of the accepted child, and on.

  Args:
    verification: one tree per row, with the law of its drafts.
    settings: how the target draws.
    uniforms: [B, M] float32 in [0, 1); node m passes its test if uniforms[m] is
      below its accept probability.
    reject: `without_replacement` or `with_replacement`.

  Raises:
    ValueError: the drafts come without their law.
  """
  tree = verification.tree
  if tree.law is None:
    raise ValueError(
      'the draft tree has no law to verify with (it was chosen, not drawn); '
      "use verifier 'walk', or drafting 'gumbel_top_k', 'beam' or 'independent'"
    )
  batch, num_nodes = tree.tokens.shape
  nobody = jnp.zeros((batch,), jnp.int32)
  start = Walk(
    nobody,
    nobody,
    _laws_at(verification, nobody, settings),
    nobody - 1,
    jnp.full((batch, num_nodes), -1.0),
    nobody > 0,
  )
  descend = functools.partial(
    _descend, verification, settings, uniforms, reject
  )
  return jax.lax.while_loop(lambda w: ~w.is_done.all(), descend, start)


def _laws_at(verification, node, settings):
  """Laws of the children of `node` [B], none tested yet."""
  rows, draft = jnp.arange(node.shape[0]), verification.tree.law
  index = _surviving_index(verification, node)
  return Laws(
    sampling.law(verification.logits[rows, index], settings),
    jnp.exp(draft.log_probs[rows, draft.index[rows, node]]),
  )


def _surviving_index(verification, nodes):
  """Index [B] among the nodes with logits; of pruned nodes it means nothing."""
  if verification.survivors is None:
    return nodes
  index = jax.vmap(jnp.searchsorted)(verification.survivors, nodes)
  return jnp.minimum(index, verification.survivors.shape[1] - 1)


def _descend(verification, settings, uniforms, reject, state):
  """Tests the children of the leaf and steps to the one accepted."""
  tree, rows = verification.tree, jnp.arange(state.leaf.shape[0])
  accepted, laws, accept_probs = _test_children(tree, uniforms, reject, state)
  index = _surviving_index(verification, accepted)
  has_logits = jnp.ones_like(state.is_done)
  if verification.survivors is not None:
    has_logits = verification.survivors[rows, index] == accepted
  is_accepted = accepted > 0
  moves = is_accepted & has_logits
  new_laws = _laws_at(verification, accepted, settings)
  choose = lambda new, old: jnp.where(moves[:, None], new, old)
  return Walk(
    jnp.where(moves, accepted, state.leaf),
    state.accept_length + moves,
    jax.tree.map(choose, new_laws, laws),
    jnp.where(
      is_accepted & ~has_logits, tree.tokens[rows, accepted], state.pruned_token
    ),
    accept_probs,
    ~moves,
  )


def _test_children(tree, uniforms, reject, state):
  """The child [B] that was accepted (0: none), and the laws that are left."""
  batch, num_nodes = tree.tokens.shape
  rows, nodes = jnp.arange(batch), jnp.arange(num_nodes)
  is_child = (tree.parents == state.leaf[:, None]) & (tree.tokens >= 0)
  is_child &= (nodes > 0)[None] & ~state.is_done[:, None]

  def test(carry):
    """The next untested child of each row takes its test."""
    accepted, untested, laws, accept_probs = carry
    child, is_tested = jnp.argmax(untested, axis=1), untested.any(axis=1)
    token = jnp.maximum(tree.tokens[rows, child], 0)
    prob = accept_probability(laws, token)
    passes = is_tested & (uniforms[rows, child] < prob)
    fails = (is_tested & ~passes)[:, None]
    laws = jax.tree.map(
      lambda new, old: jnp.where(fails, new, old), reject(laws, token), laws
    )
    index = jnp.where(is_tested, child, num_nodes)
    return (
      jnp.where(passes, child, accepted).astype(jnp.int32),
      untested & (nodes[None] != child[:, None]) & ~passes[:, None],
      laws,
      accept_probs.at[rows, index].set(prob, mode='drop'),
    )

  carry = (jnp.zeros_like(state.leaf), is_child, state.laws, state.accept_probs)
  carry = jax.lax.while_loop(lambda carry: carry[1].any(), test, carry)
  accepted, _, laws, accept_probs = carry
  return accepted, laws, accept_probs


def _verify(reject, verification, settings, path_length):
  keys = sampling.call_keys(
    verification.row_keys, verification.root_positions, sampling.ACCEPT_NOISE
  )
  num_nodes = verification.tree.tokens.shape[1]
  draw = lambda key: jax.random.uniform(key, (num_nodes,), jnp.float32)
  walked = walk(verification, settings, jax.vmap(draw)(keys), reject)
  positions = verification.root_positions + walked.accept_length
  # Neither drafts nor tests have seen the target's own noise.
  noise = sampling.gumbel(
    verification.row_keys, positions[:, None], verification.logits.shape[-1]
  )[:, 0]
  drawn = jnp.argmax(jnp.log(walked.laws.target_probs) + noise, axis=-1)
  token = walked.pruned_token
  return verified_at(
    verification,
    _surviving_index(verification, walked.leaf),
    walked.accept_length,
    jnp.where(token >= 0, token, drawn).astype(jnp.int32),
    path_length,
  )


def verified_at(
  verification: interface.Verification,
  leaf: arrays.Array,
  accept_length: arrays.Array,
  bonus: arrays.Array,
  path_length: int,
) -> verify.Verified:
  """What the loop wants to know of a walk that ended at a surviving node.

  Args:
    verification: the tree.
    leaf: [B] int32, index among the surviving nodes.
    accept_length: [B] int32, depth of the leaf.
    bonus: [B] int32.
    path_length: P.
  """
  parents = verify.surviving_tree(verification).parents
  rows, node, path = jnp.arange(leaf.shape[0]), leaf, []
  for depth in reversed(range(path_length)):
    path.append(node)
    above = parents[rows, node]
    node = jnp.where(depth <= accept_length, above, node)
  path = jnp.stack(path[::-1], axis=1).astype(jnp.int32)
  return verify.Verified(path, accept_length, leaf, bonus)


def recursive_rejection(
  verification: interface.Verification,
  settings: sampling.RowSettings | None,
  path_length: int,
) -> verify.Verified:
  """An `interface.Verifier` for siblings drawn without replacement."""
  return _verify(without_replacement, verification, settings, path_length)


def multi_step(
  verification: interface.Verification,
  settings: sampling.RowSettings | None,
  path_length: int,
) -> verify.Verified:
  """An `interface.Verifier` for independent siblings."""
  return _verify(with_replacement, verification, settings, path_length)
