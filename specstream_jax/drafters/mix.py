# SPDX-License-Identifier: Apache-2.0
"""Drafts of streams and copies of the row's own text in one tree.

A copy competes with the streams' nodes for the same places, by probability. How
likely a copied token is depends on how many tokens before it are the text's
last ones: a copy after a match of m is the m + 1st to match if it is right, and
so on. The rates begin as `RATES` and follow what the row's copies come to; what
was not verified teaches as well, since the output is known. Where no match is,
the tree is that of the streams; for rows without streams it is the copy.

Axis letters: B rows, T prompt positions, M tree nodes including the root, R
tokens of a guess, L tokens of a copy, K lengths of matches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import (
  copies,
  grafts,
  interface,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded, streams as streams_lib

# That a copied token is right after a match of 1, 2, …, K or more tokens. The
# mean of 24 answers each to E2E and SQL prompts (dev) of the adapters for them,
# 897 copied tokens. A guess of the answer is not measured, but supposed to be
# better than chance.
RATES = (0.37, 0.54, 0.64, 0.67, 0.67, 0.67, 0.80, 0.80)
GUESS_RATES = (0.50, 0.80, 0.85, 0.90, 0.90, 0.95, 0.95, 0.95)
LONGEST = len(RATES)
# Observations of a row that weigh as much as those.
_STRENGTH = 8.0


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model with its streams.

  Raises:
    ValueError: no adapter is loaded, or the tree or the settings do not fit.
  """
  made = streams_lib.load(model, cfg, decode)
  assert isinstance(made.drafter, streams_lib.Streams)
  return made._replace(drafter=Mix(made.drafter, cfg))


class State(NamedTuple):
  """What a row remembers.

  Attributes:
    streams: their own state.
    copies: a `copies.State` of one chain.
    tried: [B, 2 K] float32 copied tokens, by the match before them; those of a
      guess behind the others.
    right: [B, 2 K] float32, of them those that were right.
  """

  streams: Any
  copies: copies.State
  tried: arrays.Array
  right: arrays.Array


class Mix:
  """The likeliest nodes of the streams' tree and of a copy."""

  with_streams = True

  def __init__(
    self, streams: streams_lib.Streams, options: config_drafting.DrafterConfig
  ):
    """Raises ValueError if drafts follow a law, as copies follow none.

    Args:
      streams: the drafter of the streams' tree, which is of kind `best_first`.
      options: how drafts are made.
    """
    checks.check(
      options.drafting == 'top_k',
      f'copies follow no law, so a mix cannot draft with {options.drafting!r}; '
      "use drafting='top_k'",
    )
    tree = streams.cfg
    checks.check(
      tree.kind == 'best_first',
      f'a mix takes the likeliest nodes, but the tree is of kind {tree.kind!r}; '
      'use kind=best_first',
    )
    self.streams, self.options, self.size = streams, options, tree.size
    # What prunes nodes on the way knows paths as long as there are streams.
    most = tree.max_depth if tree.keep_nodes else tree.size - 1
    self.copy_length = most
    self.max_depth = max(tree.max_depth, most)

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> State:
    """Nothing copied yet."""
    begun = copies.begin(
      prompts, prompt_lengths, num_chains=1, chain_length=self.copy_length
    )
    own = self.streams.init(params, prompts, prompt_lengths)
    rates = np.array([*RATES, *GUESS_RATES], np.float32)
    right = jnp.tile(_STRENGTH * rates, (len(prompt_lengths), 1))
    return State(own, begun, jnp.full_like(right, _STRENGTH), right)

  def foresee(self, state: State, guesses: arrays.Array) -> State:
    """The state that copies from guesses [B, R] of the answers, too."""
    return state._replace(copies=copies.foresee(state.copies, guesses, LONGEST))

  def num_foreseen(self, state: State) -> arrays.Array:
    """[B] int32 draft tokens of the guesses that were right."""
    return state.copies.accepted

  def propose(
    self, params: Any, context: interface.DraftContext, state: State
  ) -> tuple[tree_lib.DraftTree, State]:
    """The likeliest nodes of both."""
    with jax.named_scope('copies'):
      state = self._copy(context, state)
      chain = state.copies.last.chains[:, 0]
      log_probs = _log_probs(state)
    grown = self._grown(params, context, state, log_probs)
    limits = self.streams.limits(params)
    with jax.named_scope('mix'):
      tree = grafts.best(
        grafts.graft(grown, chain, log_probs),
        self.size,
        None if limits is None else limits.size,
      )
    return tree, state

  def _copy(self, context, state: State) -> State:
    """Looks for what to copy, and learns of what was copied before."""
    before = _kinds(state.copies.last, self.copy_length)
    found, outcome = copies.propose(state.copies, context, ngram=LONGEST)
    row = jnp.arange(len(before))[:, None]
    add = lambda x, more: x.at[row, before].add(more[:, 0].astype(x.dtype))
    return state._replace(
      copies=found,
      tried=add(state.tried, outcome.is_known),
      right=add(state.right, outcome.is_right),
    )

  def _grown(self, params, context, state, log_probs) -> tree_lib.DraftTree:
    """The streams' tree, or none of its nodes where copies will do."""
    ask = lambda: self.streams.scored(params, context, state.streams)
    chain = state.copies.last.chains[:, 0]
    probs = jnp.where(chain >= 0, jnp.exp(log_probs), 0.0)
    is_enough = probs.mean(axis=1) >= self.options.skip_streams
    if context.is_drafting is not None:
      is_enough |= ~context.is_drafting
    blank = lambda: tree_lib.blank(context.root, self.size)
    return jax.lax.cond(is_enough.all(), blank, ask)


def _kinds(last: copies.Copies, length: int) -> arrays.Array:
  """Which of the 2 K rates each token of the copies has, int32 [B, L]."""
  before = last.matched + jnp.arange(length)[None]
  kinds = jnp.clip(before, 1, LONGEST) - 1
  return kinds + jnp.where(last.is_guess, LONGEST, 0)


def _log_probs(state: State) -> arrays.Array:
  """That the copy is right up to each of its tokens, float32 [B, L]."""
  last = state.copies.last
  kinds = _kinds(last, last.chains.shape[-1])
  rates = jnp.take_along_axis(state.right / state.tried, kinds, axis=1)
  return jnp.cumsum(jnp.log(rates), axis=1)
