# SPDX-License-Identifier: Apache-2.0
"""The transformer as the decode loop sees it.

Three schedules for drafting give the same tokens at different cost. `parallel`
(the paper): streams at every node in the verifying pass. `deferred`: verify
first, then the streams of the accepted leaf alone through the MSA layers.
`likely`: streams at the few nodes that are likeliest to be the leaf, and the
deferred pass when a row's leaf was none of them.

LM head economy. Paper: logits for all tokens of the pass. Here: stream logits
for the accepted leaf only, since no other node's streams are ever read; the
result is the same.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import interface, likely, pruning
from specstream_jax.modeling import (
  build,
  cache as cache_lib,
  forward as forward_lib,
  layers,
  phases,
  transformer,
)

_NEVER = -1e9  # a logit; finite, so that differences stay numbers


class Params(NamedTuple):
  """Weights of a decoder, as one pytree.

  Attributes:
    base: nested dict of the model that verifies.
    adapter: its streams; empty without.
    drafter: whatever the drafter brought, () for nothing.
  """

  base: Any
  adapter: Any = {}
  drafter: Any = ()


class DraftHead(NamedTuple):
  """The LM head of the tokens that streams may draft.

  Attributes:
    ids: int32 [N], ascending; those from V on are padding.
    rows: [N, D] their rows of the LM head.
    bias: [N] of their logits, () without.
    scale: float32 [N] of the rows, if they are int8; () if not.
  """

  ids: arrays.Array
  rows: arrays.Array
  bias: Any = ()
  scale: Any = ()


def draft_head(model: transformer.Transformer, ids: arrays.Array) -> DraftHead:
  """The part of a model's LM head that tokens `ids` [N] need."""
  bias = model.head_bias(ids)
  rows, scale = model.stored_head_rows(ids)
  absent = lambda leaf: () if leaf is None else leaf
  return DraftHead(ids, rows, absent(bias), absent(scale))


class StreamExtras(NamedTuple):
  """What the streams' drafter brings beside the adapter; () for nothing.

  Attributes:
    ngrams: an `ngrams.NgramTable`.
    head: a `DraftHead`.
    trees: a `row_trees.RowTree`, where each row has its own.
  """

  ngrams: Any = ()
  head: Any = ()
  trees: Any = ()


class Recipe(NamedTuple):
  """What `model_fns` was asked for; its arguments."""

  built: build.Built
  schedule: str
  keep_nodes: int
  likely_nodes: int
  has_draft_head: bool
  is_prompt: bool


def model_fns(
  built: build.Built,
  schedule: str = 'deferred',
  keep_nodes: int = 0,
  *,
  likely_nodes: int = 0,
  has_draft_head: bool = False,
  is_prompt: bool = False,
) -> interface.ModelFns:
  """Callables for one schedule; `params` is a `Params`.

  Args:
    built: structure of the model, with streams if a drafter wants them.
    schedule: `parallel`, `deferred` or `likely`.
    keep_nodes: nodes the pruning adapter lets into the MSA layers; 0 is all.
    likely_nodes: how many carry streams, under `likely`.
    has_draft_head: streams draft from `params.drafter.head` alone.
    is_prompt: for passes over prompts, whose cache is empty.
  """
  recipe = Recipe(
    built, schedule, keep_nodes, likely_nodes, has_draft_head, is_prompt
  )
  cfg = built.cfg
  merge = lambda params: built.merge(params.base, params.adapter)
  init_cache = lambda rows, slots: cache_lib.init(cfg, rows, slots, cfg.dtype)

  def forward(
    params, tokens, positions, tree_mask, cache, *, with_streams, scores=None
  ) -> interface.Forward:
    """See `interface.ModelFns`; streams run along if the schedule says so."""
    model = merge(params)
    chosen = carriers_of(recipe, scores, tree_mask, positions)
    runs_along = chosen is not None or schedule == 'parallel'
    result = forward_lib.forward_tree(
      model,
      tokens,
      positions,
      tree_mask,
      cache,
      with_streams=with_streams and runs_along,
      survivors_of=pruning.best(keep_nodes),
      carriers_of=chosen,
      is_prompt=is_prompt,
    )
    return as_forward(result, model.first_msa)

  logits = lambda params, hidden: phases.run(
    'head', merge(params).logits, hidden
  )

  stream_logits = functools.partial(
    _stream_logits, merge, schedule == 'parallel', has_draft_head
  )
  return interface.ModelFns(
    init_cache, forward, logits, stream_logits, _coupling_of(built), recipe
  )


def _stream_logits(
  merge, has_run, has_draft_head, params, stream_state, cache, positions
) -> interface.StreamLogits:
  """See `interface.ModelFns`; `has_run` if streams ran along with the tree."""
  model, state = merge(params), stream_state
  if not has_run:
    state = _leaf_streams(model, state, positions, cache)
  head = params.drafter.head if has_draft_head else None
  logits = phases.run(
    'draft_head', lambda state: draft_logits(model, state, head), state
  )
  return interface.StreamLogits(logits, state)


def _coupling_of(built):
  """`ModelFns.coupling_logits` of a model; None without such weights."""
  has_one = 'coupling' in built.adapter
  return functools.partial(_coupling_logits, built) if has_one else None


def as_forward(
  result: forward_lib.TreeHidden, first_msa: int
) -> interface.Forward:
  """The pass as the loop sees it."""
  seen, streams = result.survivors, result.streams
  if result.carried is not None:
    streams = likely.spread(streams, *result.carried)
  pruned = None if seen is None else interface.Pruned(seen, first_msa)
  return interface.Forward(result.main, result.cache, streams, pruned)


def carriers_of(
  recipe: Recipe,
  scores: arrays.Array | None,
  tree_mask: arrays.Array,
  positions: arrays.Array,
) -> forward_lib.Carriers | None:
  """What chooses the nodes that carry streams; None where no choice is made."""
  if recipe.schedule != 'likely' or scores is None:
    return None
  count = recipe.likely_nodes
  return functools.partial(_carriers, count, scores, tree_mask, positions)


def _carriers(count, scores, tree_mask, positions, survivors) -> arrays.Array:
  """The likeliest leaves [B, C], as the survivors are numbered."""
  if survivors is not None:
    take = functools.partial(jnp.take_along_axis, axis=1)
    scores, positions = take(scores, survivors), take(positions, survivors)
    tree_mask = take(tree_mask, survivors[..., None])
    tree_mask = jnp.take_along_axis(tree_mask, survivors[:, None], axis=2)
  found = likely.leaf_probabilities(scores, tree_mask, positions)
  return likely.choose(found, count)


def _leaf_streams(model, state, positions, cache) -> arrays.Array:
  """Streams [B, J, D] of the leaves, in a pass of their own if one has none."""
  run = lambda hidden: forward_lib.forward_streams(
    model, hidden, positions, cache
  )
  if not isinstance(state, likely.Carried):
    return run(state)
  found = jax.lax.cond(
    state.is_known.all(), lambda: state.streams, lambda: run(state.insertion)
  )
  # What a row drafts must not depend on its neighbours.
  return jnp.where(state.is_known[:, None, None], state.streams, found)


def with_vocabulary(
  fns: interface.ModelFns, vocab_size: int
) -> interface.ModelFns:
  """The functions with logits of `vocab_size` tokens, for a draft model.

  Embeddings are often padded to round sizes, which differ between models of one
  tokenizer. Tokens that the model lacks are never drafted; those that it has
  beyond `vocab_size` are left out.
  """

  def logits(params, hidden):
    own = fns.logits(params, hidden)[..., :vocab_size]
    missing = vocab_size - own.shape[-1]
    axes = [(0, 0)] * (own.ndim - 1) + [(0, missing)]
    return jnp.pad(own, axes, constant_values=_NEVER)

  return fns._replace(logits=logits)


def _coupling_logits(
  built, params, hidden, parents, candidates
) -> arrays.Array:
  model = built.merge(params.base, params.adapter)
  return model.coupling_logits(hidden, parents, candidates)


def draft_logits(
  model: transformer.Transformer, hidden: arrays.Array, head: DraftHead | None
) -> arrays.Array:
  """Logits of the head's tokens; the others are never drafted.

  Args:
    model: whose head there is without one for drafts.
    hidden: [..., D] normalised.
    head: of some tokens, or None for all.

  Returns:
    float32 [..., V].
  """
  if head is None:
    return model.logits(hidden)
  cfg = model.cfg
  if cfg.weights_dtype:
    logits = layers.scaled(hidden, head.rows, head.scale, 'out_in')
  else:
    logits = layers.project(hidden, head.rows, jnp.float32)
  bias = head.bias if cfg.has_head_bias else None
  logits = transformer.finish_logits(cfg, logits, bias)
  nothing = jnp.full((*logits.shape[:-1], cfg.vocab_size), _NEVER, jnp.float32)
  return nothing.at[..., head.ids].set(
    logits, mode='drop', indices_are_sorted=True, unique_indices=True
  )
