# SPDX-License-Identifier: Apache-2.0
"""The ways through a model, with streams and without (paper, sections 1, 3).

Axis letters: B rows, T positions, M tree nodes, S cache slots, A anchors,
J streams, D model width.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays
from specstream_jax.modeling import (
  attention,
  blocks,
  cache as cache_lib,
  phases,
  rows as rows_lib,
  streams as streams_lib,
  transformer,
)

# (model, hidden [B, M, D] at the insertion, tokens [B, M], positions [B, M],
# tree_mask [B, M, M]) -> indices [B, M'] of the nodes that survive, ascending, or
# None for all.
Survivors = Callable[..., arrays.Array | None]
# (survivors) -> indices [B, C] of the nodes among them that carry streams.
Carriers = Callable[[arrays.Array | None], arrays.Array]


class TrainHidden(NamedTuple):
  """Hidden states of a training pass, normalised except `insertion`.

  Attributes:
    main: [B, T, D].
    streams: [B, A, J, D], or None without streams.
    insertion: [B, T, D] main stream at the input of the first MSA layer.
  """

  main: arrays.Array
  streams: arrays.Array | None
  insertion: arrays.Array


def forward_train(
  model: transformer.Transformer,
  tokens: arrays.Array,
  positions: arrays.Array,
  segment_ids: arrays.Array,
  anchors: arrays.Array | streams_lib.Slots | None = None,
  *,
  remat: str = 'none',
) -> TrainHidden:
  """Whole-sequence pass, with streams at the anchors.

  In lossless mode the main stream depends on no adapter weight: it runs by
  itself, without gradient, and the streams follow against its K/V.

  Args:
    model: merged module.
    tokens: [B, T] int32.
    positions: [B, T] int32, restarting at each segment.
    segment_ids: [B, T] int32, 0 = padding.
    anchors: [B, A] int32 indices into T that carry all streams, or slots for
      some of them; None for none.
    remat: a name of `blocks.REMAT`.
  """
  num_main = tokens.shape[1]
  visible = rows_lib.to_sequence(model, segment_ids, positions)
  x = model.inputs(tokens, positions)
  rows = rows_lib.of_tokens(model, positions, visible, num_main)
  x, _ = _layers(model, x, rows, None, False, remat)
  insertion = x
  if anchors is not None:
    carries, anchored = _anchored(x, positions, visible, anchors)
    if model.is_lossless:
      return _streams_after_main(model, x, rows, carries, anchored, remat)
    x = _append_streams(model, x, anchored, carries.slots)
    rows = rows_lib.of_tokens(model, positions, visible, num_main, carries)
  x, _ = _layers(model, x, rows, None, True, remat)
  x = model.final_norm(x)
  streams = None
  if anchors is not None:
    streams = _split_streams(model, x, num_main)
  return TrainHidden(x[:, :num_main], streams, insertion)


def _anchored(x, positions, visible, anchors):
  """`rows.Anchors`, and their states at the insertion, see `_append_streams`."""
  slots = None
  if isinstance(anchors, streams_lib.Slots):
    slots, anchors = anchors, anchors.anchors
  index = anchors.reshape(len(x), -1)
  picked = jnp.take_along_axis(x, index[..., None], axis=1)
  picked = picked.reshape(*anchors.shape, -1)
  positions = jnp.take_along_axis(positions, index, axis=1)
  seen = rows_lib.pick(visible, index)
  return rows_lib.Anchors(positions, seen, slots), picked


def _streams_after_main(model, insertion, rows, carries, anchored, remat):
  """The MSA layers of `forward_train` in lossless mode."""
  start = jnp.zeros((len(insertion),), jnp.int32)
  rows = {kind: one._replace(start=start) for kind, one in rows.items()}
  x, new = _layers(model, insertion, rows, None, True)
  x, new, anchored = jax.lax.stop_gradient((x, new, anchored))
  nothing = x[:, :0]
  rows = rows_lib.of_streams(model, carries)
  streams = _append_streams(model, nothing, anchored, carries.slots)
  cached = [layer.by_head() for layer in new]
  streams, _ = _layers(model, streams, rows, cached, True, remat)
  streams = _split_streams(model, model.final_norm(streams), 0)
  return TrainHidden(model.final_norm(x), streams, insertion)


class TreeHidden(NamedTuple):
  """Result of a pass over a draft tree.

  Attributes:
    main: [B, M, D] normalised; [B, M', D] of the survivors if pruned.
    cache: with the tree's K/V, length not advanced.
    streams: [B, M, J, D] normalised, or the insertion-layer states [B, M, D]
      if not all of them carried streams.
    survivors: [B, M'] int32 node indices, or None if nothing was pruned.
    carried: normalised streams [B, C, J, D] of some nodes, and which [B, C]
      they are, or None.
  """

  main: arrays.Array
  cache: cache_lib.Cache
  streams: arrays.Array
  survivors: arrays.Array | None
  carried: tuple[arrays.Array, arrays.Array] | None = None


def forward_tree(
  model: transformer.Transformer,
  tokens: arrays.Array,
  positions: arrays.Array,
  tree_mask: arrays.Array,
  cache: cache_lib.Cache,
  *,
  with_streams: bool,
  survivors_of: Survivors | None = None,
  carriers_of: Carriers | None = None,
  is_prompt: bool = False,
) -> TreeHidden:
  """One pass over a draft tree, writing node m's K/V to slot length + m.

  The pass may grow a tree: the M nodes then come after others, whose K/V lie
  in the slots from length on.

  Args:
    model: merged module.
    tokens: [B, M] int32.
    positions: [B, M] int32.
    tree_mask: [B, M, M] bool; [B, M, L + M] after L earlier nodes.
    cache: committed prefix; its length is not advanced.
    with_streams: run streams at every node (schedule `parallel`), or at some.
    survivors_of: chooses the nodes that go on into the MSA layers; None lets
      all. Survivor i then writes slot length + i of those layers. Only for a
      tree that is whole.
    carriers_of: chooses the nodes whose streams run; None takes all.
    is_prompt: the cache is empty, so nobody looks there.
  """
  num_nodes = tokens.shape[1]
  start = cache.length + tree_mask.shape[-1] - num_nodes
  num_slots = 0 if is_prompt else cache.num_slots
  visible = rows_lib.to_nodes(
    model, tree_mask, positions, cache.length, num_slots
  )
  x = model.inputs(tokens, positions)
  rows = rows_lib.of_tokens(model, positions, visible, num_nodes, start=start)
  x, cache = _run(model, x, rows, cache, False)
  survivors = None
  if survivors_of is not None:
    survivors = survivors_of(model, x, tokens, positions, tree_mask)
  if survivors is not None:
    x, positions = _pick(x, positions, survivors)
    visible = rows_lib.restrict(visible, survivors)
  insertion, anchors, carriers, num_nodes = x, None, None, x.shape[1]
  if with_streams:
    carriers = None if carriers_of is None else carriers_of(survivors)
    anchors, anchored = _anchors(x, positions, visible, carriers)
    x = _append_streams(model, x, anchored)
  rows = rows_lib.of_tokens(
    model, positions, visible, num_nodes, anchors, start
  )
  x, cache = _run(model, x, rows, cache, True)
  x = model.final_norm(x)
  main = x[:, :num_nodes]
  streams = _split_streams(model, x, num_nodes) if with_streams else insertion
  if carriers is None:
    return TreeHidden(main, cache, streams, survivors)
  return TreeHidden(main, cache, insertion, survivors, (streams, carriers))


def _anchors(x, positions, visible, carriers):
  """What `rows.of_tokens` takes of the carriers, and x [B, C, D] at them."""
  if carriers is None:
    return rows_lib.Anchors(positions, visible), x
  x, positions = _pick(x, positions, carriers)
  return rows_lib.Anchors(positions, rows_lib.pick(visible, carriers)), x


def _pick(x, positions, nodes):
  """x [B, M, D] and positions [B, M] of nodes [B, C]."""
  x = jnp.take_along_axis(x, nodes[..., None], axis=1)
  return x, jnp.take_along_axis(positions, nodes, axis=1)


def forward_streams(
  model: transformer.Transformer,
  hidden: arrays.Array,
  positions: arrays.Array,
  cache: cache_lib.Cache,
) -> arrays.Array:
  """Streams of one committed token alone, through the MSA layers.

  Args:
    model: merged module.
    hidden: [B, D] its main-stream state at insertion.
    positions: [B] its position.
    cache: committed cache, whose last valid slot is that token.

  Returns:
    Normalised stream hidden states [B, J, D].
  """
  visible = rows_lib.to_anchor(model, positions, cache.length, cache.num_slots)
  anchors = rows_lib.Anchors(positions[:, None], visible)
  rows = rows_lib.of_streams(model, anchors)
  x = _append_streams(model, hidden[:, None][:, :0], hidden[:, None])
  cached = _cached(model, cache, True)
  msa = lambda x: _layers(model, x, rows, cached, True)[0]
  return model.final_norm(phases.run('streams', msa, x))


def _append_streams(model, x, hidden, slots=None):
  """Concatenates streams to x [B, T, D] along T; see `StreamInsertion`."""
  insert = lambda hidden: model.streams(hidden, slots)
  streams = phases.run('insertion', insert, hidden)
  streams = streams.reshape(x.shape[0], -1, x.shape[-1])
  return jnp.concatenate([x, streams], axis=1)


def _split_streams(model, x, num_main):
  """The stream part of x [B, T, D] as [B, A, J, D]."""
  num_streams = model.stream_cfg.num_streams
  return x[:, num_main:].reshape(x.shape[0], -1, num_streams, x.shape[-1])


def _span(model, is_msa):
  """The layers below the insertion, or the MSA layers."""
  first = model.first_msa
  return slice(first, model.cfg.num_layers) if is_msa else slice(0, first)


def _cached(model, cache, is_msa):
  """The cache of these layers, one `KeyValues` each."""
  span = _span(model, is_msa)
  return list(map(attention.KeyValues, cache.keys[span], cache.values[span]))


def _layers(
  model, x, rows, cached, is_msa, remat='none'
) -> tuple[arrays.Array, list[Any]]:
  """x through these layers, and their new K/V if rows are kept."""
  span = _span(model, is_msa)
  if span.start == span.stop:
    return x, []
  rows = [rows[kind] for kind in model.cfg.kinds[span]]
  if model.is_stacked:
    stack = model.msa_layers if is_msa else model.lower_layers
    return blocks.scan(stack, x, rows, cached, remat)
  return blocks.run(model.layers[span], x, rows, cached, remat)


def _run(model, x, rows, cache, is_msa):
  """As `_layers`; the cache gets the new K/V when all layers have read it."""
  layers = functools.partial(_and_write, model, rows, is_msa)
  return phases.run('msa' if is_msa else 'lower', layers, x, keeps=cache)


def _and_write(model, rows, is_msa, x, cache):
  cached = None
  one = next(iter(rows.values()))
  if one.cache_mask is not None:
    cached = _cached(model, cache, is_msa)
  x, new = _layers(model, x, rows, cached, is_msa)
  span = _span(model, is_msa)
  if new:
    x, new, start = cache_lib.order(x, new, one.start)
  keys, values = list(cache.keys), list(cache.values)
  for i, layer in zip(range(span.start, span.stop), new, strict=True):
    keys[i] = cache_lib.append(keys[i], layer.keys, start)
    values[i] = cache_lib.append(values[i], layer.values, start)
  return x, cache_lib.Cache(tuple(keys), tuple(values), cache.length)
