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

from specstream_jax import typing
from specstream_jax.decoding import cache as cache_lib, interface
from specstream_jax.modeling import build, layers, transformer

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
    ids: int32 [N], ascending.
    rows: [N, D] their rows of the LM head.
  """

  ids: typing.Array
  rows: typing.Array


class StreamExtras(NamedTuple):
  """What the streams' drafter brings beside the adapter; () for nothing.

  Attributes:
    ngrams: an `ngrams.NgramTable`.
    head: a `DraftHead`.
  """

  ngrams: Any = ()
  head: Any = ()


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
    result = transformer.forward_tree(
      model,
      tokens,
      positions,
      tree_mask,
      cache,
      with_streams=with_streams and is_parallel,
      keep_nodes=keep_nodes,
      is_prompt=is_prompt,
    )
    seen = result.survivors
    pruned = None if seen is None else interface.Pruned(seen, model.first_msa)
    return interface.Forward(result.main, result.cache, result.streams, pruned)

  logits = lambda params, hidden: merge(params).logits(hidden)

  def stream_logits(params, stream_state, cache, positions):
    model = merge(params)
    if not is_parallel:
      stream_state = transformer.forward_streams(
        model, stream_state, positions, cache
      )
    if not has_draft_head:
      return interface.StreamLogits(model.logits(stream_state), stream_state)
    own = _draft_logits(stream_state, params.drafter.head, cfg.vocab_size)
    return interface.StreamLogits(own, stream_state)

  coupling = None
  if 'coupling' in built.adapter:
    coupling = functools.partial(_coupling_logits, built)
  return interface.ModelFns(
    init_cache, forward, logits, stream_logits, coupling
  )


def _coupling_logits(
  built, params, hidden, parents, candidates
) -> typing.Array:
  model = built.merge(params.base, params.adapter)
  return model.coupling_logits(hidden, parents, candidates)


def _draft_logits(hidden, head: DraftHead, vocab_size: int) -> typing.Array:
  """Logits [..., V] of the head's tokens; the others are never drafted."""
  logits = layers.project(hidden, head.rows, jnp.float32)
  nothing = jnp.full((*logits.shape[:-1], vocab_size), _NEVER, jnp.float32)
  return nothing.at[..., head.ids].set(
    logits, indices_are_sorted=True, unique_indices=True
  )
