# SPDX-License-Identifier: Apache-2.0
"""Prompt look-up: drafts copied from the row's own text, without a model.

What is copied, and from where: `copies`. The latest continuations make one
tree.

Axis letters: B rows, T prompt positions, R tokens of a guess, C chains, L
tokens of a chain.
"""

from typing import Any

import jax

from specstream_jax import arrays, config
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import (
  chains as chains_lib,
  copies,
  interface,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded

# With the root eight nodes, which cost a CPU less than seven or nine
# (docs/LOG.md).
DEFAULT_DEPTH = 7
DEFAULT_NUM_GUESSES = 1


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model without streams, LoRA folded in, and the drafter.

  Raises:
    ValueError: the drafter cannot draft or be verified this way.
  """
  del decode
  return loaded.beside(model, PromptLookup(cfg))


class PromptLookup:
  """Copies of what followed earlier occurrences of the last tokens.

  Of `options.tree` only the depth counts, which is L; C are its
  `num_guesses`.
  """

  with_streams = False

  def __init__(self, options: config_drafting.DrafterConfig):
    """Raises ValueError if drafts are to be drawn: copies follow no law."""
    checks.check(
      options.drafting == 'top_k',
      f'prompt look-up cannot draft with {options.drafting!r}, as its drafts '
      "follow no law; use drafting='top_k'",
    )
    tree = options.tree
    self.options = options
    self.max_depth = DEFAULT_DEPTH if tree is None else tree.max_depth
    self.num_guesses = options.num_guesses or DEFAULT_NUM_GUESSES
    self.size = 1 + self.num_guesses * self.max_depth

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> copies.State:
    """The prompts, and nothing drafted yet."""
    del params
    return copies.begin(
      prompts,
      prompt_lengths,
      num_chains=self.num_guesses,
      chain_length=self.max_depth,
    )

  def foresee(self, state: copies.State, guesses: arrays.Array) -> copies.State:
    """The state that copies from guesses [B, R] of the answers, too."""
    return copies.foresee(state, guesses, self.options.ngram)

  def num_foreseen(self, state: copies.State) -> arrays.Array:
    """[B] int32 draft tokens of the guesses that were right."""
    return state.accepted

  def propose(
    self,
    params: Any,
    context: interface.DraftContext,
    state: copies.State,
  ) -> tuple[tree_lib.DraftTree, copies.State]:
    """Copies below the root; where a row has no match, unused nodes."""
    del params
    with jax.named_scope('prompt_lookup'):
      state, _ = copies.propose(state, context, ngram=self.options.ngram)
      tree = chains_lib.from_chains(context.root, state.last.chains)
      tree = chains_lib.share_prefixes(tree, max_depth=self.max_depth)
    return tree, state
