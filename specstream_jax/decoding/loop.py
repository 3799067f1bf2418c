# SPDX-License-Identifier: Apache-2.0
"""The decode loop: verify a tree, commit its path, draft the next.

Paper, section 3. `prefill` makes a `DecodeState`, `step` advances every
unfinished row of it by its own accept length plus one, `run` is one
`lax.while_loop` over `step`. The model and the drafter are callables, so a
table will do for a model.

Axis letters: B rows, T prompt positions, M tree nodes including the root,
P path length, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import sampling, typing
from specstream_jax.decoding import (
  cache as cache_lib,
  interface,
  stopping,
  tree as tree_lib,
  verify,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """Everything the loop carries; rows are independent of each other.

  Between steps cache.length = prompt length + num_tokens - 1: all but the last
  emitted token, the root of `tree`, is committed.

  Attributes:
    tokens: [B, max_new] int32 output; EOS and stop sequences included.
    num_tokens: [B] int32 valid entries of `tokens`.
    limits: [B] int32 most tokens each row may emit.
    finish_reason: [B] int32, an index into `stopping.REASONS`.
    cache: committed keys and values.
    tree: drafts to verify in the next step.
    drafter_state: the drafter's own pytree.
    row_keys: [B] keys of the position-keyed noise.
    calls: [B] int32 steps each row took part in; the prompt pass is none.
    accept_lengths: [B, max_new] int32 accept length of each call.
    num_steps: int32 scalar, steps of the batch.
    text_states: [B] int32 of `stopping.StopTexts`, None without stop texts.
  """

  tokens: typing.Array
  num_tokens: typing.Array
  limits: typing.Array
  finish_reason: typing.Array
  cache: cache_lib.Cache
  tree: tree_lib.DraftTree
  drafter_state: Any
  row_keys: typing.Array
  calls: typing.Array
  accept_lengths: typing.Array
  num_steps: typing.Array
  text_states: typing.Array | None = None

  @property
  def is_done(self) -> typing.Array:
    """[B] bool."""
    return self.finish_reason != stopping.RUNNING


def prefill(
  setup: interface.Setup,
  params: Any,
  prompts: typing.Array,
  prompt_lengths: typing.Array,
  limits: typing.Array,
  row_keys: typing.Array,
  *,
  cache_length: int,
  stops: stopping.StopTexts | None = None,
  text_states: typing.Array | None = None,
) -> DecodeState:
  """Runs the prompts, draws the first token and drafts the first tree.

  Args:
    setup: model, drafter and configs.
    params: weights, passed through to the model.
    prompts: [B, T] int32, padded on the right.
    prompt_lengths: [B] int32, at least 1.
    limits: [B] int32 most tokens each row may emit, at least 1.
    row_keys: [B] keys, see `sampling.row_keys`.
    cache_length: S.
    stops: stop texts.
    text_states: [B] int32 where rows stand among them before the first token.
  """
  forward = _forward_prompts(setup, params, prompts, cache_length)
  last = prompt_lengths - 1
  logits = setup.prompt_model.logits(params, _at(forward.hidden, last))
  first = sampling.draw(
    logits[:, None], row_keys, prompt_lengths[:, None], setup.sampling
  )
  batch = prompts.shape[0]
  zeros = jnp.zeros((batch,), jnp.int32)
  buffer = jnp.zeros((batch, setup.cfg.max_new_tokens), jnp.int32)
  state = DecodeState(
    tokens=buffer,
    num_tokens=zeros,
    limits=limits,
    finish_reason=zeros,
    cache=dataclasses.replace(forward.cache, length=prompt_lengths),
    tree=tree_lib.root_only(first[:, 0]),
    drafter_state=setup.drafter.init(params, prompts, prompt_lengths),
    row_keys=row_keys,
    calls=zeros,
    accept_lengths=buffer,
    num_steps=jnp.int32(0),
    text_states=text_states,
  )
  state, kept, reason = _truncate(setup, state, first, zeros + 1, stops)
  state = _emit(setup, state, first, kept, reason)
  prompt_setup = setup._replace(model=setup.prompt_model)
  return _draft(prompt_setup, params, state, forward, last, first[:, 0])


def step(
  setup: interface.Setup,
  params: Any,
  state: DecodeState,
  stops: stopping.StopTexts | None = None,
) -> DecodeState:
  """One call of the model: verify, commit, emit, draft."""
  with jax.named_scope('verify_forward'):
    forward = _forward_tree(setup, params, state)
    verification = _verification(setup, params, state, forward)
  with jax.named_scope('verify'):
    verified = setup.verifier(verification, setup.sampling, setup.path_length)
    tree = verify.surviving_tree(verification)
    emitted = verify.emitted(tree, verified)
    count = verified.accept_length + 1
    state, kept, reason = _truncate(setup, state, emitted, count, stops)
    kept = jnp.where(state.is_done, 0, kept)
    reason = jnp.where(state.is_done, state.finish_reason, reason)
  with jax.named_scope('commit'):
    early = _early_path(forward, verified.path)
    cache = cache_lib.commit(forward.cache, verified.path, kept - 1, early)
    state = dataclasses.replace(state, cache=cache)
    state = _count_call(state, kept)
    state = _emit(setup, state, emitted, kept, reason)
  with jax.named_scope('draft'):
    seen = {'last_tree': tree, 'draws': verified.draws}
    leaf, root = verified.leaf, verified.bonus
    return _draft(setup, params, state, forward, leaf, root, **seen)


def run(
  setup: interface.Setup,
  params: Any,
  state: DecodeState,
  step_limit: typing.Array,
  stops: stopping.StopTexts | None = None,
) -> DecodeState:
  """Steps until every row is done or `num_steps` reaches `step_limit`."""

  def should_continue(state):
    has_unfinished_row = jnp.any(~state.is_done)
    is_below_limit = state.num_steps < step_limit
    return has_unfinished_row & is_below_limit

  body = functools.partial(step, setup, params, stops=stops)
  return jax.lax.while_loop(should_continue, body, state)


def _forward_prompts(setup, params, prompts, cache_length):
  batch, padded_length = prompts.shape
  positions = jnp.arange(padded_length)[None]
  causal = jnp.tri(padded_length, dtype=bool)
  return setup.prompt_model.forward(
    params,
    prompts,
    jnp.broadcast_to(positions, prompts.shape),
    jnp.broadcast_to(causal[None], (batch, *causal.shape)),
    setup.prompt_model.init_cache(batch, cache_length),
    with_streams=setup.drafter.with_streams,
  )


def _forward_tree(setup, params, state):
  tree = state.tree
  return setup.model.forward(
    params,
    jnp.maximum(tree.tokens, 0),  # unused nodes hold -1
    state.cache.length[:, None] + tree.depths,
    tree_lib.ancestor_mask(tree.parents),
    state.cache,
    with_streams=setup.drafter.with_streams,
  )


def _early_path(forward, path):
  """The path as the layers before pruning number it, see `cache.commit`."""
  if forward.pruned is None:
    return None
  survivors, num_early_layers = forward.pruned
  return num_early_layers, jnp.take_along_axis(survivors, path, axis=1)


def _verification(setup, params, state, forward):
  """The tree with the target's logits at the nodes that have them."""
  return interface.Verification(
    state.tree,
    None if forward.pruned is None else forward.pruned.survivors,
    setup.model.logits(params, forward.hidden),
    state.row_keys,
    state.cache.length + 1,
  )


def _count_call(state, kept):
  """Counts the call in the rows that took part, with its accept length."""
  took_part = ~state.is_done
  rows = jnp.arange(kept.shape[0])
  index = jnp.where(took_part, state.calls, state.accept_lengths.shape[1])
  return dataclasses.replace(
    state,
    calls=state.calls + took_part,
    accept_lengths=state.accept_lengths.at[rows, index].set(
      kept - 1, mode='drop'
    ),
    num_steps=state.num_steps + 1,
  )


def _truncate(setup, state, emitted, count, stops):
  """Where `stopping.truncate` ends rows, and the state with stops followed."""
  followed = None
  if stops is not None:
    followed = stops.follow(state.text_states, emitted)
  kept, reason = stopping.truncate(
    setup.cfg,
    state.tokens,
    state.num_tokens,
    state.limits,
    emitted,
    count,
    followed,
  )
  if stops is not None:
    # Rows that are done emit nothing, so where they stand does not matter.
    state = dataclasses.replace(state, text_states=_at(followed, kept - 1))
  return state, kept, reason


def _emit(setup, state, emitted, kept, reason):
  """Appends the first `kept` [B] of `emitted` [B, P]; ends full rows."""
  offset = jnp.arange(emitted.shape[1])[None]
  index = jnp.where(
    offset < kept[:, None],
    state.num_tokens[:, None] + offset,
    state.tokens.shape[1],
  )
  rows = jnp.arange(kept.shape[0])[:, None]
  needed = state.cache.length + setup.drafter.size
  is_full = (needed > state.cache.num_slots) & (reason == stopping.RUNNING)
  return dataclasses.replace(
    state,
    tokens=state.tokens.at[rows, index].set(emitted, mode='drop'),
    num_tokens=state.num_tokens + kept,
    finish_reason=jnp.where(is_full, stopping.CACHE, reason),
  )


def _draft(
  setup, params, state, forward, leaf, root, last_tree=None, draws=None
):
  """The tree to verify next, from the leaf [B] of the last pass."""
  context = interface.DraftContext(
    root=root,
    hidden=_at(forward.hidden, leaf),
    stream_state=jax.tree.map(lambda x: _at(x, leaf), forward.stream_state),
    cache=state.cache,
    leaf_positions=state.cache.length - 1,
    tokens=state.tokens,
    num_tokens=state.num_tokens,
    row_keys=state.row_keys,
    last_tree=last_tree,
    draws=draws,
  )
  tree, drafter_state = setup.drafter.propose(
    setup, params, context, state.drafter_state
  )
  return dataclasses.replace(state, tree=tree, drafter_state=drafter_state)


def _at(x, index):
  """x [B, M, ...] at one index per row [B]."""
  return x[jnp.arange(x.shape[0]), index]
