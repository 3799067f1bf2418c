# SPDX-License-Identifier: Apache-2.0
"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057) as a draft tree.

A window of guesses runs ahead of the text: W columns, n - 1 rows, each row the
target's answer to the row above, one token further on (Jacobi iteration). The
columns are n-grams of the target's own making, and go to a pool of which those
that begin with the root are verified. Both branches are one tree. For n = 4,
W = 3, g a guess from the pool, and (l, i) row l, column i:

  root - g - g - g            verification branch, C such chains
  root - (0, 1) - (0, 2)      row 0; its column 0 is the root itself
  root - (1, 0) - (2, 0)      below each node of row 0 the rest of its column
  (0, 1) - (1, 1) - (2, 1)
  (0, 2) - (1, 2) - (2, 2)

Paper: only the verification branch can be accepted. Here: window nodes as well,
since the walk is exact for any tree; where equal tokens meet, branches join.
The paper's reference implementation moves the window by one token per call,
however many were accepted; so do we.

Axis letters: B rows, T prompt positions, W window columns, M tree nodes, S
n-grams in the pool, C chains.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import (
  chains as chains_lib,
  interface,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded

DEFAULT_NUM_GUESSES = 2
_WINDOW_SEED = 0


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
  return loaded.beside(model, Lookahead(cfg))


class State(NamedTuple):
  """What a row has guessed so far.

  Attributes:
    window: [B, n - 1, W] int32; entry (0, 0) is the last root.
    pool: [B, S, n] int32 distinct n-grams, the newest first; -1 is empty.
  """

  window: arrays.Array
  pool: arrays.Array


class Lookahead:
  """Window and pool of `options`: `ngram`, `window`, `pool_size`, `num_guesses`.

  `options.tree` does not matter. The tree has (C + W) * (n - 1) nodes, root
  included; the deepest is the last one of the window, at depth W + n - 3, or of
  a chain, at n - 1.
  """

  with_streams = False

  def __init__(self, options: config_drafting.DrafterConfig):
    """Raises ValueError if the verifier draws no token at each node."""
    checks.check(
      options.drafting == 'top_k' and options.verifier == 'walk',
      f'lookahead has drafting {options.drafting!r} and verifier '
      f'{options.verifier!r}, but its window is made of the tokens that the '
      "walk draws; use drafting='top_k' and verifier='walk'",
    )
    self.options = options
    self.num_rows = options.ngram - 1
    self.num_guesses = options.num_guesses or DEFAULT_NUM_GUESSES
    self.max_depth = max(options.window + options.ngram - 3, self.num_rows)
    self._nodes = self._window_nodes()
    # The root is an entry of the window.
    self.size = self.num_rows * (self.num_guesses + options.window)

  def _window_nodes(self):
    """Tree node of each window entry, [n - 1, W]: row 0, then by column."""
    num_rows, width = self.num_rows, self.options.window
    nodes = np.zeros((num_rows, width), int)
    start = 1 + self.num_guesses * num_rows
    nodes[0, 1:] = start + np.arange(width - 1)
    below = start + width - 1 + np.arange(width * (num_rows - 1))
    nodes[1:] = below.reshape(width, num_rows - 1).T
    return nodes

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> State:
    """A window of tokens of the prompt, taken at random, and an empty pool."""
    del params
    options, batch = self.options, prompts.shape[0]
    shape = (self.num_rows, options.window)
    noise = jax.random.bits(jax.random.key(_WINDOW_SEED), shape, jnp.uint32)
    # The same for every row, so that none depends on its batch.
    index = noise.reshape(1, -1) % prompt_lengths[:, None].astype(jnp.uint32)
    window = jnp.take_along_axis(prompts, index.astype(jnp.int32), axis=1)
    pool = jnp.full((batch, options.pool_size, options.ngram), -1, jnp.int32)
    return State(window.reshape(batch, *shape).astype(jnp.int32), pool)

  def propose(
    self,
    params: Any,
    context: interface.DraftContext,
    state: State,
  ) -> tuple[tree_lib.DraftTree, State]:
    """The tree of window and guesses, and the state it was made from."""
    del params
    with jax.named_scope('lookahead'):
      if context.draws is not None:
        answers = context.draws[:, self._nodes[-1]]  # [B, W]
        state = advance(state, answers)
      window = state.window.at[:, 0, 0].set(context.root)
      state = state._replace(window=window)
      chains = guesses(state.pool, context.root, self.num_guesses)
      tree = self._tree(context.root, window, chains)
    return tree, state

  def _tree(self, root, window, chains):
    """Verification branch first: the walk takes the first of equal siblings."""
    above = np.zeros_like(self._nodes)
    above[0, 1:] = self._nodes[0, :-1]
    above[1:] = self._nodes[:-1]
    depths = np.add.outer(*map(np.arange, self._nodes.shape))
    tree = chains_lib.from_chains(root, chains)
    missing = self.size - tree.tokens.shape[1]
    grow = lambda x: jnp.pad(x, ((0, 0), (0, missing)))
    place = lambda x, values: grow(x).at[:, self._nodes].set(values)
    tree = tree_lib.DraftTree(
      place(tree.tokens, window),
      place(tree.parents, above[None]),
      place(tree.depths, depths[None]),
    )
    return chains_lib.share_prefixes(tree, max_depth=self.max_depth)


def advance(state: State, answers: arrays.Array) -> State:
  """Pools the finished n-grams and moves every row of the window up.

  Args:
    state: window and pool that the last tree was made from.
    answers: [B, W] int32, what the target drew at the last row of the window.
  """
  # Column i, the answer to it below: token j of its n-gram is row j.
  whole = jnp.concatenate([state.window, answers[:, None]], axis=1)
  return State(whole[:, 1:], remember(state.pool, whole.swapaxes(1, 2)))


def remember(pool: arrays.Array, ngrams: arrays.Array) -> arrays.Array:
  """The pool [B, S, n] with `ngrams` [B, W, n] in front, each only once.

  The oldest go. Of equal n-grams the newest stays; the first of `ngrams` counts
  as the newest.
  """
  both = jnp.concatenate([ngrams, pool], axis=1)
  same = jnp.all(both[:, :, None] == both[:, None], axis=-1)
  index = jnp.arange(both.shape[1])[None]
  is_kept = (jnp.argmax(same, axis=2) == index) & (both[..., 0] >= 0)
  order = jnp.argsort(~is_kept, axis=1, stable=True)[:, : pool.shape[1]]
  take = lambda x: jnp.take_along_axis(x, order[..., None], axis=1)
  return jnp.where(take(is_kept[..., None]), take(both), -1)


def guesses(
  pool: arrays.Array, root: arrays.Array, num_guesses: int
) -> arrays.Array:
  """What follows the root in its newest n-grams, int32 [B, C, n - 1].

  Chains for which the pool has none are -1. A pool smaller than C fills up.
  """
  is_hit = pool[..., 0] == root[:, None]
  order = jnp.argsort(~is_hit, axis=1, stable=True)[:, :num_guesses]
  take = lambda x: jnp.take_along_axis(x, order[..., None], axis=1)
  found = jnp.where(take(is_hit[..., None]), take(pool)[..., 1:], -1)
  missing = num_guesses - found.shape[1]
  return jnp.pad(found, ((0, 0), (0, missing), (0, 0)), constant_values=-1)
