# SPDX-License-Identifier: Apache-2.0
"""The transformer as the decode loop sees it.

Two schedules for drafting give the same tokens at different cost. `parallel`
(the paper): streams at every node in the verifying pass. `deferred`: verify
first, then the streams of the accepted leaf alone through the MSA layers.

LM head economy. Paper: logits for all tokens of the pass. Here: stream logits
for the accepted leaf only, since no other node's streams are ever read; the
result is the same.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import interface, pruning
from specstream_jax.modeling import (
  build,
  cache as cache_lib,
  forward as forward_lib,
  layers,
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
  """

  ids: arrays.Array
  rows: arrays.Array
  bias: Any = ()


def draft_head(model: transformer.Transformer, ids: arrays.Array) -> DraftHead:
  """The part of a model's LM head that tokens `ids` [N] need."""
  bias = model.head_bias(ids)
  return DraftHead(ids, model.head_rows(ids), () if bias is None else bias)


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


def model_fns(
  built: build.Built,
  schedule: str = 'deferred',
  keep_nodes: int = 0,
  *,
  has_draft_head: bool = False,
  is_prompt: bool = False,
) -> interface.ModelFns:
  """Callables for one schedule; `params` is a `Params`.

  Args:
    built: structure of the model, with streams if a drafter wants them.
    schedule: `parallel` or `deferred`.
    keep_nodes: nodes the pruning adapter lets into the MSA layers; 0 is all.
    has_draft_head: streams draft from `params.drafter.head` alone.
    is_prompt: for passes over prompts, whose cache is empty.
  """
  is_parallel, cfg = schedule == 'parallel', built.cfg
  merge = lambda params: built.merge(params.base, params.adapter)
  init_cache = lambda rows, slots: cache_lib.init(cfg, rows, slots, cfg.dtype)

  def forward(
    params, tokens, positions, tree_mask, cache, *, with_streams
  ) -> interface.Forward:
    """See `interface.ModelFns`; streams run along if the schedule says so."""
    model = merge(params)
    result = forward_lib.forward_tree(
      model,
      tokens,
      positions,
      tree_mask,
      cache,
      with_streams=with_streams and is_parallel,
      survivors_of=pruning.best(keep_nodes),
      is_prompt=is_prompt,
    )
    seen = result.survivors
    pruned = None if seen is None else interface.Pruned(seen, model.first_msa)
    return interface.Forward(result.main, result.cache, result.streams, pruned)

  logits = lambda params, hidden: merge(params).logits(hidden)

  def stream_logits(params, stream_state, cache, positions):
    model = merge(params)
    if not is_parallel:
      stream_state = forward_lib.forward_streams(
        model, stream_state, positions, cache
      )
    if not has_draft_head:
      return interface.StreamLogits(model.logits(stream_state), stream_state)
    own = _draft_logits(stream_state, params.drafter.head, cfg)
    return interface.StreamLogits(own, stream_state)

  coupling = None
  if 'coupling' in built.adapter:
    coupling = functools.partial(_coupling_logits, built)
  return interface.ModelFns(
    init_cache, forward, logits, stream_logits, coupling
  )


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


def _draft_logits(hidden, head: DraftHead, cfg) -> arrays.Array:
  """Logits [..., V] of the head's tokens; the others are never drafted."""
  logits = layers.project(hidden, head.rows, jnp.float32)
  bias = head.bias if cfg.has_head_bias else None
  logits = transformer.finish_logits(cfg, logits, bias)
  nothing = jnp.full((*logits.shape[:-1], cfg.vocab_size), _NEVER, jnp.float32)
  return nothing.at[..., head.ids].set(
    logits, mode='drop', indices_are_sorted=True, unique_indices=True
  )
