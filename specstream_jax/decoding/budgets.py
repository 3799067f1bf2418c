# SPDX-License-Identifier: Apache-2.0
"""How much of a draft tree a call verifies follows what the drafts promise.

There is a program of one step for each of a few sizes of tree. The best k nodes
of a tree are a tree (`tree.likeliest`), and a call is expected to accept as
many tokens as the probabilities of its nodes add up to. Before each call the
size is taken that promises most for what it costs; where none promises more
than a plain step gives, drafts pause (`pauses`). What the drafts say is held
against what came of it: the ratio of the two, lately, corrects it.

The tokens stay those of plain decoding. The verifier must be one that draws the
target's token first, whatever is in the tree (`verify.walk`): then a choice
made of anything but that draw cannot change its law, and the choice sees
drafts, their probabilities, and tokens that were emitted before. Rejection
rules are left out for a reason. They need siblings to be draws from a known
law. A size chosen by the probabilities of the very tokens that were drawn, or a
node dropped for its own, leaves siblings that follow another one.

Axis letters: B rows, M tree nodes including the root, K sizes.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.config import budgets as config_budgets, checks
from specstream_jax.decoding import (
  interface,
  loop,
  pauses,
  stopping,
  tree as tree_lib,
)

# Another size must promise so much more to be taken.
_MARGIN = 1.05
# Accepted drafts that a promise is worth at first, as if so many had been right
# of as many; and what is left of an observation after each call with drafts.
_STRENGTH = 4.0
_KEPT = 0.8


class Trust(NamedTuple):
  """What is known of the drafts' promises, and the size that was taken last.

  Attributes:
    promised: [] float32 drafts per row that should have been right, lately.
    right: [] float32 of them, those that were.
    level: [] int32 index of the size that was verified last.
  """

  promised: arrays.Array
  right: arrays.Array
  level: arrays.Array


def check(sizes: Sequence[config_budgets.Size], num_nodes: int) -> None:
  """Raises ValueError if the largest size is not that of the drafter's tree."""
  checks.check(
    sizes[-1].nodes == num_nodes,
    f'the largest of the budgets has {sizes[-1].nodes} nodes but the draft tree '
    f'has {num_nodes}; end the budgets with {num_nodes}, or use '
    f'num_nodes={sizes[-1].nodes}',
  )


def begin() -> pauses.Gauge:
  """Before anything is known: drafts are taken at their word."""
  trust = Trust(jnp.float32(0), jnp.float32(0), jnp.int32(0))
  return pauses.begin(1.0)._replace(tries=jnp.int32(1), trust=trust)


def run(
  setup: interface.DecodeSetup,
  plain: interface.DecodeSetup,
  params: Any,
  state: loop.DecodeState,
  gauge: pauses.Gauge,
  max_steps: arrays.Array,
  stops: stopping.StopTexts | None = None,
  *,
  sizes: Sequence[config_budgets.Size],
) -> tuple[loop.DecodeState, pauses.Gauge]:
  """As `pauses.run`, with a size of tree for each call.

  Args:
    setup: with drafts that say how likely they are, verified by `verify.walk`.
    plain: of the same model without, see `plain.without_drafts`.
    params: weights.
    state: of the rows.
    gauge: from `begin`, or from the run before.
    max_steps: at most so many.
    stops: stop texts.
    sizes: ascending; the last is that of the drafter's trees.
  """

  def verify(nodes: int):
    def branch(state):
      tree = state.tree
      if nodes < setup.drafter.size:
        assert tree.scores is not None
        tree = tree_lib.likeliest(tree, tree.scores, nodes)
      state = dataclasses.replace(state, tree=tree)
      return loop.step(setup, params, state, stops=stops)

    return branch

  branches = [verify(size.nodes) for size in sizes]

  def step(before, gauge):
    trust, promised = gauge.trust, promises(before, sizes)
    trust, _ = choose(trust, promised, sizes)
    after = _one_of(branches, trust.level, before)
    trust = _learn(trust, promised, before, after)
    _, worth = choose(trust, promises(after, sizes), sizes)
    gauge = gauge._replace(trust=trust)
    return after, pauses.judge(gauge, worth, ~after.is_done.all(), 1.0)

  return pauses.run(
    setup,
    plain,
    params,
    state,
    gauge,
    max_steps,
    stops,
    pays_above=1.0,
    step=step,
    tries=1,
  )


def _one_of(branches, index, state):
  """As `lax.switch`, which on CPU copies the cache: loops do it in place."""
  carry = state, index
  for number, branch in enumerate(branches):
    carry = jax.lax.while_loop(
      lambda carry, number=number: carry[1] == number,
      lambda carry, branch=branch: (branch(carry[0]), jnp.int32(-1)),
      carry,
    )
  return carry[0]


def promises(
  state: loop.DecodeState, sizes: Sequence[config_budgets.Size]
) -> arrays.Array:
  """Drafts float32 [K] that a row should accept of the best nodes of its tree.

  The mean of the rows that run. A row of a root with children of 0.5 and 0.2
  and a grandchild of 0.4 promises 0.9 with three nodes, 1.1 with four.
  """
  assert state.tree.scores is not None
  probs = jnp.exp(state.tree.scores[:, 1:])
  probs = jnp.where(state.is_done[:, None] | jnp.isnan(probs), 0.0, probs)
  best = jax.lax.top_k(probs, probs.shape[1])[0].cumsum(axis=1)
  count = jnp.maximum((~state.is_done).sum(), 1)
  nodes = jnp.array([size.nodes for size in sizes])
  return best.sum(axis=0)[nodes - 2] / count


def choose(
  trust: Trust, promised: arrays.Array, sizes: Sequence[config_budgets.Size]
) -> tuple[Trust, arrays.Array]:
  """The size to verify next, and what it is worth in plain steps, [].

  Args:
    trust: with the size before, which stays unless another is clearly better.
    promised: [K] float32.
    sizes: K.
  """
  ratio = (_STRENGTH + trust.right) / (_STRENGTH + trust.promised)
  costs = jnp.array([size.cost for size in sizes])
  worth = (1 + ratio * promised) / costs
  best = jnp.argmax(worth).astype(jnp.int32)
  is_better = worth[best] > _MARGIN * worth[trust.level]
  level = jnp.where(is_better, best, trust.level)
  return trust._replace(level=level), worth[level]


def _learn(trust, promised, before, after) -> Trust:
  """What a call tells of the promises that were made for it."""
  is_running = ~before.is_done
  accepted = jnp.where(is_running, after.num_tokens - before.num_tokens - 1, 0)
  accepted = accepted.sum() / jnp.maximum(is_running.sum(), 1)
  return trust._replace(
    promised=_KEPT * trust.promised + promised[trust.level],
    right=(_KEPT * trust.right + accepted).astype(jnp.float32),
  )
