# SPDX-License-Identifier: Apache-2.0
"""Drafts copied from a row's own text, and from what its answer is guessed to be.

The tokens that followed an earlier occurrence of the text's last n tokens are
the drafts (Saxena 2023, "Prompt lookup decoding"; `prompt_lookup_num_tokens` of
transformers). There: the first occurrence. Here: the latest ones, and a copy
that reaches the end of the text goes on with what it copied, as in LZ77, so
that a short repetition still fills the drafts.

Axis letters: B rows, T prompt positions, W positions of a guess, S of the text
(guess, prompt and output), C chains, L tokens of a chain.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import interface


class Source(NamedTuple):
  """What there is to copy from beside a row's output.

  Attributes:
    prompts: [B, T] int32, padded on the right.
    lengths: [B] int32.
    guesses: [B, W] int32 of the answer, after the last tokens of the prompt, so
      that they are found as what comes next; -1 is no token. W is 0 without.
  """

  prompts: arrays.Array
  lengths: arrays.Array
  guesses: arrays.Array


class Copies(NamedTuple):
  """Chains of drafts.

  Attributes:
    chains: [B, C, L] int32; -1 marks a token, and all after it, as unused.
    matched: [B, C] int32 tokens before the copy that are the text's last ones.
    is_guess: [B, C] bool, copied from the guess.
  """

  chains: arrays.Array
  matched: arrays.Array
  is_guess: arrays.Array


class State(NamedTuple):
  """What a drafter that copies remembers.

  Attributes:
    source: what there is to copy from.
    last: the copies that were proposed last.
    num_tokens: [B] int32 tokens of the output before those.
    accepted: [B] int32 draft tokens of the guess that were right.
  """

  source: Source
  last: Copies
  num_tokens: arrays.Array
  accepted: arrays.Array


class Outcome(NamedTuple):
  """What the last copies came to.

  Attributes:
    is_known: [B, C, L] bool, tokens that were right up to the one before, and
      whose place in the output is filled.
    is_right: [B, C, L] bool, of them those that stand there.
  """

  is_known: arrays.Array
  is_right: arrays.Array


def begin(
  prompts: arrays.Array,
  lengths: arrays.Array,
  *,
  num_chains: int,
  chain_length: int,
) -> State:
  """The state of rows without guesses; prompts [B, T] of lengths [B]."""
  batch = len(lengths)
  none = jnp.full((batch, num_chains, chain_length), -1, jnp.int32)
  zeros = jnp.zeros_like(none[..., 0])
  nothing = jnp.zeros((batch, 0), jnp.int32)
  return State(
    Source(prompts, lengths, nothing),
    Copies(none, zeros, zeros > 0),
    jnp.zeros_like(lengths),
    jnp.zeros_like(lengths),
  )


def foresee(state: State, guesses: arrays.Array, ngram: int) -> State:
  """The state with guesses [B, R] int32 of the answers, padded with -1.

  Args:
    state: of `begin`.
    guesses: room for R tokens each.
    ngram: tokens of a match, so many of the prompt go before a guess.
  """
  source = state.source
  index = source.lengths[:, None] - ngram + jnp.arange(ngram)[None]
  last = jnp.take_along_axis(source.prompts, index, axis=1, mode='clip')
  before = jnp.where(index >= 0, last, -1)
  # Nothing goes on from a guess into the prompt.
  after = jnp.full_like(guesses[:, :1], -1)
  whole = jnp.concatenate([before, guesses, after], axis=1)
  return state._replace(source=source._replace(guesses=whole))


def text_so_far(
  source: Source, context: interface.DraftContext
) -> tuple[arrays.Array, arrays.Array]:
  """Guess, prompt and output int32 [B, S] of each row, and their length [B].

  The root is the last token of the text. S = W + T + max_new.
  """
  start = source.lengths[:, None]
  width = source.prompts.shape[1] + context.tokens.shape[1]
  index = jnp.arange(width)[None]
  at = lambda x, i: jnp.take_along_axis(x, i, axis=1, mode='clip')
  text = jnp.where(
    index < start, at(source.prompts, index), at(context.tokens, index - start)
  )
  num_guessed = source.guesses.shape[1]
  text = jnp.concatenate([source.guesses, text], axis=1)
  return text, num_guessed + source.lengths + context.num_tokens


def look_up(
  text: arrays.Array,
  length: arrays.Array,
  *,
  ngram: int,
  num_chains: int,
  chain_length: int,
  num_guessed: int = 0,
) -> Copies:
  """What followed earlier occurrences of the last tokens.

  Longer matches go before shorter ones, those in a guess before others, later
  before earlier, and of equal continuations one is enough. Chains that find no
  match are -1.

  Args:
    text: [B, S] int32; -1 is no token.
    length: [B] int32 of `text`, at least 1 token.
    ngram: longest match; shorter ones down to one token will do.
    num_chains: C.
    chain_length: L.
    num_guessed: W, positions of `text` that are a guess.
  """
  width = text.shape[1]
  index = jnp.arange(width)[None]
  matched = _match_lengths(text, length, ngram)
  place = index + jnp.where(index < num_guessed, width, 0)
  scores = jnp.where(matched > 0, 2 * width * matched + place, -1)
  copies = _continuations(text, length, chain_length)
  scores = jnp.where(copies[..., 0] >= 0, scores, -1)
  found = []
  for _ in range(num_chains):
    best = jnp.argmax(scores, axis=1)[:, None]
    at_best = lambda x, best=best: jnp.take_along_axis(x, best, axis=1)
    is_found = at_best(scores) >= 0
    chain = jnp.take_along_axis(copies, best[..., None], axis=1)  # [B, 1, L]
    found.append(
      Copies(
        jnp.where(is_found, chain[:, 0], -1),
        jnp.where(is_found, at_best(matched), 0)[:, 0],
        (is_found & (best < num_guessed))[:, 0],
      )
    )
    scores = jnp.where(jnp.all(copies == chain, axis=-1), -1, scores)
  return Copies(*(jnp.stack(x, axis=1) for x in zip(*found, strict=True)))


def propose(
  state: State, context: interface.DraftContext, *, ngram: int
) -> tuple[State, Outcome]:
  """The state with what to draft now, and what the drafts before came to.

  Args:
    state: what was drafted before.
    context: rows after their last commit.
    ngram: longest match.
  """
  outcome = _follow(state, context)
  text, length = text_so_far(state.source, context)
  _, num_chains, chain_length = state.last.chains.shape
  found = look_up(
    text,
    length,
    ngram=ngram,
    num_chains=num_chains,
    chain_length=chain_length,
    num_guessed=state.source.guesses.shape[1],
  )
  accepted = state.accepted + _accepted(state, context, outcome)
  return State(state.source, found, context.num_tokens, accepted), outcome


def _follow(state: State, context: interface.DraftContext) -> Outcome:
  """Holds the last copies against the output."""
  chains = state.last.chains
  index = state.num_tokens[:, None] + jnp.arange(chains.shape[-1])[None]
  truth = jnp.take_along_axis(context.tokens, index, axis=1, mode='clip')
  is_there = (index < context.num_tokens[:, None])[:, None] & (chains >= 0)
  is_right = jnp.cumprod(is_there & (chains == truth[:, None]), axis=-1) > 0
  before = jnp.pad(is_right, ((0, 0), (0, 0), (1, 0)), constant_values=True)
  return Outcome(is_there & before[..., :-1], is_right)


def _accepted(state, context, outcome: Outcome) -> Any:
  """Drafts [B] of the guess that the last call accepted.

  A call emits one token more than it accepts. One that had no tree to verify
  accepts nothing, and there may have been several.
  """
  if context.last_tree is None:
    return jnp.zeros_like(state.accepted)
  has_drafts = jnp.any(context.last_tree.tokens[:, 1:] >= 0, axis=1)
  right = jnp.sum(outcome.is_right, axis=-1) * state.last.is_guess
  most = jnp.maximum(context.num_tokens - state.num_tokens - 1, 0)
  return jnp.where(has_drafts, jnp.minimum(right.max(axis=1), most), 0)


def _match_lengths(text, length, ngram):
  """How many tokens up to each position are the last ones, int32 [B, S]."""
  index = jnp.arange(text.shape[1])[None]
  last = length[:, None] - 1
  is_equal, matched = index < last, jnp.zeros(text.shape, jnp.int32)
  for back in range(ngram):
    wanted = jnp.take_along_axis(text, jnp.maximum(last - back, 0), axis=1)
    before = jnp.roll(text, back, axis=1)
    # An earlier position starts before the text does before the last one does.
    is_equal &= (before == wanted) & (wanted >= 0) & (index >= back)
    matched += is_equal
  return matched


def _continuations(text, length, chain_length):
  """The copy that begins after each position, int32 [B, S, L]."""
  index = jnp.arange(text.shape[1])[None, :, None]
  period = jnp.maximum(length[:, None, None] - 1 - index, 1)
  source = index + 1 + jnp.arange(chain_length)[None, None] % period
  flat = source.reshape(source.shape[0], -1)
  copies = jnp.take_along_axis(text, flat, axis=1, mode='clip')
  copies = copies.reshape(source.shape)
  return jnp.where(jnp.cumprod(copies >= 0, axis=-1) > 0, copies, -1)
