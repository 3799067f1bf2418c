# SPDX-License-Identifier: Apache-2.0
"""What layers are told of main tokens and of streams: `attention.Rows`.

Axis letters: B rows, T positions, N main tokens, S cache slots, A anchors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import typing
from specstream_jax.modeling import attention, layers, streams as streams_lib


class Visible(NamedTuple):
  """What tokens may attend to, see `attention.Rows`.

  Attributes:
    mask: [B, T, N] bool.
    cache_mask: [B, T, S] bool or None.
  """

  mask: typing.Array
  cache_mask: typing.Array | None = None


def of_tokens(
  model: Any,
  positions: typing.Array,
  visible: Visible,
  num_main: int,
  anchors: tuple[typing.Array, Visible] | None = None,
  start: typing.Array | None = None,
) -> attention.Rows:
  """Rows for main tokens and, after them, streams of some of them.

  Args:
    model: the transformer.
    positions: [B, N] int32 of the main tokens.
    visible: what the main tokens may attend to.
    num_main: N.
    anchors: positions [B, A] and what those tokens may attend to, or None.
    start: [B] int32, see `attention.Rows`.
  """
  num_streams = 0
  if anchors is not None:
    num_streams = model.stream_cfg.num_streams
    stream_pos = streams_lib.stream_positions(anchors[0], model.stream_cfg)
    positions = jnp.concatenate([positions, stream_pos], axis=1)
    repeat = lambda mask: jnp.repeat(mask, num_streams, axis=1)
    join = lambda main, own: jnp.concatenate([main, repeat(own)], axis=1)
    visible = jax.tree.map(join, visible, anchors[1])
  cos, sin = layers.rope_tables(positions, model.cfg)
  lora_start = model.lora_start(num_main)
  return attention.Rows(
    cos, sin, visible.mask, num_main, num_streams, lora_start
  )._replace(cache_mask=visible.cache_mask, start=start)


def of_streams(
  model: Any, positions: typing.Array, cache_mask: typing.Array
) -> attention.Rows:
  """Rows for streams alone, of anchors at positions [B, A] that see the slots
  cache_mask [B, A, S]."""
  anchored = Visible(cache_mask[..., :0], cache_mask)
  nothing = jax.tree.map(lambda mask: mask[:, :0], anchored)
  return of_tokens(model, positions[:, :0], nothing, 0, (positions, anchored))
