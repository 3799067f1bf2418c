# SPDX-License-Identifier: Apache-2.0
"""A Llama-type decoder whose top layers also carry speculative streams.

The module owns the weights; `forward_train`, `forward_tree` and
`forward_streams` are the three ways through it (paper, sections 1 and 3).

Axis letters: B rows, T positions, M tree nodes, S cache slots, A anchors,
J streams, D model width, V vocabulary.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import config, typing
from specstream_jax.decoding import cache as cache_lib, tree as tree_lib
from specstream_jax.modeling import (
  attention,
  blocks,
  layers,
  masks,
  params,
  rows as rows_lib,
  streams as streams_lib,
)


class Embed(nnx.Module):
  """Token embeddings [V, D]; also the LM head when tied."""

  def __init__(self, cfg: config.ModelConfig):
    shape = (cfg.vocab_size, cfg.hidden_size)
    self.embedding = params.BaseParam(jnp.zeros(shape, cfg.dtype))

  def __call__(self, tokens: typing.Array) -> typing.Array:
    return jnp.take(self.embedding[...], tokens, axis=0, mode='clip')


class Transformer(nnx.Module):
  """Weights of the base model and, if given, of streams and LoRA."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    streams: config.StreamConfig | None = None,
    lora: config.LoraConfig | None = None,
    layout: str = 'in_out',
    is_stacked: bool = False,
  ):
    self.cfg, self.stream_cfg, self.layout = cfg, streams, layout
    self.is_stacked = is_stacked
    first_msa = cfg.num_layers - (streams.num_msa_layers if streams else 0)
    self.first_msa = first_msa
    rotates = streams is not None and streams.embedding == 'value_rotation'
    step = streams.rotation_step if rotates else 0.0
    adapts_lower = streams is None or streams.mode == 'fine_tuned'
    self.embed = Embed(cfg)
    lower = lambda: blocks.DecoderLayer(
      cfg, lora if adapts_lower else None, step, layout
    )
    upper = lambda: blocks.DecoderLayer(cfg, lora, step, layout)
    counts = first_msa, cfg.num_layers - first_msa
    if is_stacked:
      if counts[0]:
        self.lower_layers = blocks.stacked(counts[0], lower())
      if counts[1]:
        self.msa_layers = blocks.stacked(counts[1], upper())
    else:
      made = (lower,) * counts[0] + (upper,) * counts[1]
      self.layers = nnx.List(make() for make in made)
    self.final_norm = layers.RMSNorm(
      cfg.hidden_size, epsilon=cfg.rms_norm_eps, dtype=cfg.dtype
    )
    if not cfg.tie_word_embeddings:
      shape = (cfg.hidden_size, cfg.vocab_size)
      self.lm_head = layers.Linear(*shape, dtype=cfg.dtype, layout=layout)
    if streams:
      self.streams = streams_lib.StreamInsertion(cfg.hidden_size, streams)
      if streams.pruning_rank:
        self.pruning = streams_lib.LowRank(
          cfg.hidden_size,
          streams.pruning_rank,
          is_residual=streams.pruning_residual,
        )
      if streams.coupling_rank:
        self.coupling = streams_lib.Coupling(
          cfg.hidden_size, streams.coupling_rank, streams.coupling
        )

  @property
  def is_lossless(self) -> bool:
    """Whether the main stream is the base model's own."""
    return bool(self.stream_cfg) and self.stream_cfg.mode == 'lossless'

  def lora_start(self, num_main: int) -> int:
    """First token LoRA acts on, `num_main` main tokens coming first."""
    return num_main if self.is_lossless else 0

  def logits(self, hidden: typing.Array) -> typing.Array:
    """Normalised hidden states [..., D] -> float32 logits [..., V]."""
    is_tied, f32 = self.cfg.tie_word_embeddings, jnp.float32
    kernel = self.embed.embedding[...] if is_tied else self.lm_head.kernel[...]
    if self.layout == 'out_in':
      return layers.project(hidden, kernel, f32)
    axes = 'VD' if is_tied else 'DV'
    return jnp.einsum(
      f'...D,{axes}->...V', hidden, kernel, preferred_element_type=f32
    )

  def coupled(
    self, hidden: typing.Array, parents: typing.Array
  ) -> typing.Array:
    """Stream states [..., D] that know their token's parent [...]."""
    correction = self.coupling(self.embed(parents), hidden)
    return hidden + correction.astype(hidden.dtype)

  def coupling_logits(
    self,
    hidden: typing.Array,
    parents: typing.Array,
    candidates: typing.Array,
  ) -> typing.Array:
    """What parents [B, W] add to the logits of candidates [B, k], [B, W, k].

    Only the candidates' rows of the LM head are read.

    Args:
      hidden: [B, D] normalised state of the stream that drafts.
      parents: int32 [B, W].
      candidates: int32 [B, k].
    """
    correction = self.coupling(self.embed(parents), hidden[:, None])
    rows = self.head_rows(candidates).astype(jnp.float32)
    return jnp.einsum('BWD,BkD->BWk', correction, rows)

  def head_rows(self, tokens: typing.Array) -> typing.Array:
    """Rows [..., D] of the LM head that give the logits of `tokens`."""
    if self.cfg.tie_word_embeddings:
      return self.embed(tokens)
    kernel = self.lm_head.kernel[...]
    axis = 0 if self.layout == 'out_in' else 1
    rows = jnp.take(kernel, tokens, axis=axis, mode='clip')
    return rows if axis == 0 else jnp.moveaxis(rows, 0, -1)

  def early_hidden(self, hidden: typing.Array) -> typing.Array:
    """Early-exit state for pruning: norm(o_theta(M)), ready for `logits`."""
    return self.final_norm(self.pruning(hidden))


class TrainHidden(NamedTuple):
  """Hidden states of a training pass, normalised except `insertion`.

  Attributes:
    main: [B, T, D].
    streams: [B, A, J, D], or None without streams.
    insertion: [B, T, D] main stream at the input of the first MSA layer.
  """

  main: typing.Array
  streams: typing.Array | None
  insertion: typing.Array


def forward_train(
  model: Transformer,
  tokens: typing.Array,
  positions: typing.Array,
  segment_ids: typing.Array,
  anchors: typing.Array | None = None,
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
    anchors: [B, A] int32 indices into T that carry streams; None for none.
    remat: a name of `blocks.REMAT`.
  """
  num_main = tokens.shape[1]
  visible = rows_lib.Visible(masks.segment_mask(segment_ids))
  x = model.embed(tokens)
  rows = rows_lib.of_tokens(model, positions, visible, num_main)
  x, _ = _layers(model, x, rows, None, False, remat)
  insertion = x
  if anchors is not None:
    pick = lambda y: jnp.take_along_axis(y, anchors[..., None], axis=1)
    anchor_positions = jnp.take_along_axis(positions, anchors, axis=1)
    carries = (anchor_positions, rows_lib.Visible(pick(visible.mask)))
    if model.is_lossless:
      return _streams_after_main(model, x, rows, carries, pick(x), remat)
    x = _append_streams(model, x, pick(x))
    rows = rows_lib.of_tokens(model, positions, visible, num_main, carries)
  x, _ = _layers(model, x, rows, None, True, remat)
  x = model.final_norm(x)
  streams = None
  if anchors is not None:
    streams = _split_streams(model, x, num_main)
  return TrainHidden(x[:, :num_main], streams, insertion)


def _streams_after_main(model, insertion, rows, carries, anchored, remat):
  """The MSA layers of `forward_train` in lossless mode."""
  start = jnp.zeros((len(insertion),), jnp.int32)
  x, new = _layers(model, insertion, rows._replace(start=start), None, True)
  x, new, anchored = jax.lax.stop_gradient((x, new, anchored))
  nothing = anchored[:, :0]
  positions, visible = carries
  rows = rows_lib.of_streams(model, positions, visible.mask)
  streams = _append_streams(model, nothing, anchored)
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
      if the pass carried no streams.
    survivors: [B, M'] int32 node indices, or None if nothing was pruned.
  """

  main: typing.Array
  cache: cache_lib.Cache
  streams: typing.Array
  survivors: typing.Array | None


def forward_tree(
  model: Transformer,
  tokens: typing.Array,
  positions: typing.Array,
  tree_mask: typing.Array,
  cache: cache_lib.Cache,
  *,
  with_streams: bool,
  keep_nodes: int = 0,
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
    with_streams: run streams at every node (schedule `parallel`).
    keep_nodes: M', nodes that the pruning adapter lets into the MSA layers;
      0 keeps all. Survivor i then writes slot length + i of those layers. Only
      for a tree that is whole.
    is_prompt: the cache is empty, so nobody looks there.
  """
  num_nodes = tokens.shape[1]
  start = cache.length + tree_mask.shape[-1] - num_nodes
  visible = _visible_to_nodes(tree_mask, cache, is_prompt)
  x = model.embed(tokens)
  rows = rows_lib.of_tokens(model, positions, visible, num_nodes, start=start)
  x, cache = _run(model, x, rows, cache, False)
  survivors = None
  if 0 < keep_nodes < num_nodes:
    survivors = _survivors(model, x, tokens, positions, tree_mask, keep_nodes)
    pick = lambda y: jnp.take_along_axis(y, survivors[..., None], axis=1)
    x, positions = pick(x), jnp.take_along_axis(positions, survivors, axis=1)
    visible, num_nodes = jax.tree.map(pick, visible), keep_nodes
    own = jnp.take_along_axis(visible.mask, survivors[:, None], axis=2)
    visible = visible._replace(mask=own)
  stream_state = x
  anchors = (positions, visible) if with_streams else None
  rows = rows_lib.of_tokens(
    model, positions, visible, num_nodes, anchors, start
  )
  if with_streams:
    x = _append_streams(model, x, x)
  x, cache = _run(model, x, rows, cache, True)
  x = model.final_norm(x)
  if with_streams:
    stream_state = _split_streams(model, x, num_nodes)
  return TreeHidden(x[:, :num_nodes], cache, stream_state, survivors)


def _visible_to_nodes(tree_mask, cache, is_prompt):
  """Nodes of this pass and, unless it starts with them, slots of the cache."""
  earlier, own = jnp.split(
    tree_mask, [tree_mask.shape[2] - tree_mask.shape[1]], axis=2
  )
  if is_prompt:
    return rows_lib.Visible(own)
  slots = masks.slot_mask(earlier, cache.length, cache.num_slots)
  return rows_lib.Visible(own, slots)


def _survivors(model, x, tokens, positions, tree_mask, keep_nodes):
  """Nodes [B, M'] of highest early-exit path probability (paper, section 3).

  A node is scored by its log-probability given its parent, read off the
  parent's state at the insertion layer through o_theta and the LM head, and
  summed along the path.
  """
  log_probs = jax.nn.log_softmax(model.logits(model.early_hidden(x)), axis=-1)
  is_parent = tree_mask & (positions[:, None] == positions[..., None] - 1)
  parents = jnp.argmax(is_parent, axis=-1)
  depths = positions - positions[:, :1]
  own = jnp.take_along_axis(
    jnp.take_along_axis(log_probs, parents[..., None], axis=1),
    tokens[..., None],
    axis=2,
  )[..., 0]
  tree = tree_lib.DraftTree(tokens, parents, depths)
  scores = tree_lib.path_scores(
    tree, own, max_depth=model.stream_cfg.num_streams
  )
  return tree_lib.prune(tree, scores, keep_nodes)[1]


def forward_streams(
  model: Transformer,
  hidden: typing.Array,
  positions: typing.Array,
  cache: cache_lib.Cache,
) -> typing.Array:
  """Streams of one committed token alone, through the MSA layers.

  Args:
    model: merged module.
    hidden: [B, D] its main-stream state at insertion.
    positions: [B] its position.
    cache: committed cache, whose last valid slot is that token.

  Returns:
    Normalised stream hidden states [B, J, D].
  """
  num_slots = cache.keys[0].shape[2]
  mask = (jnp.arange(num_slots)[None] < cache.length[:, None])[:, None]
  rows = rows_lib.of_streams(model, positions[:, None], mask)
  x = _append_streams(model, hidden[:, None][:, :0], hidden[:, None])
  x, _ = _layers(model, x, rows, _cached(model, cache, True), True)
  return model.final_norm(x)


def _append_streams(model, x, hidden):
  """Concatenates the streams of `hidden` [B, A, D] to x [B, T, D] along T."""
  streams = model.streams(hidden)
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


def _layers(model, x, rows, cached, is_msa, remat='none'):
  """x through these layers, and their new K/V if rows are kept."""
  span = _span(model, is_msa)
  if span.start == span.stop:
    return x, []
  if model.is_stacked:
    stack = model.msa_layers if is_msa else model.lower_layers
    return blocks.scan(stack, x, rows, cached, remat)
  return blocks.run(model.layers[span], x, rows, cached, remat)


def _run(model, x, rows, cache, is_msa):
  """As `_layers`; the cache gets the new K/V when all layers have read it."""
  cached = None
  if rows.cache_mask is not None:
    cached = _cached(model, cache, is_msa)
  x, new = _layers(model, x, rows, cached, is_msa)
  span = _span(model, is_msa)
  if new:
    x, new, start = cache_lib.order(x, new, rows.start)
  keys, values = list(cache.keys), list(cache.values)
  for i, layer in zip(range(span.start, span.stop), new, strict=True):
    keys[i] = cache_lib.append(keys[i], layer.keys, start)
    values[i] = cache_lib.append(values[i], layer.values, start)
  return x, cache_lib.Cache(tuple(keys), tuple(values), cache.length)
