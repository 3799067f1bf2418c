# SPDX-License-Identifier: Apache-2.0
"""Prompt look-up: drafts copied from the row's own text, without a model.

The tokens that followed the last occurrence of the text's last n tokens are
the drafts (Saxena 2023, "Prompt lookup decoding"; `prompt_lookup_num_tokens` of
transformers). There: the first occurrence. Here: the latest ones, as one tree,
and a copy that reaches the end of the text goes on with what it copied, as in
LZ77, so that a short repetition still fills the drafts.

Axis letters: B rows, T prompt positions, S text positions (prompt and output),
C chains, L tokens of a chain.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import (
  chains as chains_lib,
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


class Prompts(NamedTuple):
  """What the text begins with.

  Attributes:
    tokens: [B, T] int32, padded on the right.
    lengths: [B] int32.
  """

  tokens: arrays.Array
  lengths: arrays.Array


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
  ) -> Prompts:
    """The prompts."""
    del params
    return Prompts(prompts, prompt_lengths)

  def propose(
    self,
    params: Any,
    context: interface.DraftContext,
    state: Prompts,
  ) -> tuple[tree_lib.DraftTree, Prompts]:
    """Copies below the root; where a row has no match, unused nodes."""
    del params
    with jax.named_scope('prompt_lookup'):
      text, length = text_so_far(state, context)
      chains = look_up(
        text,
        length,
        ngram=self.options.ngram,
        num_chains=self.num_guesses,
        chain_length=self.max_depth,
      )
      tree = chains_lib.from_chains(context.root, chains)
      tree = chains_lib.share_prefixes(tree, max_depth=self.max_depth)
    return tree, state


def text_so_far(
  prompts: Prompts, context: interface.DraftContext
) -> tuple[arrays.Array, arrays.Array]:
  """Prompt and output int32 [B, S] of each row, and their length [B].

  The root is the last token of the text. S = T + max_new.
  """
  start = prompts.lengths[:, None]
  width = prompts.tokens.shape[1] + context.tokens.shape[1]
  index = jnp.arange(width)[None]
  at = lambda x, i: jnp.take_along_axis(x, i, axis=1, mode='clip')
  text = jnp.where(
    index < start, at(prompts.tokens, index), at(context.tokens, index - start)
  )
  return text, prompts.lengths + context.num_tokens


def look_up(
  text: arrays.Array,
  length: arrays.Array,
  *,
  ngram: int,
  num_chains: int,
  chain_length: int,
) -> arrays.Array:
  """What followed earlier occurrences of the last tokens, int32 [B, C, L].

  Longer matches go before shorter ones, later before earlier, and of equal
  continuations one is enough. Chains that find no match are -1.

  Args:
    text: [B, S] int32.
    length: [B] int32 valid entries of `text`, at least 1.
    ngram: longest match; shorter ones down to one token will do.
    num_chains: C.
    chain_length: L.
  """
  width = text.shape[1]
  matched = _match_lengths(text, length, ngram)
  scores = jnp.where(matched > 0, matched * width + jnp.arange(width)[None], -1)
  copies = _continuations(text, length, chain_length)
  chains = []
  for _ in range(num_chains):
    best = jnp.argmax(scores, axis=1)[:, None]
    is_found = jnp.take_along_axis(scores, best, axis=1) >= 0
    chain = jnp.take_along_axis(copies, best[..., None], axis=1)  # [B, 1, L]
    chains.append(jnp.where(is_found, chain[:, 0], -1))
    scores = jnp.where(jnp.all(copies == chain, axis=-1), -1, scores)
  return jnp.stack(chains, axis=1)


def _match_lengths(text, length, ngram):
  """How many tokens up to each position are the last ones, int32 [B, S]."""
  index = jnp.arange(text.shape[1])[None]
  last = length[:, None] - 1
  is_equal, matched = index < last, jnp.zeros(text.shape, jnp.int32)
  for back in range(ngram):
    wanted = jnp.take_along_axis(text, jnp.maximum(last - back, 0), axis=1)
    before = jnp.roll(text, back, axis=1)
    # An earlier position starts before the text does before the last one does.
    is_equal &= (before == wanted) & (index >= back)
    matched += is_equal
  return matched


def _continuations(text, length, chain_length):
  """The copy that begins after each position, int32 [B, S, L]."""
  index = jnp.arange(text.shape[1])[None, :, None]
  period = jnp.maximum(length[:, None, None] - 1 - index, 1)
  source = index + 1 + jnp.arange(chain_length)[None, None] % period
  flat = source.reshape(source.shape[0], -1)
  copies = jnp.take_along_axis(text, flat, axis=1, mode='clip')
  return copies.reshape(source.shape)
