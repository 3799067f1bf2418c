# SPDX-License-Identifier: Apache-2.0
"""Drafts are left alone for a while where they do not pay.

A call with drafts costs so many plain ones (`pays_above`). If calls emit fewer
tokens than that, the next steps are plain; then a few calls find out whether
the text has become easier. Pauses double while it has not. The tokens are
those of plain decoding either way, and only tokens that were emitted decide.

Axis letters: B rows, M tree nodes.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import batch_sizes, interface, loop, stopping

# Steps of the first pause, and of the longest where calls cost two plain ones
# at most. Where they cost more it doubles, until `_TRIES` calls that find
# nothing lose no more than `_LOSS` of it; there is an end to that as well.
_FIRST, _LONGEST, _END = 16, 128, 1024
_TRIES = 3  # the first has no drafts to verify
_LOSS = 0.024
_NEW = 0.3  # weight of the last call in the mean
_HEAD_START = 1.3  # of the mean at first, times `pays_above`


class Gauge(NamedTuple):
  """What is known of the drafts' worth; it outlives a batch.

  Attributes:
    mean: [] float32 tokens per call with drafts, lately.
    tries: [] int32 calls before it counts.
    resting: [] int32 plain steps still to take.
    pause: [] int32 steps of the next pause.
    trust: a `budgets.Trust`; () where all drafts are verified.
  """

  mean: arrays.Array
  tries: arrays.Array
  resting: arrays.Array
  pause: arrays.Array
  trust: Any = ()


# (state, gauge) -> both after a call with drafts.
Step = Callable[[loop.DecodeState, Gauge], tuple[loop.DecodeState, Gauge]]


def begin(pays_above: float) -> Gauge:
  """Before anything is known: with drafts."""
  return Gauge(
    jnp.float32(_HEAD_START * pays_above),
    jnp.int32(_TRIES),
    jnp.int32(0),
    jnp.int32(_FIRST),
  )


def run(
  setup: interface.DecodeSetup,
  plain: interface.DecodeSetup,
  params: Any,
  state: loop.DecodeState,
  gauge: Gauge,
  max_steps: arrays.Array,
  stops: stopping.StopTexts | None = None,
  *,
  pays_above: float,
  step: Step | None = None,
  tries: int = _TRIES,
) -> tuple[loop.DecodeState, Gauge]:
  """As `loop.run`, with pauses.

  Args:
    setup: with drafts, verified by `verify.walk`.
    plain: of the same model without, see `plain.without_drafts`.
    params: weights.
    state: of the rows.
    gauge: from `begin`, or from the run before.
    max_steps: at most so many.
    stops: stop texts.
    pays_above: tokens per call from which on drafts pay.
    step: a call with drafts; None verifies all of them, and goes by the tokens
      that it emits.
    tries: calls after a pause before they count.
  """

  call = step or functools.partial(
    _verify_all, setup, params, stops, pays_above
  )

  def should_continue(carry):
    state, _, num_steps = carry
    return (~state.is_done).any() & (num_steps < max_steps)

  def drafts(carry):
    _, gauge, _ = carry
    is_worth = (gauge.tries > 0) | (gauge.mean >= pays_above)
    return should_continue(carry) & (gauge.resting == 0) & is_worth

  def draft(carry):
    state, gauge, num_steps = carry
    return *call(state, gauge), num_steps + 1

  def both(carry):
    """Calls with drafts for as long as they pay, then a pause."""
    state, gauge, num_steps = jax.lax.while_loop(drafts, draft, carry)
    gauge = _rest(gauge, pays_above)
    steps = jnp.minimum(gauge.resting, max_steps - num_steps)
    state, taken = _plain_steps(plain, params, state, steps, stops)
    return state, _wake(gauge, gauge.resting - taken, tries), num_steps + taken

  start = state, gauge, jnp.int32(0)
  state, gauge, _ = jax.lax.while_loop(should_continue, both, start)
  return state, gauge


def _verify_all(setup, params, stops, pays_above, state, gauge):
  """A call that verifies all drafts."""
  after = loop.step(setup, params, state, stops=stops)
  return after, _seen(gauge, state, after, pays_above)


def _plain_steps(plain, params, state, steps, stops):
  """At most `steps` of them, and how many were taken."""
  rested = batch_sizes.run_plain(
    plain, params, state, steps, min_running=jnp.int32(1), stops=stops
  )
  # Rows take part in every step until they are done.
  taken = (rested.calls - state.calls).max()
  tree = jax.tree.map(
    lambda new, old: jnp.where(taken > 0, new, old), rested.tree, state.tree
  )
  return dataclasses.replace(rested, tree=tree), taken


def _seen(gauge, before, after, pays_above) -> Gauge:
  """What a call with drafts tells."""
  has_drafts = (before.tree.tokens[:, 1:] >= 0).any(axis=1) & ~before.is_done
  emitted = jnp.where(has_drafts, after.num_tokens - before.num_tokens, 0)
  count = has_drafts.sum()
  mean = emitted.sum() / jnp.maximum(count, 1)
  return judge(gauge, mean, count > 0, pays_above)


def judge(
  gauge: Gauge,
  emitted: arrays.Array,
  had_drafts: arrays.Array,
  pays_above: float,
) -> Gauge:
  """Tokens per row of a call; a call that had no drafts to verify says nothing."""
  mean = (1 - _NEW) * gauge.mean + _NEW * emitted
  mean = jnp.where(had_drafts, mean, gauge.mean).astype(jnp.float32)
  tries = jnp.maximum(gauge.tries - 1, 0)
  # Once drafts pay for a while, the next pause is a short one again.
  is_good = (tries == 0) & (mean >= _HEAD_START * pays_above)
  pause = jnp.where(is_good, _FIRST, gauge.pause)
  return gauge._replace(mean=mean, tries=tries, pause=pause)


def longest(pays_above: float) -> int:
  """Steps of the longest pause where a call with drafts costs so many."""
  steps = _LONGEST
  while _TRIES * (pays_above - 1) > _LOSS * steps and steps < _END:
    steps *= 2
  return steps


def _rest(gauge, pays_above) -> Gauge:
  """A pause begins if drafts do not pay and none is on."""
  is_worth = (gauge.tries > 0) | (gauge.mean >= pays_above)
  begins = (gauge.resting == 0) & ~is_worth
  return gauge._replace(
    resting=jnp.where(begins, gauge.pause, gauge.resting),
    pause=jnp.where(
      begins, jnp.minimum(2 * gauge.pause, longest(pays_above)), gauge.pause
    ),
    mean=jnp.where(begins, jnp.float32(pays_above), gauge.mean),
  )


def _wake(gauge, left, tries=_TRIES) -> Gauge:
  """So many plain steps are left; after the last, drafts are tried again."""
  ends = (gauge.resting > 0) & (left <= 0)
  return gauge._replace(
    resting=jnp.maximum(left, 0),
    tries=jnp.where(ends, tries, gauge.tries),
  )
