# SPDX-License-Identifier: Apache-2.0
"""How many calls every tree would take, from one pass of plain decoding.

What streams draft depends on the text up to there and on nothing else, least
of all on the tree that was verified before. So one run that emits a token per
call, and draws all trees at each of them, knows which calls each tree would
have made: it hops from the end of one accepted path to the next. That is no
estimate, but what `bench` counts, up to rounding.

Axis letters: B rows, N most new tokens, M tree nodes, J streams.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config, drafters, runtime
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder as decoder_lib,
  interface,
  tree as tree_lib,
)
from specstream_jax.streaming import loading as streamed_loading


@dataclasses.dataclass(frozen=True)
class Surveyed:
  """What a batch of prompts came to.

  Attributes:
    num_tokens: of each row, that of the prompt pass among them.
    calls: tree -> calls of each row; those without drafts are num_tokens - 1.
  """

  num_tokens: list[int]
  calls: dict[config.TreeConfig, list[int]]


class _Observer:
  """Draws all trees at every token, and lets none of them be verified."""

  size, max_depth, with_streams = 1, 0, True

  def __init__(self, inner: Sequence[Any], max_new_tokens: int):
    """Takes one drafter of streams for each tree."""
    self._inner, self._max_new = inner, max_new_tokens

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> Any:
    """No trees yet, [B, N, M] of each."""
    batch = len(prompt_lengths)
    empty = [
      (jnp.full((batch, self._max_new, one.size), -1, jnp.int32),)
      + (jnp.zeros((batch, self._max_new, one.size), jnp.int32),) * 2
      for one in self._inner
    ]
    own = self._inner[0].init(params, prompts, prompt_lengths)
    return own, empty

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The root alone; the trees go to the state, under the root's number."""
    own, seen = state
    said = context.stream_logits()
    rows, place = jnp.arange(len(context.root)), context.num_tokens - 1
    found = []
    for one, before in zip(self._inner, seen, strict=True):
      tree = one.grow(said, params, context, own)
      now = (tree.tokens, tree.parents, tree.depths)
      found.append(
        tuple(
          old.at[rows, place].set(new)
          for old, new in zip(before, now, strict=True)
        )
      )
    return tree_lib.root_only(context.root), (own, found)


class Survey:
  """A model whose text is decoded plainly, trees of many shapes looked at.

  Compiles once for each number of rows and prompt bucket.
  """

  def __init__(
    self,
    model: runtime.Model,
    drafter: config_drafting.DrafterConfig,
    trees: Sequence[config.TreeConfig],
    decode: config.DecodeConfig,
  ):
    """Takes what all trees have in common.

    Args:
      model: with streams.
      drafter: streams and their settings; its tree is not read.
      trees: shapes, at least one.
      decode: sizes and stop conditions.

    Raises:
      ValueError: streams cannot be drafted from, or a tree does not fit.
    """
    self._trees = tuple(trees)
    made = [
      drafters.load(model, dataclasses.replace(drafter, tree=tree), decode)
      for tree in self._trees
    ]
    observer = _Observer([one.drafter for one in made], decode.max_new_tokens)
    most = model.config.most_positions
    if model.streamed is not None:
      first = made[0]._replace(drafter=observer)
      self._decoder = streamed_loading.make_decoder(
        first, drafter, decode, model.streamed, most
      )
      return
    self._decoder = decoder_lib.Decoder(
      made[0].model,
      observer,
      decode,
      prompt_model=made[0].prompt_model,
      partitioner=model.partitioner,
      params=made[0].params,
      most_positions=most,
    )

  def run(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: config.SamplingConfig = config.SamplingConfig(),
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
  ) -> Surveyed:
    """Decodes a batch of prompts; arguments as of `Decoder.generate`."""
    decoder = self._decoder
    state = decoder.start(
      decoder.params, prompts, seed=seed, row_ids=row_ids, sampling=sampling
    )
    state = decoder.advance(decoder.params, state)
    counts = np.asarray(state.num_tokens)
    _, seen = state.drafter_state
    tokens = jnp.asarray(state.tokens)
    calls = {}
    for tree, (drafts, parents, depths) in zip(self._trees, seen, strict=True):
      found = tree_lib.DraftTree(drafts, parents, depths)
      lengths = np.asarray(_accept_lengths(found, tokens, state.num_tokens))
      calls[tree] = [
        _hops(row, int(count))
        for row, count in zip(lengths, counts, strict=True)
      ]
    return Surveyed(counts.tolist(), calls)


@jax.jit
def _accept_lengths(
  trees: tree_lib.DraftTree, tokens: arrays.Array, num_tokens: arrays.Array
) -> arrays.Array:
  """How much of each tree comes true, int32 [B, N].

  Args:
    trees: arrays [B, N, M], rooted at each token.
    tokens: [B, N] int32.
    num_tokens: [B] int32.
  """
  batch, length, num_nodes = trees.tokens.shape
  ahead = jnp.arange(length)[:, None] + jnp.arange(1, num_nodes)[None]
  truth = tokens[:, jnp.minimum(ahead, length - 1)]
  truth = jnp.where(ahead[None] < num_tokens[:, None, None], truth, -1)
  flat = jax.tree.map(lambda x: x.reshape(-1, num_nodes), trees)
  hits = tree_lib.tree_hits(flat, truth.reshape(-1, num_nodes - 1))
  return hits.reshape(batch, length)


def _hops(accept_lengths: np.ndarray, num_tokens: int) -> int:
  """Calls until the last token; the prompt pass gives the first."""
  place = calls = 0
  while place < num_tokens - 1:
    place += int(accept_lengths[place]) + 1
    calls += 1
  return calls
