# SPDX-License-Identifier: Apache-2.0
"""What layers are told of main tokens and of streams: `attention.Rows`.

Axis letters: B rows, T positions, N main tokens, S cache slots, A anchors,
M tree nodes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.modeling import (
  attention,
  masks,
  rope,
  streams as streams_lib,
)

# Rows by kind of layer.
Rows = dict[str, attention.Rows]


class Visible(NamedTuple):
  """What tokens may attend to, see `attention.Rows`.

  Attributes:
    mask: [B, T, N] bool.
    cache_mask: [B, T, S] bool or None.
    near: the same in `window` layers; None if there are none.
  """

  mask: arrays.Array
  cache_mask: arrays.Array | None = None
  near: 'Visible | None' = None


class Anchors(NamedTuple):
  """Tokens that have streams; with slots, the token of every slot.

  Attributes:
    positions: [B, A] int32; with slots [B, A * J].
    visible: what those tokens may attend to.
    slots: None if every anchor has all its streams.
  """

  positions: arrays.Array
  visible: Visible
  slots: streams_lib.Slots | None = None


def to_sequence(
  model: Any, segment_ids: arrays.Array, positions: arrays.Array
) -> Visible:
  """What tokens of a training batch [B, T] may attend to."""
  mask = masks.segment_mask(segment_ids)
  window = model.cfg.window
  if not window:
    return Visible(mask)
  near = masks.within(mask, positions, positions, window)
  return Visible(mask, near=Visible(near))


def to_nodes(
  model: Any,
  tree_mask: arrays.Array,
  positions: arrays.Array,
  length: arrays.Array,
  num_slots: int,
) -> Visible:
  """What nodes [B, M] see: each other and, if S > 0, slots of the cache.

  Args:
    model: the transformer.
    tree_mask: [B, M, L + M] bool.
    positions: [B, M] int32.
    length: [B] int32 of the committed prefix.
    num_slots: S; 0 if the pass starts with an empty cache.
  """
  num_nodes, window = tree_mask.shape[1], model.cfg.window
  earlier, own = jnp.split(tree_mask, [tree_mask.shape[2] - num_nodes], axis=2)
  slots = near_slots = near = None
  if num_slots:
    slots = masks.slot_mask(earlier, length, num_slots)
  if window and slots is not None:
    places = masks.slot_positions(tree_mask, positions, length, num_slots)
    near_slots = masks.within(slots, positions, places, window)
  if window:
    near_own = masks.within(own, positions, positions, window)
    near = Visible(near_own, near_slots)
  return Visible(own, slots, near)


def to_anchor(
  model: Any, positions: arrays.Array, length: arrays.Array, num_slots: int
) -> Visible:
  """What the last committed token, at positions [B], sees of the cache."""
  slots = jnp.arange(num_slots)[None]
  mask = (slots < length[:, None])[:, None]
  if not model.cfg.window:
    return Visible(mask)
  near = masks.within(mask, positions[:, None], slots, model.cfg.window)
  return Visible(mask, near=Visible(near))


def pick(visible: Visible, index: arrays.Array) -> Visible:
  """The rows of queries index [B, A]."""
  take = lambda y: jnp.take_along_axis(y, index[..., None], axis=1)
  return jax.tree.map(take, visible)


def restrict(visible: Visible, survivors: arrays.Array) -> Visible:
  """What is left when of main tokens only survivors [B, M'] stay."""
  picked = pick(visible, survivors)
  own = lambda mask: jnp.take_along_axis(mask, survivors[:, None], axis=2)
  near = picked.near
  if near is not None:
    near = near._replace(mask=own(near.mask))
  return picked._replace(mask=own(picked.mask), near=near)


def of_tokens(
  model: Any,
  positions: arrays.Array,
  visible: Visible,
  num_main: int,
  anchors: Anchors | None = None,
  start: arrays.Array | None = None,
) -> Rows:
  """Rows for main tokens and, after them, streams of some of them.

  Args:
    model: the transformer.
    positions: [B, N] int32 of the main tokens.
    visible: what the main tokens may attend to.
    num_main: N.
    anchors: those that have streams, or None.
    start: [B] int32, see `attention.Rows`.
  """
  num_streams, numbers = 0, None
  if anchors is not None:
    num_streams = model.stream_cfg.num_streams
    slots = anchors.slots
    stream_pos = streams_lib.stream_positions(
      anchors.positions, model.stream_cfg, slots
    )
    positions = jnp.concatenate([positions, stream_pos], axis=1)
    times = num_streams if slots is None else 1
    repeat = lambda mask: jnp.repeat(mask, times, axis=1)
    join = lambda main, own: jnp.concatenate([main, repeat(own)], axis=1)
    visible = jax.tree.map(join, visible, anchors.visible)
    numbers = None if slots is None else slots.numbers
  lora_start = model.lora_start(num_main)

  def of_kind(kind):
    seen = visible.near if kind == 'window' else visible
    assert seen is not None  # a model with such layers looks near, too
    cos = sin = None
    if not model.cfg.num_learned_positions:
      cos, sin = rope.tables(positions, model.cfg, kind)
    return attention.Rows(
      cos, sin, seen.mask, num_main, num_streams, lora_start
    )._replace(cache_mask=seen.cache_mask, start=start, numbers=numbers)

  return {kind: of_kind(kind) for kind in sorted(set(model.cfg.kinds))}


def of_streams(model: Any, anchors: Anchors) -> Rows:
  """Rows for streams alone, whose main tokens all lie in the cache.

  Args:
    model: the transformer.
    anchors: the cache's slots that they see are the `mask` of `visible`.
  """
  positions, nothing, anchors = alone(anchors)
  return of_tokens(model, positions, nothing, 0, anchors)


def alone(anchors: Anchors) -> tuple[arrays.Array, Visible, Anchors]:
  """Positions [B, 0], what is visible and anchors of streams alone.

  As `of_tokens` takes them; `anchors` as of `of_streams`.
  """
  cached = lambda one: Visible(one.mask[..., :0], one.mask)
  visible = anchors.visible
  near = None if visible.near is None else cached(visible.near)
  anchored = cached(visible)._replace(near=near)
  nothing = jax.tree.map(lambda mask: mask[:, :0], anchored)
  return anchors.positions[:, :0], nothing, anchors._replace(visible=anchored)
