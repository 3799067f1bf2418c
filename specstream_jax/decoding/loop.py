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
  emitting,
  interface,
  stopping,
  tree as tree_lib,
  verify,
)
from specstream_jax.decoding.state import (
  DecodeState as DecodeState,
  Rows as Rows,
)
from specstream_jax.modeling import cache as cache_lib, phases


class Leaf(NamedTuple):
  """Where the next drafts begin: the last accepted node of each row.

  Attributes:
    hidden: [B, D] of the main stream.
    stream_state: pytree of arrays [B, ...], as of `interface.Forward`.
    root: [B] int32, the token drawn after it.
    last_tree: the tree that was verified, pruned nodes left out; None after
      the prompt pass.
    draws: [B, M'] int32, see `interface.DraftContext`.
  """

  hidden: arrays.Array
  stream_state: Any
  root: arrays.Array
  last_tree: tree_lib.DraftTree | None = None
  draws: arrays.Array | None = None


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
  """The state of rows whose prompts have been read; arguments as of `draw_first`."""
  state, leaf = draw_first(
    setup,
    params,
    forward,
    last,
    prompts,
    prompt_lengths,
    rows,
    stops=stops,
    text_states=text_states,
  )
  return draft(setup._replace(model=setup.prompt_model), params, state, leaf)


def draw_first(
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
) -> tuple[DecodeState, Leaf]:
  """Draws the first token after a pass over prompts; nothing is drafted yet.

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
  best = emitting.best_logits(logits, first, rows.settings)
  state, kept, reason = emitting.truncate(
    setup, state, first, zeros, best, stops
  )
  state = emitting.emit(setup, state, first, kept, reason)
  return state, _leaf(forward, last, first[:, 0])


def step(
  setup: interface.DecodeSetup,
  params: Any,
  state: DecodeState,
  stops: stopping.StopTexts | None = None,
) -> DecodeState:
  """One call of the model: verify, commit, emit, draft."""
  with jax.named_scope('verify_forward'):
    forward = _forward_tree(setup, params, state)
  state, leaf = accept(setup, params, state, forward, stops)
  with jax.named_scope('draft'):
    return draft(setup, params, state, leaf)


def accept(
  setup: interface.DecodeSetup,
  params: Any,
  state: DecodeState,
  forward: interface.Forward,
  stops: stopping.StopTexts | None = None,
) -> tuple[DecodeState, Leaf]:
  """Verifies the tree after a pass over it, commits and emits.

  Args:
    setup: model, drafter and configs.
    params: weights; those of the layers are not read.
    state: before the pass; of its cache the lengths alone are read.
    forward: the pass over `tree_inputs` of the state.
    stops: stop texts.
  """
  with jax.named_scope('verify_forward'):
    verification = _verification(setup, params, state, forward)
    rest = state.settings, setup.path_length
    decide = lambda verification: setup.verifier(verification, *rest)
    verified = phases.run('verify', decide, verification)
  with jax.named_scope('emit'):
    tree = verify.surviving_tree(verification)
    emitted = verify.emitted(tree, verified)
    best = emitting.best_logits(
      verification.logits, verified.draws, state.settings
    )
    at_path = jnp.take_along_axis(best, verified.path, axis=1)
    state, kept, reason = emitting.truncate(
      setup, state, emitted, verified.accept_length, at_path, stops
    )
    kept = jnp.where(state.is_done, 0, kept)
    reason = jnp.where(state.is_done, state.finish_reason, reason)
    early = _early_path(forward, verified.path)
    cache = cache_lib.commit(forward.cache, verified.path, kept - 1, early)
    state = dataclasses.replace(state, cache=cache)
    state = emitting.count_call(state, kept)
    state = emitting.emit(setup, state, emitted, kept, reason)
  return state, _leaf(forward, verified.leaf, verified.bonus)._replace(
    last_tree=tree, draws=verified.draws
  )


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
  model = setup.prompt_model
  return model.forward(
    params,
    *prompt_inputs(prompts),
    model.init_cache(len(prompts), cache_length),
    with_streams=setup.drafter.with_streams,
  )


def prompt_inputs(prompts: arrays.Array) -> tuple[arrays.Array, ...]:
  """Tokens [B, T], positions [B, T], mask [B, T, T] of a pass over prompts."""
  batch, length = prompts.shape
  causal = jnp.tri(length, dtype=bool)[None]
  return (
    prompts,
    jnp.broadcast_to(jnp.arange(length)[None], prompts.shape),
    jnp.broadcast_to(causal, (batch, length, length)),
  )


def _forward_tree(setup, params, state):
  return setup.model.forward(
    params,
    *tree_inputs(state.tree, state.cache.length),
    state.cache,
    with_streams=setup.drafter.with_streams,
    scores=state.tree.scores,
  )


def tree_inputs(
  tree: tree_lib.DraftTree, length: arrays.Array
) -> tuple[arrays.Array, ...]:
  """Tokens [B, M], positions [B, M], mask [B, M, M] of a pass over a tree.

  Args:
    tree: drafts.
    length: [B] int32, committed slots of each row.
  """
  return (
    jnp.maximum(tree.tokens, 0),  # unused nodes hold -1
    length[:, None] + tree.depths,
    tree_lib.ancestor_mask(tree.parents),
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


def _leaf(forward, nodes, root):
  """Nodes [B] of a pass, and the tokens [B] drawn after them."""
  streams = jax.tree.map(lambda x: _at(x, nodes), forward.stream_state)
  return Leaf(_at(forward.hidden, nodes), streams, root)


def draft(
  setup: interface.DecodeSetup, params: Any, state: DecodeState, leaf: Leaf
) -> DecodeState:
  """The state with the tree to verify next."""
  positions, model = state.cache.length - 1, setup.model
  coupling = model.coupling_logits and functools.partial(
    model.coupling_logits, params
  )
  is_drafting = ~state.is_done
  if state.has_drafts is not None:
    is_drafting &= state.has_drafts
  context = interface.DraftContext(
    root=leaf.root,
    hidden=leaf.hidden,
    stream_state=leaf.stream_state,
    cache=state.cache,
    leaf_positions=positions,
    tokens=state.tokens,
    num_tokens=state.num_tokens,
    row_keys=state.row_keys,
    settings=state.settings,
    edits=state.edits,
    last_tree=leaf.last_tree,
    draws=leaf.draws,
    is_drafting=is_drafting,
    stream_logits=functools.partial(
      model.stream_logits,
      params,
      leaf.stream_state,
      state.cache,
      positions,
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
