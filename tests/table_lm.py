# SPDX-License-Identifier: Apache-2.0
"""A model that is a table, behind the same `ModelFns` as the real one.

The next token depends on the last two tokens and on a position-weighted sum
of all tokens, hashed into a random table. Tokens and positions live in the
"keys" of a one-layer cache and every feature is read *through* the cache and
the tree mask, so a wrong mask, slot, length or commit changes the output.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax.decoding import (
  interface,
  tree as tree_lib,
)
from specstream_jax.modeling import cache as cache_lib

VOCAB_SIZE = 13
NUM_CONTEXTS = 211
NUM_STREAMS = 3
FACTORS = (7, 31, 3)  # hash factors of the last token, the one before, the sum
PERIOD = 5


def make_params(
  seed: int,
  *,
  quality: float = 0.5,
  vocab_size: int = VOCAB_SIZE,
  scale: float = 2.0,
  num_streams: int = NUM_STREAMS,
):
  """Random tables; streams are right more often as `quality` goes to 1."""
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(NUM_CONTEXTS, vocab_size)) * scale
  noise = rng.normal(size=(num_streams, NUM_CONTEXTS, vocab_size)) * scale
  return {
    'table': jnp.asarray(table, jnp.float32),
    'noise': jnp.asarray(noise, jnp.float32),
    'quality': jnp.float32(quality),
  }


def context_index(previous, before, total):
  """Row of the table; tokens count from 1, 0 = none."""
  a, b, c = FACTORS
  return (a * previous + b * before + c * total) % NUM_CONTEXTS


def init_cache(batch: int, cache_length: int) -> cache_lib.Cache:
  keys = jnp.zeros((batch, 1, cache_length, 2))
  return cache_lib.Cache((keys,), (keys + 0,), jnp.zeros(batch, jnp.int32))


def read(cache, visible, positions):
  """Features [B, M] x 3 of nodes at `positions` seeing `visible` [B, M, S]."""
  slots = cache.keys[0][:, 0].astype(jnp.int32)  # [B, S, 2]
  tokens, places = slots[:, None, :, 0] + 1, slots[:, None, :, 1]
  at = lambda lag: jnp.where(
    visible & (places == positions[..., None] - lag), tokens, 0
  ).sum(-1)
  total = jnp.where(visible, tokens * (places % PERIOD + 1), 0).sum(-1)
  return at(0), at(1), total


def forward(
  params, tokens, positions, tree_mask, cache, *, with_streams, scores=None
):
  del with_streams, scores
  new = jnp.stack([tokens, positions], axis=-1)[:, :, None]  # [B, M, K=1, 2]
  # A tree that grows: its earlier nodes lie in the slots from `length` on.
  start = cache.length + tree_mask.shape[-1] - tokens.shape[1]
  write = functools.partial(cache_lib.append, start=start)
  cache = cache_lib.Cache(
    (write(cache.keys[0], new),), (write(cache.values[0], -new),), cache.length
  )
  visible = jax.vmap(_visible, (0, 0, None))(
    tree_mask, cache.length, cache.num_slots
  )
  context = context_index(*read(cache, visible, positions))
  return interface.Forward(context[..., None], cache, {'token': tokens})


def _visible(tree_mask, length, num_slots):
  """One row: slots below `length`, then the tree's own columns."""
  wide = jnp.zeros((tree_mask.shape[0], num_slots), bool)
  wide = jax.lax.dynamic_update_slice(wide, tree_mask, (0, length))
  return wide | (jnp.arange(num_slots) < length)[None]


def logits(params, hidden):
  return params['table'][hidden[..., 0]]


def stream_logits(params, state, cache, positions):
  """The greedy continuation's logits, blended with noise."""
  visible = jnp.arange(cache.num_slots)[None] < cache.length[:, None]
  features = read(cache, visible[:, None], positions[:, None])
  previous, before, total = (x[:, 0] for x in features)
  # A wrong leaf or a wrong commit shows up as poor drafts.
  previous = jnp.where(previous == state['token'] + 1, previous, 0)
  first_context = context_index(previous, before, total)
  streams = []
  for j in range(len(params['noise'])):
    context = context_index(previous, before, total)
    token = jnp.argmax(params['table'][context], axis=-1) + 1
    place = positions + 1 + j
    previous, before = token, previous
    total = total + token * (place % PERIOD + 1)
    main = params['table'][context_index(previous, before, total)]
    noise = params['noise'][j][first_context]
    quality = params['quality']
    streams.append(quality * main + (1 - quality) * noise)
  return interface.StreamLogits(jnp.stack(streams, axis=1))


MODEL = interface.ModelFns(init_cache, forward, logits, stream_logits)


class RandomDrafter:
  """Random trees: any shape, equal siblings, unused nodes, some right drafts.

  Attributes:
    size: M.
    max_depth: deepest node.
    with_streams: True.
  """

  size, max_depth, with_streams = 8, NUM_STREAMS, True

  def init(self, params, prompts, prompt_lengths):
    del params, prompts
    return {'seed': jnp.sum(prompt_lengths)}

  def propose(self, params, context, state):
    """State counts the calls, so that every call has another shape."""
    streams = context.stream_logits()
    key = jax.random.key(state['seed'])
    shape = (context.root.shape[0], self.size)
    draws = jax.random.randint(key, (3, *shape), 0, 2**16)
    guesses = jnp.argmax(streams.logits, axis=-1).astype(jnp.int32)
    rows = jnp.arange(shape[0])
    tokens = [context.root]
    parents, depths = [jnp.zeros_like(context.root)], [context.root * 0]
    for node in range(1, self.size):
      above = jnp.stack(depths, axis=1)
      parent = draws[0, :, node] % node
      parent = jnp.where(above[rows, parent] < self.max_depth, parent, 0)
      depth = above[rows, parent] + 1
      wild = draws[1, :, node] % (VOCAB_SIZE + 1) - 1
      is_guess = draws[2, :, node] % 2 == 0
      token = jnp.where(is_guess, guesses[rows, depth - 1], wild)
      tokens.append(token)
      parents.append(parent)
      depths.append(depth)
    stack = lambda x: jnp.stack(x, axis=1).astype(jnp.int32)
    drafts = tree_lib.DraftTree(stack(tokens), stack(parents), stack(depths))
    return drafts, {'seed': state['seed'] + 1}


def next_logits(params, tokens):
  """Numpy: logits [V] after all `tokens`, from the definition alone."""
  counted = [int(token) + 1 for token in tokens]
  before = counted[-2] if len(counted) > 1 else 0
  total = sum(n * (i % PERIOD + 1) for i, n in enumerate(counted))
  return np.asarray(params['table'])[context_index(counted[-1], before, total)]
