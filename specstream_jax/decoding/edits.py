# SPDX-License-Identifier: Apache-2.0
"""What is done to logits before anything is drawn from them.

Bias, repetition penalty, EOS that may not come yet, suppressed tokens: in the
order and with the meaning that transformers gives them. A penalty depends on
the text, so at a node of a draft tree on the path to it: prompt, output and the
node's ancestors. What a verifier sees of the target is edited already, hence
whatever it accepts is what plain decoding would have drawn.

Axis letters: B rows, T prompt positions, M tree nodes, P path length, E EOS ids,
K biased tokens, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.decoding import tree as tree_lib

# Room for so many biased tokens, then twice as many, and so on: longer lists
# are other shapes, for which the prompt pass compiles anew.
ROOM = 1024


class Request(NamedTuple):
  """What the rows of a batch ask for.

  Attributes:
    tokens: [B, K] int32 biased token ids, -1 where there are fewer.
    biases: [B, K] float32, minus infinity for suppressed tokens.
    repetition_penalty: [B] float32; 1 is off.
    presence_penalty: [B] float32; 0 is off.
    frequency_penalty: [B] float32; 0 is off.
    min_new_tokens: [B] int32.
  """

  tokens: arrays.Array
  biases: arrays.Array
  repetition_penalty: arrays.Array
  presence_penalty: arrays.Array
  frequency_penalty: arrays.Array
  min_new_tokens: arrays.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edits:
  """How each row's logits are edited, and what it has said so far.

  Attributes:
    bias: [B, V] float32, added to the logits.
    is_biased: [B] bool, whether any of that is not 0.
    repetition_penalty: [B] float32; 1 is off.
    presence_penalty: [B] float32; 0 is off.
    frequency_penalty: [B] float32; 0 is off.
    eos_from: [B] int32, first position that may hold EOS.
    eos_ids: [B, E] int32; -1 where a row ignores EOS.
    seen: [B, V] bool, tokens of the prompt and the output.
    counts: [B, V] int32, how often each token is in the output.
  """

  bias: arrays.Array
  is_biased: arrays.Array
  repetition_penalty: arrays.Array
  presence_penalty: arrays.Array
  frequency_penalty: arrays.Array
  eos_from: arrays.Array
  eos_ids: arrays.Array
  seen: arrays.Array
  counts: arrays.Array

  @property
  def is_counted(self) -> arrays.Array:
    """[B] bool, whether it matters how often a token has come."""
    return (self.presence_penalty != 0.0) | (self.frequency_penalty != 0.0)


def request(cfgs: Sequence[config.SamplingConfig]) -> Request:
  """The requests of each row as arrays of numpy."""
  most = max((len(cfg.biases) for cfg in cfgs), default=0)
  room = ROOM
  while room < most:
    room *= 2
  tokens = np.full((len(cfgs), room), -1, np.int32)
  biases = np.zeros((len(cfgs), room), np.float32)
  for row, cfg in enumerate(cfgs):
    if cfg.biases:
      tokens[row, : len(cfg.biases)] = list(cfg.biases)
      biases[row, : len(cfg.biases)] = list(cfg.biases.values())
  pick = lambda name, dtype: np.array([getattr(c, name) for c in cfgs], dtype)
  on_host: Any = (
    tokens,
    biases,
    pick('repetition_penalty', np.float32),
    pick('presence_penalty', np.float32),
    pick('frequency_penalty', np.float32),
    pick('min_new_tokens', np.int32),
  )
  return Request(*on_host)


def start(
  asked: Request,
  eos_ids: arrays.Array,
  prompts: arrays.Array,
  prompt_lengths: arrays.Array,
  vocab_size: int,
) -> Edits:
  """The edits of rows that have said nothing yet.

  Args:
    asked: what to do.
    eos_ids: [B, E] int32; -1 where a row ignores EOS.
    prompts: [B, T] int32, padded on the right.
    prompt_lengths: [B] int32.
    vocab_size: V.
  """
  batch = prompts.shape[0]
  rows = jnp.arange(batch)[:, None]
  is_text = jnp.arange(prompts.shape[1])[None] < prompt_lengths[:, None]
  nothing = jnp.zeros((batch, vocab_size))
  bias = nothing.at[rows, _drop(asked.tokens, vocab_size)].add(
    asked.biases, mode='drop'
  )
  return Edits(
    bias=bias,
    is_biased=jnp.any(asked.tokens >= 0, axis=1),
    repetition_penalty=asked.repetition_penalty,
    presence_penalty=asked.presence_penalty,
    frequency_penalty=asked.frequency_penalty,
    eos_from=prompt_lengths + asked.min_new_tokens,
    eos_ids=eos_ids,
    seen=_mark(nothing > 0, jnp.where(is_text, prompts, -1)),
    counts=nothing.astype(jnp.int32),
  )


def remember(edits: Edits | None, tokens: arrays.Array) -> Edits | None:
  """The edits after the output has grown by `tokens` [B, P]; -1 is none."""
  if edits is None:
    return None
  return dataclasses.replace(
    edits,
    seen=_mark(edits.seen, tokens),
    counts=_count(edits.counts, tokens),
  )


def apply(
  edits: Edits | None,
  logits: arrays.Array,
  positions: arrays.Array,
  paths: arrays.Array | None = None,
) -> arrays.Array:
  """The edited logits, float32 [B, M, V].

  Args:
    edits: None leaves the logits alone.
    logits: [B, M, V].
    positions: [B, M] int32, absolute position of the token to draw.
    paths: [B, M, P] int32, tokens that come after the output, -1 being none;
      None where only the output counts.
  """
  if edits is None:
    return logits
  logits = logits.astype(jnp.float32)
  is_early = positions < edits.eos_from[:, None]
  is_edited = jnp.any(edits.is_biased | (edits.repetition_penalty != 1.0))
  is_edited |= jnp.any(is_early | edits.is_counted[:, None])

  def edit(logits):
    """Bias, penalties and EOS, in that order."""
    # The bias of a suppressed token is -inf, which no penalty moves.
    logits = logits + edits.bias[:, None]
    seen = jnp.broadcast_to(edits.seen[:, None], logits.shape)
    if paths is not None:
      seen = _mark(seen, paths)
    penalty = edits.repetition_penalty[:, None, None]
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    logits = jnp.where(seen, penalised, logits)
    logits = _less_of_the_frequent(edits, logits, paths)
    batch, num_nodes, vocab_size = logits.shape
    rows, nodes = jnp.arange(batch), jnp.arange(num_nodes)
    never = jnp.where(is_early, -jnp.inf, 0.0)
    index = rows[:, None, None], nodes[None, :, None]
    eos = _drop(edits.eos_ids, vocab_size)[:, None]
    return logits.at[*index, eos].add(never[..., None], mode='drop')

  return jax.lax.cond(is_edited, edit, lambda logits: logits, logits)


def _less_of_the_frequent(edits, logits, paths):
  """Logits [B, M, V] after the penalties on what the output has already."""

  def penalise(logits):
    counts = jnp.broadcast_to(edits.counts[:, None], logits.shape)
    if paths is not None:
      counts = _count(counts, paths)
    frequency = edits.frequency_penalty[:, None, None] * counts
    presence = edits.presence_penalty[:, None, None] * (counts > 0)
    return logits - frequency - presence

  is_counted = jnp.any(edits.is_counted)
  return jax.lax.cond(is_counted, penalise, lambda logits: logits, logits)


def tree_paths(tree: tree_lib.DraftTree, path_length: int) -> arrays.Array:
  """Tokens [B, M, P] of each node and its ancestors; -1 from the root on.

  The root is the last token of the output, and known.

  Args:
    tree: M nodes.
    path_length: P, nodes of the longest path, the root included.
  """
  node = jnp.broadcast_to(
    jnp.arange(tree.tokens.shape[1], dtype=jnp.int32)[None], tree.tokens.shape
  )
  tokens = []
  for _ in range(path_length):
    own = jnp.take_along_axis(tree.tokens, node, axis=1)
    tokens.append(jnp.where(node > 0, own, -1))
    node = jnp.take_along_axis(tree.parents, node, axis=1)
  return jnp.stack(tokens, axis=-1)


def _drop(tokens, vocab_size):
  """Token ids that a scatter drops where they are none; -1 would wrap."""
  return jnp.where(tokens < 0, vocab_size, tokens)


def _mark(seen, tokens):
  """`seen` [..., V] with True at `tokens` [..., N]; -1 is none."""
  index = jnp.indices(tokens.shape, sparse=True)[:-1]
  return seen.at[*index, _drop(tokens, seen.shape[-1])].set(True, mode='drop')


def _count(counts, tokens):
  """`counts` [..., V] with one more for each of `tokens` [..., N]; -1 is none."""
  index = jnp.indices(tokens.shape, sparse=True)[:-1]
  return counts.at[*index, _drop(tokens, counts.shape[-1])].add(1, mode='drop')
