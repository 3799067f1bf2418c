# SPDX-License-Identifier: Apache-2.0
"""Where streams run in a training step, and what they predict there.

Positions that carry loss are anchors. All of them with all their streams cost
(positions x J) stream tokens; two ways make do with fewer:

- `choose_anchors`: a random subset, each with all its streams. Sums over
  positions stay unbiased, and so do the weights they are divided by; the
  quotient of the two, the loss, is unbiased only as the subset grows.
- `draw_slots`: a fixed number of stream tokens, whatever J is, in blocks of the
  first streams of an anchor. A block has a random length, and half of the
  groups hold one of the longest, so that deep streams are never left out. A
  stream's sum over positions is unbiased, and as `objective` divides it by the
  weight of all positions, the loss and its gradient are, too: on average over
  draws they are those of all streams at all positions. Not unbiased: the
  metrics, quotients again, and a step whose blocks a curriculum keeps short,
  for it leaves out the deep streams on purpose.

Axis letters: B rows, T positions, A anchors, or groups of slots, J streams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import streams as streams_lib


class Predicted(NamedTuple):
  """What the stream tokens of a step predict.

  Attributes:
    anchors: of `forward.forward_train`: [B, A] int32, or slots.
    places: [B, A, J] int32, where the main stream predicts the same token.
    targets: [B, A, J] int32.
    parents: [B, A, J] int32, the token before the target.
    weights: [B, A, J] float32.
  """

  anchors: arrays.Array | streams_lib.Slots
  places: arrays.Array
  targets: arrays.Array
  parents: arrays.Array
  weights: arrays.Array

  def by_stream(self, values: arrays.Array) -> arrays.Array:
    """Weighted sums [J] of values [B, A, J], stream by stream."""
    values = values * self.weights
    if not isinstance(self.anchors, streams_lib.Slots):
      return values.sum(axis=(0, 1))
    streams = jnp.arange(values.shape[-1])
    is_of = self.anchors.numbers[..., None] == streams[None, None, None]
    return jnp.where(is_of, values[..., None], 0.0).sum(axis=(0, 1, 2))


def choose_anchors(
  key: arrays.Array, weights: arrays.Array, num_anchors: int
) -> tuple[arrays.Array, arrays.Array]:
  """Positions that carry loss; a uniform subset where there are too many.

  Args:
    key: PRNG key of this step.
    weights: float32 [B, T] loss weights.
    num_anchors: A, static.

  Returns:
    (anchors [B, A] int32, sorted; scale [B, A] float32: 0 for filler, else
    the row's positions with loss / anchors taken, which keeps sums unbiased).
  """
  num_anchors = min(num_anchors, weights.shape[1])
  carries = weights > 0
  noise = jax.random.uniform(key, weights.shape)
  _, anchors = jax.lax.top_k(jnp.where(carries, 1 + noise, 0.0), num_anchors)
  anchors = jnp.sort(anchors, axis=1)
  taken = jnp.take_along_axis(carries, anchors, axis=1)
  total = carries.sum(axis=1, keepdims=True)
  kept = jnp.maximum(taken.sum(axis=1, keepdims=True), 1)
  return anchors, taken * (total / kept)


def stream_targets(
  batch: dict[str, arrays.Array], anchors: arrays.Array, num_streams: int
) -> tuple[arrays.Array, arrays.Array]:
  """Targets and weights [B, A, J + 1] of the main stream (0) and streams.

  Stream j of the anchor at t predicts the token at t + 1 + j. Its weight is 0
  past the end of the row, across a segment end, and where that token carries
  no loss itself.
  """
  offsets = jnp.arange(num_streams + 1)
  return _targets(batch, anchors[..., None], offsets[None, None])


def _targets(batch, anchors, offsets):
  """Targets and weights at anchors + offsets, both [B, A, any number]."""
  index = anchors + offsets
  length = batch['decoder_target_tokens'].shape[1]
  inside = index < length
  pick = lambda name, index: take(batch[name], jnp.minimum(index, length - 1))
  segments = pick('decoder_segment_ids', index)
  same = inside & (segments == pick('decoder_segment_ids', anchors))
  weights = pick('decoder_loss_weights', index) * same
  return pick('decoder_target_tokens', index), weights


def take(values: arrays.Array, index: arrays.Array) -> arrays.Array:
  """values [B, T, ...] at index [B, ...] of each row."""
  flat = index.reshape(len(index), -1)
  flat = flat.reshape(*flat.shape, *(1,) * (values.ndim - 2))
  found = jnp.take_along_axis(values, flat, axis=1)
  return found.reshape(*index.shape, *values.shape[2:])


def draw_slots(
  key: arrays.Array,
  weights: arrays.Array,
  num_groups: int,
  num_streams: int,
  longest: arrays.Array | int,
) -> tuple[streams_lib.Slots, arrays.Array]:
  """Blocks of the first streams of random positions, see the module.

  Lengths are uniform from 1 to `longest`, but for the last block of a group,
  which gets the room that is left. Positions are dealt out in random order,
  again from the first where there are fewer than blocks.

  Args:
    key: PRNG key of this step.
    weights: float32 [B, T] loss weights.
    num_groups: A, static.
    num_streams: J, static.
    longest: int32 scalar, 1 to J.

  Returns:
    The slots, and scale [B, A, J] float32: the row's positions with loss over
    its slots of the same stream, which keeps sums unbiased.
  """
  of_lengths, of_order = jax.random.split(key)
  shape = (len(weights), num_groups, num_streams)
  lengths = jax.random.randint(of_lengths, shape, 1, longest + 1)
  ends = jnp.cumsum(lengths.at[:, ::2, 0].set(longest), axis=-1)
  places = jnp.arange(num_streams)
  # Of each slot, the blocks that end before it.
  before = (ends[..., None, :] <= places[None, None, :, None]).sum(axis=-1)
  starts = jnp.pad(ends, ((0, 0), (0, 0), (1, 0)))
  starts = jnp.take_along_axis(starts, before, axis=-1)
  numbers = places[None, None] - starts
  carries = weights > 0
  total = carries.sum(axis=1)
  noise = jnp.where(carries, jax.random.uniform(of_order, weights.shape), 2.0)
  order = jnp.argsort(noise, axis=1)
  block = jnp.cumsum((numbers == 0).reshape(len(weights), -1), axis=1) - 1
  block = block % jnp.maximum(total, 1)[:, None]
  anchors = jnp.take_along_axis(order, block, axis=1).reshape(shape)
  is_of = numbers[..., None] == places[None, None, None]
  held = is_of.sum(axis=(1, 2))  # [B, J]
  scale = total[:, None, None] / take(held, numbers)
  return streams_lib.Slots(anchors, numbers), scale


def longest_block(
  cfg: config.ObjectiveConfig, num_streams: int, step: arrays.Array | None
) -> arrays.Array | int:
  """The most streams of a block at a step: J, or what the curriculum allows."""
  if step is None or not cfg.curriculum_steps:
    return num_streams
  grown = jnp.floor(num_streams * (step / cfg.curriculum_steps))
  return jnp.minimum(1 + grown.astype(jnp.int32), num_streams)


def predicted(
  batch: dict[str, arrays.Array],
  key: arrays.Array,
  cfg: config.ObjectiveConfig,
  num_streams: int,
  *,
  chosen: tuple[arrays.Array, arrays.Array],
  step: arrays.Array | None = None,
) -> Predicted:
  """The stream tokens of a step.

  Args:
    batch: the batch contract, arrays [B, T].
    key: PRNG key of this step.
    cfg: how many there are.
    num_streams: J.
    chosen: of `choose_anchors`; they have the streams without a budget.
    step: of the curriculum; None is past it.
  """
  if not cfg.stream_tokens:
    anchors, scale = chosen
    numbers = jnp.arange(num_streams)[None, None]
    starts, scale = anchors[..., None], scale[..., None]
  else:
    anchors, scale = draw_slots(
      jax.random.fold_in(key, 1),
      batch['decoder_loss_weights'],
      cfg.num_groups(num_streams),
      num_streams,
      longest_block(cfg, num_streams, step),
    )
    numbers, starts = anchors.numbers, anchors.anchors
  targets, weights = _targets(batch, starts, 1 + numbers)
  parents, _ = _targets(batch, starts, numbers)
  last = batch['decoder_target_tokens'].shape[1] - 1
  places = jnp.minimum(starts + 1 + numbers, last)
  return Predicted(anchors, places, targets, parents, weights * scale)


def all_weights(
  batch: dict[str, arrays.Array], num_streams: int
) -> arrays.Array:
  """Weight [J] of each stream, if all positions that carry loss have it."""
  carries = batch['decoder_loss_weights'] > 0
  everywhere = jnp.broadcast_to(jnp.arange(carries.shape[1]), carries.shape)
  _, weights = stream_targets(batch, everywhere, num_streams)
  return (weights * carries[..., None]).sum(axis=(0, 1))[1:]
