# SPDX-License-Identifier: Apache-2.0
"""Prompts that are read part by part, and rows that begin with the last one.

Axis letters: B rows, C tokens of a chunk, T room for a prompt.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.decoding import interface, loop
from specstream_jax.modeling import cache as cache_lib


def read_chunk(
  setup: interface.DecodeSetup,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  counts: arrays.Array,
) -> interface.Forward:
  """A pass over what comes next of prompts.

  Args:
    setup: its `chunk_model` makes the pass.
    params: weights.
    cache: what was read before.
    tokens: [B, C] int32, padded on the right.
    counts: [B] int32 valid entries of `tokens`.

  Returns:
    The pass, its cache with `counts` more tokens.
  """
  model = setup.chunk_model or setup.model
  forward = model.forward(
    params,
    *chunk_inputs(tokens, cache.length),
    cache,
    with_streams=setup.drafter.with_streams,
  )
  grown = dataclasses.replace(forward.cache, length=cache.length + counts)
  return forward._replace(cache=grown)


def chunk_inputs(
  tokens: arrays.Array, length: arrays.Array
) -> tuple[arrays.Array, ...]:
  """Tokens [B, C], positions [B, C], mask [B, C, C] of a pass over a chunk.

  Args:
    tokens: [B, C] int32.
    length: [B] int32, what was read before.
  """
  batch, size = tokens.shape
  causal = jnp.tri(size, dtype=bool)[None]
  return (
    tokens,
    length[:, None] + jnp.arange(size)[None],
    jnp.broadcast_to(causal, (batch, size, size)),
  )


def begin_row(
  setup: interface.DecodeSetup,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  counts: arrays.Array,
  prompts: arrays.Array,
  rows: loop.Rows,
) -> loop.DecodeState:
  """Reads the last chunk of prompts and draws the first token.

  Args:
    setup: model, drafter and configs.
    params: weights.
    cache: all chunks but the last.
    tokens: [B, C] int32, the last chunk.
    counts: [B] int32 valid entries of `tokens`, at least 1.
    prompts: [B, T] int32, whole.
    rows: what each of them asks for.
  """
  forward = read_chunk(setup, params, cache, tokens, counts)
  own = setup._replace(prompt_model=setup.chunk_model or setup.model)
  lengths = forward.cache.length
  return loop.begin(own, params, forward, counts - 1, prompts, lengths, rows)


def read_on(
  setup: interface.DecodeSetup,
  params: Any,
  cache: cache_lib.Cache,
  tokens: arrays.Array,
  counts: arrays.Array,
) -> cache_lib.Cache:
  """The cache after a chunk; arguments as of `read_chunk`."""
  return read_chunk(setup, params, cache, tokens, counts).cache
