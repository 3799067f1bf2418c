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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, sampling
from specstream_jax.decoding import (
  edits as edits_lib,
  interface,
  stopping,
  tree as tree_lib,
  verify,
)
from specstream_jax.modeling import cache as cache_lib, phases


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
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    row_keys: [B] keys of the position-keyed noise.
    settings: how the rows' tokens are drawn; None where all are greedy and
      nothing is edited, which compiles without the rest.
    edits: what is done to the logits before; None together with `settings`.
    calls: [B] int32 steps each row took part in; the prompt pass is none.
    accept_lengths: [B, max_new] int32 accept length of each call.
    text_states: [B] int32 of `stopping.StopTexts`, None without stop texts.
    has_drafts: [B] bool, rows that draft; None where all of them do.
  """

  tokens: arrays.Array
  num_tokens: arrays.Array
  limits: arrays.Array
  finish_reason: arrays.Array
  cache: cache_lib.Cache
  tree: tree_lib.DraftTree
  drafter_state: Any
  eos_ids: arrays.Array
  row_keys: arrays.Array
  settings: sampling.RowSettings | None
  edits: edits_lib.Edits | None
  calls: arrays.Array
  accept_lengths: arrays.Array
  text_states: arrays.Array | None = None
  has_drafts: arrays.Array | None = None

  @property
  def is_done(self) -> arrays.Array:
    """[B] bool."""
    return self.finish_reason != stopping.RUNNING


class Rows(NamedTuple):
  """What the rows of a batch ask for.

  Attributes:
    limits: [B] int32 most tokens each row may emit, at least 1.
    eos_ids: [B, E] int32 tokens that end each row; -1 is none.
    keys: [B] of the position-keyed noise, see `sampling.row_keys`.
    settings: how tokens are drawn; None where all are plainly greedy.
    edits: of the logits; None together with `settings`.
    has_drafts: [B] bool, rows that draft; None where all of them do.
    guesses: [B, R] int32 of the answers, padded with -1, for a drafter that is
      an `interface.Copier`; None for no room.
  """

  limits: arrays.Array
  eos_ids: arrays.Array
  keys: arrays.Array
  settings: sampling.RowSettings | None = None
  edits: edits_lib.Request | None = None
  has_drafts: arrays.Array | None = None
  guesses: arrays.Array | None = None


def prefill(
  setup: interface.DecodeSetup,
  params: Any,
  prompts: arrays.Array,
  prompt_lengths: arrays.Array,
  rows: Rows,
  *,
  cache_length: int,
  stops: stopping.StopTexts | None = None,
  text_states: arrays.Array | None = None,
) -> DecodeState:
  """Runs the prompts, draws the first token and drafts the first tree.

  Args:
    setup: model, drafter and configs.
    params: weights, passed through to the model.
    prompts: [B, T] int32, padded on the right.
    prompt_lengths: [B] int32, at least 1.
    rows: what each of them asks for.
    cache_length: S.
    stops: stop texts.
    text_states: [B] int32 where rows stand among them before the first token.
  """
  forward = _forward_prompts(setup, params, prompts, cache_length)
  return begin(
    setup,
    params,
    forward,
    prompt_lengths - 1,
    prompts,
    prompt_lengths,
    rows,
    stops=stops,
    text_states=text_states,
  )


def begin(
  setup: interface.DecodeSetup,
  params: Any,
  forward: interface.Forward,
  last: arrays.Array,
  prompts: arrays.Array,
  prompt_lengths: arrays.Array,
  rows: Rows,
  *,
  stops: stopping.StopTexts | None = None,
  text_states: arrays.Array | None = None,
) -> DecodeState:
  """The state of rows whose prompts have been read; arguments as of `prefill`.

  Args:
    setup: its `prompt_model` made the pass.
    params: weights.
    forward: the pass over the prompts, or over their ends.
    last: [B] int32, index of each prompt's last token in that pass.
    prompts: [B, T] int32, whole.
    prompt_lengths: [B] int32.
    rows: what each of them asks for.
    stops: stop texts.
    text_states: [B] int32.
  """
  ahead = prompt_lengths[:, None]
  logits = setup.prompt_model.logits(params, _at(forward.hidden, last))[:, None]
  edits = None
  if rows.edits is not None:
    text = prompts, prompt_lengths
    edits = edits_lib.start(rows.edits, rows.eos_ids, *text, logits.shape[-1])
  logits = edits_lib.apply(edits, logits, ahead)
  first = sampling.draw(logits, rows.keys, ahead, rows.settings)
  zeros = jnp.zeros_like(prompt_lengths)
  buffer = jnp.zeros((len(zeros), setup.cfg.max_new_tokens), jnp.int32)
  state = DecodeState(
    tokens=buffer,
    num_tokens=zeros,
    limits=rows.limits,
    finish_reason=zeros,
    cache=dataclasses.replace(forward.cache, length=prompt_lengths),
    tree=tree_lib.root_only(first[:, 0]),
    drafter_state=_init_drafter(setup, params, prompts, prompt_lengths, rows),
    eos_ids=rows.eos_ids,
    row_keys=rows.keys,
    settings=rows.settings,
    edits=edits,
    calls=zeros,
    accept_lengths=buffer,
    text_states=text_states,
    has_drafts=rows.has_drafts,
  )
  best = _best_logits(logits, first, rows.settings)
  state, kept, reason = _truncate(setup, state, first, zeros, best, stops)
  state = _emit(setup, state, first, kept, reason)
  prompt_setup = setup._replace(model=setup.prompt_model)
  return _draft(prompt_setup, params, state, forward, last, first[:, 0])


def step(
  setup: interface.DecodeSetup,
  params: Any,
  state: DecodeState,
  stops: stopping.StopTexts | None = None,
) -> DecodeState:
  """One call of the model: verify, commit, emit, draft."""
  with jax.named_scope('verify_forward'):
    forward = _forward_tree(setup, params, state)
    verification = _verification(setup, params, state, forward)
    rest = state.settings, setup.path_length
    decide = lambda verification: setup.verifier(verification, *rest)
    verified = phases.run('verify', decide, verification)
  with jax.named_scope('emit'):
    tree = verify.surviving_tree(verification)
    emitted = verify.emitted(tree, verified)
    best = _best_logits(verification.logits, verified.draws, state.settings)
    at_path = jnp.take_along_axis(best, verified.path, axis=1)
    state, kept, reason = _truncate(
      setup, state, emitted, verified.accept_length, at_path, stops
    )
    kept = jnp.where(state.is_done, 0, kept)
    reason = jnp.where(state.is_done, state.finish_reason, reason)
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
  setup: interface.DecodeSetup,
  params: Any,
  state: DecodeState,
  max_steps: arrays.Array,
  stops: stopping.StopTexts | None = None,
  *,
  min_running: arrays.Array | int = 1,
) -> DecodeState:
  """At most `max_steps` steps, while `min_running` rows or more are not done.

  With as many as run now, the first row to end wakes whoever waits for it.
  """

  def should_continue(carry):
    state, num_steps = carry
    has_rows = jnp.sum(~state.is_done) >= min_running
    is_below_limit = num_steps < max_steps
    return has_rows & is_below_limit

  def body(carry):
    state, num_steps = carry
    return step(setup, params, state, stops=stops), num_steps + 1

  start = state, jnp.int32(0)
  return jax.lax.while_loop(should_continue, body, start)[0]


def _init_drafter(setup, params, prompts, prompt_lengths, rows):
  """What the drafter knows of rows before it drafts."""
  state = setup.drafter.init(params, prompts, prompt_lengths)
  if rows.guesses is None:
    return state
  assert isinstance(setup.drafter, interface.Copier)
  return setup.drafter.foresee(state, rows.guesses)


def _forward_prompts(setup, params, prompts, cache_length):
  batch, padded_length = prompts.shape
  causal = jnp.tri(padded_length, dtype=bool)[None]
  return setup.prompt_model.forward(
    params,
    prompts,
    jnp.broadcast_to(jnp.arange(padded_length)[None], prompts.shape),
    jnp.broadcast_to(causal, (batch, padded_length, padded_length)),
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
    scores=tree.scores,
  )


def _early_path(forward, path):
  """The path as the layers before pruning number it, see `cache.commit`."""
  if forward.pruned is None:
    return None
  survivors, num_early_layers = forward.pruned
  return num_early_layers, jnp.take_along_axis(survivors, path, axis=1)


def _verification(setup, params, state, forward):
  """The tree with the target's logits at the nodes that have them."""
  verification = interface.Verification(
    state.tree,
    None if forward.pruned is None else forward.pruned.survivors,
    setup.model.logits(params, forward.hidden),
    state.row_keys,
    state.cache.length + 1,
  )
  if state.edits is None:
    return verification
  tree = verify.surviving_tree(verification)
  edited = edits_lib.apply(
    state.edits,
    verification.logits,
    verification.root_positions[:, None] + tree.depths,
    edits_lib.tree_paths(tree, setup.path_length),
  )
  return verification._replace(logits=edited)


def _best_logits(logits, draws, settings):
  """The largest of logits [B, M, V]; NaN if one is NaN, float32 [B, M].

  Greedy draws [B, M] point at it, which saves a pass over all of them.
  """
  if settings is None and draws is not None:
    return jnp.take_along_axis(logits, draws[..., None], axis=-1)[..., 0]
  return logits.max(axis=-1)


def _truncate(setup, state, emitted, accept_length, best, stops):
  """How many of `emitted` [B, P] to keep, and why the row ends there.

  Args:
    setup: stop sequences.
    state: the output so far.
    emitted: the accepted tokens, then the one that was drawn.
    accept_length: [B] int32.
    best: [B, P] largest logit where each of them was drawn.
    stops: stop texts, or None.

  Returns:
    The state, with stop texts followed, the number [B] and the reason [B].
  """
  # From NaN, infinity, or nothing but minus infinity no token can be drawn, nor
  # is a draft right there; what was accepted before stands.
  count = jnp.cumprod(jnp.isfinite(best), axis=1).sum(axis=1)
  is_finite = count > accept_length
  followed = None
  if stops is not None:
    followed = stops.follow(state.text_states, emitted)
  kept, reason = stopping.truncate(
    setup.cfg,
    state.tokens,
    state.num_tokens,
    state.limits,
    state.eos_ids,
    emitted,
    jnp.minimum(count, accept_length + 1),
    followed,
  )
  if stops is not None:
    # Rows that are done emit nothing, so where they stand does not matter.
    state = dataclasses.replace(state, text_states=_at(followed, kept - 1))
  is_stuck = ~is_finite & (reason == stopping.RUNNING)
  return state, kept, jnp.where(is_stuck, stopping.NOT_FINITE, reason)


def _count_call(state, kept):
  """Counts the call in the rows that took part, with its accept length."""
  took_part = ~state.is_done
  rows = jnp.arange(kept.shape[0])
  index = jnp.where(took_part, state.calls, state.accept_lengths.shape[1])
  return dataclasses.replace(
    state,
    calls=state.calls + took_part,
    accept_lengths=state.accept_lengths.at[rows, index].set(
      jnp.maximum(kept - 1, 0), mode='drop'
    ),
  )


def _emit(setup, state, emitted, kept, reason):
  """Appends the first `kept` [B] of `emitted` [B, P]; ends full rows."""
  offset = jnp.arange(emitted.shape[1])[None]
  is_kept = offset < kept[:, None]
  index = jnp.where(
    is_kept, state.num_tokens[:, None] + offset, state.tokens.shape[1]
  )
  rows = jnp.arange(kept.shape[0])[:, None]
  needed = state.cache.length + setup.drafter.size
  is_full = (needed > state.cache.num_slots) & (reason == stopping.RUNNING)
  return dataclasses.replace(
    state,
    tokens=state.tokens.at[rows, index].set(emitted, mode='drop'),
    num_tokens=state.num_tokens + kept,
    finish_reason=jnp.where(is_full, stopping.CACHE, reason),
    edits=edits_lib.remember(state.edits, jnp.where(is_kept, emitted, -1)),
  )


def _draft(
  setup, params, state, forward, leaf, root, last_tree=None, draws=None
):
  """The tree to verify next, from the leaf [B] of the last pass."""
  streams = jax.tree.map(lambda x: _at(x, leaf), forward.stream_state)
  positions, model = state.cache.length - 1, setup.model
  coupling = model.coupling_logits and functools.partial(
    model.coupling_logits, params
  )
  is_drafting = ~state.is_done
  if state.has_drafts is not None:
    is_drafting &= state.has_drafts
  context = interface.DraftContext(
    root=root,
    hidden=_at(forward.hidden, leaf),
    stream_state=streams,
    cache=state.cache,
    leaf_positions=positions,
    tokens=state.tokens,
    num_tokens=state.num_tokens,
    row_keys=state.row_keys,
    settings=state.settings,
    edits=state.edits,
    last_tree=last_tree,
    draws=draws,
    is_drafting=is_drafting,
    stream_logits=functools.partial(
      model.stream_logits, params, streams, state.cache, positions
    ),
    coupling_logits=coupling,
  )
  tree, drafter_state = setup.drafter.propose(
    params, context, state.drafter_state
  )
  # Rows that have ended need no streams any more.
  has_ended = state.is_done
  if state.has_drafts is not None:
    has_ended |= ~state.has_drafts
  tree = tree_lib.without_drafts(tree, has_ended)
  return dataclasses.replace(state, tree=tree, drafter_state=drafter_state)


def _at(x, index):
  """x [B, M, ...] at one index per row [B]."""
  return x[jnp.arange(x.shape[0]), index]
