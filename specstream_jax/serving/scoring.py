# SPDX-License-Identifier: Apache-2.0
"""How likely the tokens of a text are, in a pass of its own.

The decode loop keeps no probabilities. A text whose probabilities are asked for
is read once more when it is whole, in chunks, with a cache beside the slots. So
they are those of the model, whatever drew the tokens: temperature, biases and
penalties change nothing, and neither do drafts.

Axis letters: T tokens of a text, C of a chunk, K candidates, V vocabulary.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, partitioning
from specstream_jax.decoding import chunks, interface
from specstream_jax.modeling import cache as cache_lib

# (params, cache, tokens [1, C], counts [1]) -> the pass.
Read = Callable[..., interface.Forward]
MOST_CANDIDATES = 20  # as many as the API lets anybody ask for


class Scores(NamedTuple):
  """What a model says of a text; nothing of its first token.

  Attributes:
    logprobs: [T - 1] float32 log-probability of each token after those before
      it, from the softmax of the model's logits.
    candidates: [T - 1, K] int32, the likeliest tokens there, best first.
    candidate_logprobs: [T - 1, K] float32, theirs.
  """

  logprobs: Any
  candidates: Any
  candidate_logprobs: Any


class Scorer:
  """One compiled pass, and the cache that it reads with."""

  def __init__(
    self,
    setup: interface.DecodeSetup,
    *,
    chunk: int,
    partitioner: partitioning.Partitioner | None = None,
    read: Read | None = None,
  ):
    """Compiles nothing yet.

    Args:
      setup: model and sizes; `cfg.cache_length` is a multiple of `chunk`.
      chunk: C, tokens of a pass.
      partitioner: where the model lies.
      read: makes a pass that is not compiled as a whole; None compiles it.
    """
    self._chunk = chunk
    part, length = partitioner or partitioning.local(), setup.cfg.cache_length
    settled = lambda fun, **named: part.jit(
      lambda *args: cache_lib.settle(fun(*args)), **named
    )
    self._score: Callable[..., tuple[cache_lib.Cache, Scores]]
    if read is None:
      own = functools.partial(chunks.read_chunk, setup)
      score = functools.partial(score_chunk, setup, own)
      self._score = settled(score, donate_argnums=1)
    else:
      say = functools.partial(_say, setup.chunk_model or setup.model)
      score = functools.partial(score_chunk, setup, read)
      self._score = functools.partial(score, say=settled(say))
    self._make_cache = part.jit(
      lambda: cache_lib.settle(setup.model.init_cache(1, length)),
      out_shardings=part.replicated if part.is_single else None,
    )
    self._cache: Any = None
    self._lock = threading.Lock()

  def score(self, params: Any, tokens: Sequence[int]) -> Scores:
    """Scores a text; from any thread, one text at a time.

    Decoding goes on between two chunks.

    Args:
      params: weights for one row.
      tokens: at most as many as a slot has positions.
    """
    if len(tokens) < 2:
      none = np.zeros((0, 0), np.float32)
      return Scores(none.reshape(0), none.astype(np.int32), none)
    parts, size = [], self._chunk
    text = np.asarray(tokens, np.int32)
    join = lambda *all_: np.concatenate(all_, axis=1)[0, : len(text) - 1]
    with self._lock:
      for start in range(0, len(text) - 1, size):
        found = self._advance(params, text, start)
        parts.append(jax.tree.map(np.asarray, found))
      scores = jax.tree.map(join, *parts)
      if np.isnan(scores.logprobs).any():
        # What an adapter of no numbers left would reach the next text: NaN
        # times a weight of zero is NaN.
        self._cache = None
    return scores

  def _advance(self, params, text, start) -> Scores:
    """The next chunk; what comes behind the text is padding."""
    size = self._chunk
    if self._cache is None:
      self._cache = self._make_cache()
    padded = np.zeros((2, size), np.int32)
    for row, first in zip(padded, (start, start + 1)):
      part = text[first : first + size]
      row[: len(part)] = part
    self._cache, found = self._score(
      params, self._cache, padded[:1], padded[1:], np.int32(start)
    )
    return found


def score_chunk(
  setup: interface.DecodeSetup,
  read: Read,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  targets: arrays.Array,
  start: arrays.Array,
  *,
  say: Callable[..., Scores] | None = None,
) -> tuple[cache_lib.Cache, Scores]:
  """Reads a chunk of one text, and scores what follows each of its tokens.

  Args:
    setup: model and sizes.
    read: makes the pass.
    params: weights.
    cache: of one row, with what was read before in its first slots.
    tokens: [1, C] int32.
    targets: [1, C] int32, the next token of each.
    start: int32, how many tokens were read before.
    say: of what the pass left, (params, hidden, targets) -> scores; None does it
      here.

  Returns:
    The cache, and scores [1, C, ...].
  """
  length = jnp.full((1,), start, jnp.int32)
  begun = dataclasses.replace(cache, length=length)
  counts = jnp.full((1,), tokens.shape[1], jnp.int32)
  forward = read(params, begun, tokens, counts)
  say = say or functools.partial(_say, setup.chunk_model or setup.model)
  return forward.cache, say(params, forward.hidden, targets)


def _say(model, params, hidden, targets) -> Scores:
  """Scores of what comes after each token of a pass."""
  logprobs = jax.nn.log_softmax(model.logits(params, hidden))
  own = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
  count = min(MOST_CANDIDATES, logprobs.shape[-1])
  best, ids = jax.lax.top_k(logprobs, count)
  return Scores(own, ids, best)
