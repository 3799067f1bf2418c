# SPDX-License-Identifier: Apache-2.0
"""A second, smaller model as the drafter (arXiv 2211.17192, 2302.01318).

It has a KV cache of its own, which ends with the root: each call first reads
the tokens emitted since the last one, then grows a tree level by level. What
it read of the tree lies behind the committed slots and is forgotten.

Axis letters: B rows, T prompt positions, M tree nodes including the root, P path
length, W nodes of a level, k children per node, L nodes read, V vocabulary.
"""

import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from specstream_jax import arrays, config, sampling
from specstream_jax.checkpoints import loading
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  edits as edits_lib,
  interface,
  random_trees,
  topology,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded
from specstream_jax.modeling import (
  build,
  cache as cache_lib,
  int8,
  params as params_lib,
)

LAYOUT = 'out_in'
DEFAULT_TREE = config.TreeConfig()
# Drafts that are drawn need a tree whose shape is known beforehand.
DEFAULT_RANDOM_TREE = config.TreeConfig('full', depth=3, branching=2)


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model without streams, and the draft model at `cfg.path`.

  Raises:
    ValueError: no path, or a checkpoint that cannot be read or has another
      vocabulary; a tree wider than the vocabulary.
  """
  if not cfg.path:
    raise ValueError(
      "drafter 'draft_model' has no path; name its checkpoint: "
      'draft_model:path=FOLDER (a known name, a Hugging Face folder, a hub id '
      'or a GGUF file)'
    )
  is_fixed = cfg.drafting == 'top_k'
  tree = cfg.tree or (DEFAULT_TREE if is_fixed else DEFAULT_RANDOM_TREE)
  _check_width(tree, model.config)
  path = loading.resolve(cfg.path)
  own, written = model.config, os.stat(path).st_mtime_ns
  draft_cfg, weights, tokenizer = _load(
    cfg.path, own.dtype, own.weights_dtype, written
  )
  _check_vocabulary(model, cfg.path, draft_cfg, tokenizer)
  _check_width(tree, draft_cfg)
  fns = transformer_fns.model_fns(build.build(draft_cfg, layout=LAYOUT))
  if draft_cfg.vocab_size != model.config.vocab_size:
    fns = transformer_fns.with_vocabulary(fns, model.config.vocab_size)
  return loaded.beside(model, DraftModel(fns, tree, decode, cfg), weights)


@functools.lru_cache(maxsize=2)
def _load(path: str, dtype: str, weights_dtype: str, written: int) -> Any:
  """Config, nested weights on device and tokenizer; once for all decoders."""
  del written  # A checkpoint that was written anew is read anew.
  found = loading.load_model(path, dtype=dtype)
  made = dataclasses.replace(found.config, weights_dtype=weights_dtype)
  flat = params_lib.transpose_kernels(int8.stored(found.params, made))
  weights = jax.tree.map(jnp.asarray, params_lib.unflatten(flat))
  return made, jax.block_until_ready(weights), found.tokenizer


def _check_width(tree, cfg):
  width = topology.width(tree)
  if width > cfg.vocab_size:
    raise ValueError(
      f'draft tree needs the top {width} tokens of a node but the vocabulary '
      f'has {cfg.vocab_size}; use branching <= {cfg.vocab_size}'
    )


def _check_vocabulary(model, path, draft_cfg, draft_tokenizer) -> None:
  """Raises ValueError unless token ids mean the same to both models.

  A checkpoint without a tokenizer is taken at its word: drafts that mean
  something else are rejected. Embeddings of two sizes need tokenizers.
  """
  fix = 'take one of the same family (specstream train --draft_model_layers=4)'
  sizes = (model.config.vocab_size, draft_cfg.vocab_size)
  pair = (model.tokenizer, draft_tokenizer)
  if not all(isinstance(t, tokenizers.Tokenizer) for t in pair):
    if sizes[0] != sizes[1]:
      raise ValueError(
        f'draft model {path!r} has a vocabulary of {sizes[1]} tokens but the '
        f'target has {sizes[0]}, and not both tokenizers are there; {fix}'
      )
    return
  most = min(sizes)  # beyond, one of them has no embedding
  own, other = (
    {t: i for t, i in one.get_vocab(with_added_tokens=True).items() if i < most}
    for one in pair
  )
  different = sorted(t for t in own | other if own.get(t) != other.get(t))
  for example in different[:1]:
    raise ValueError(
      f'draft model {path!r} has another tokenizer than the target: token {example!r} '
      f'is {other.get(example)} there and {own.get(example)} here; {fix}'
    )


class Level(NamedTuple):
  """Nodes of one depth that the draft model has read.

  Attributes:
    logits: [B, W, V] float32, of their children.
    masks: [B, W, L] bool, the nodes read so far that each one sees; the root
      is committed and not among them.
    cache: with their K/V behind the committed slots.
  """

  logits: arrays.Array
  masks: arrays.Array
  cache: cache_lib.Cache


class DraftModel:
  """Trees that a second model proposes.

  `chain`, `full` and `fixed` trees have their shape, each node the best tokens
  of the draft model under it, or tokens drawn from it, with the law attached.
  `best_first` reads the best `branching` nodes of each level (EAGLE-2, arXiv
  2406.16858) and keeps the best `num_nodes` of all by joint probability; drawn
  as a `beam`, it is a stochastic beam search.

  At temperature > 0, chosen drafts are scored with the target's own noise if
  `options.couple_noise`; the output is the same without.
  """

  with_streams = False

  def __init__(
    self,
    model: interface.ModelFns,
    tree: config.TreeConfig,
    decode: config.DecodeConfig,
    options: config_drafting.DrafterConfig | None = None,
  ):
    """Takes the draft model, whose weights are `params.drafter`.

    Raises:
      ValueError: drafts cannot be drawn this way, or not for such a tree.
    """
    self.model, self.tree, self.decode = model, tree, decode
    self.options = options or config_drafting.DrafterConfig('draft_model')
    self.is_random = self.options.drafting != 'top_k'
    if self.is_random:
      random_trees.check(self.options.drafting, tree, self.options.verifier)
    self.is_beam = self.options.drafting == 'beam'
    self.max_depth = tree.max_depth
    self.size = tree.size
    if tree.kind == 'best_first' and not self.is_beam:
      most = tree.branching * (1 + tree.branching * (tree.depth - 1))
      self.size = min(tree.size, 1 + most)
    widths = random_trees.beam_widths(tree)[:-1] if self.is_beam else ()
    self._num_read = sum(widths or _num_expanded(tree))

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> cache_lib.Cache:
    """The draft model's cache after the prompts [B, T].

    A row never grows past its prompt and limit; what a call reads of its tokens
    or its tree goes behind that.
    """
    batch, length = prompts.shape
    most = length + self.decode.max_new_tokens
    scratch = max(self.max_depth + 1, self._num_read)
    positions = jnp.broadcast_to(jnp.arange(length)[None], prompts.shape)
    forward = self.model.forward(
      transformer_fns.Params(params.drafter),
      prompts,
      positions,
      _causal(batch, length),
      self.model.init_cache(batch, most + scratch),
      with_streams=False,
    )
    return dataclasses.replace(forward.cache, length=prompt_lengths)

  def propose(
    self,
    params: Any,
    context: interface.DraftContext,
    state: cache_lib.Cache,
  ) -> tuple[tree_lib.DraftTree, cache_lib.Cache]:
    """The next tree, and the cache with the root committed."""
    params = transformer_fns.Params(params.drafter)
    with jax.named_scope('draft_model_read'):
      level = self._read_emitted(params, context, state)
    with jax.named_scope('draft_model_grow'):
      is_static = self.tree.kind != 'best_first'
      grow = self._grow_static if is_static else self._grow_best_first
      if self.is_beam:
        grow = self._grow_beam
      tree, level = grow(params, context, level)
    return tree, level.cache

  def _read_emitted(self, params, context, cache) -> Level:
    """Reads and commits the tokens up to the root, which is the first level.

    A row that is done has none; what it then drafts is not looked at.
    """
    batch, path_length = context.root.shape[0], self.max_depth + 1
    count = context.leaf_positions + 2 - cache.length
    offset = jnp.arange(path_length)[None]
    index = (context.num_tokens - count)[:, None] + offset
    index = jnp.clip(index, 0, context.tokens.shape[1] - 1)
    forward = self.model.forward(
      params,
      jnp.take_along_axis(context.tokens, index, axis=1),
      cache.length[:, None] + offset,
      _causal(batch, path_length),
      cache,
      with_streams=False,
    )
    last = jnp.maximum(count - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(forward.hidden, last, axis=1)
    return Level(
      self.model.logits(params, hidden),
      jnp.zeros((batch, 1, 0), bool),
      dataclasses.replace(forward.cache, length=cache.length + count),
    )

  def _read_level(self, params, level, parents, tokens, depth) -> Level:
    """Reads nodes [B, W] of one depth.

    Args:
      params: of the draft model.
      level: the nodes above.
      parents: [B, W] int32, index of each node's parent in `level`.
      tokens: [B, W] int32.
      depth: of the nodes.
    """
    batch, width = tokens.shape
    above = jnp.take_along_axis(level.masks, parents[..., None], axis=1)
    itself = jnp.broadcast_to(jnp.eye(width, dtype=bool), (batch, width, width))
    masks = jnp.concatenate([above, itself], axis=2)
    positions = level.cache.length[:, None] + depth - 1
    forward = self.model.forward(
      params,
      jnp.maximum(tokens, 0),
      jnp.broadcast_to(positions, tokens.shape),
      masks,
      level.cache,
      with_streams=False,
    )
    logits = self.model.logits(params, forward.hidden)
    return Level(logits, masks, forward.cache)

  def _processed(self, context, logits, depth):
    """[B, W, V] float32 for the children of nodes at `depth`.

    Of the text the output alone counts, not the path: they are drafts.
    """
    positions = context.leaf_positions[:, None] + 2 + depth
    logits = edits_lib.apply(
      context.edits, logits, jnp.broadcast_to(positions, logits.shape[:2])
    )
    return sampling.process_logits(logits, context.settings)

  def _scores(self, context, logits, depth):
    """[B, W, V] float32, by which children of nodes at `depth` are chosen."""
    scores = self._processed(context, logits, depth)
    weight = self.options.used_noise_weight(1.0)
    if context.settings is not None and weight:
      positions = context.leaf_positions[:, None] + 2 + depth
      noise = sampling.row_noise(
        context.row_keys, positions, logits.shape[-1], context.settings
      )
      scores += weight * noise
    return scores

  def _grow_best_first(self, params, context, level):
    """The best nodes by joint probability; closed under ancestors.

    A candidate's parent is one of the nodes that were read, hence a candidate
    itself, comes before it and is never outscored by it.
    """
    batch, k = context.root.shape[0], self.tree.branching
    nodes = jnp.zeros((batch, 1), jnp.int32)  # of the level, root = 0
    joint, candidates, first = jnp.zeros((batch, 1)), [], 1
    for depth in range(1, self.max_depth + 1):
      scores = self._scores(context, level.logits, depth - 1)
      log_probs = jnp.minimum(jax.nn.log_softmax(scores, axis=-1), 0.0)
      log_probs, tokens = sampling.top_k(log_probs, k)  # [B, W, k]
      joint = (joint[..., None] + log_probs).reshape(batch, -1)
      tokens = tokens.reshape(batch, -1)
      parents = jnp.repeat(nodes, k, axis=1)
      candidates.append((joint, tokens, parents, jnp.full_like(tokens, depth)))
      if depth < self.max_depth:
        num_candidates = joint.shape[1]
        joint, best = jax.lax.top_k(joint, min(k, num_candidates))
        nodes, first = first + best, first + num_candidates
        tokens = jnp.take_along_axis(tokens, best, axis=1)
        level = self._read_level(params, level, best // k, tokens, depth)
    whole = [jnp.concatenate(x, axis=1) for x in zip(*candidates, strict=True)]
    scores, *parts = [jnp.pad(x, ((0, 0), (1, 0))) for x in whole]
    tokens, parents, depths = (x.astype(jnp.int32) for x in parts)
    tree = tree_lib.DraftTree(tokens, parents, depths)
    tree = dataclasses.replace(
      tree, tokens=tree.tokens.at[:, 0].set(context.root)
    )
    return tree_lib.prune(tree, scores, self.size)[0], level

  def _grow_beam(self, params, context, level):
    """A stochastic beam search, see `random_trees`, with the law attached."""
    steps, laws, first = [random_trees.first_beam(context.root)], [], 0
    widths = random_trees.beam_widths(self.tree)
    for depth, width in enumerate(widths, start=1):
      scores = self._processed(context, level.logits, depth - 1)
      laws.append(jax.nn.log_softmax(scores, axis=-1))
      num_parents = level.logits.shape[1]
      sources = first + np.arange(num_parents)
      noise = self._draft_noise(context, sources, level.logits.shape)
      beam = random_trees.beam_step(
        steps[-1], laws[-1], noise, width, context.settings
      )
      steps.append(beam)
      first += num_parents
      if depth < len(widths):
        level = self._read_level(
          params, level, beam.parents, beam.tokens, depth
        )
    tree = random_trees.beam_tree(context.root, steps)
    # Nodes are numbered as they were read; the deepest ones were not.
    index = np.arange(tree.tokens.shape[1])
    index = jnp.broadcast_to(
      np.where(index < first, index, 0), tree.tokens.shape
    )
    law = tree_lib.DraftLaw(jnp.concatenate(laws, axis=1), index)
    return dataclasses.replace(tree, law=law), level

  def _grow_static(self, params, context, level):
    """A tree whose shape is known; its tokens are chosen, or drawn."""
    parents, depths, ranks = topology.arrays(self.tree)
    if self.is_random:
      ranks = _sibling_ranks(parents)
    tokens, laws, read = [], [], np.zeros(1, int)
    for depth in range(1, self.max_depth + 1):
      best, law = self._children(context, level.logits, read, depth - 1)
      laws.append((read, law))
      children = np.flatnonzero(depths == depth)
      above = np.searchsorted(read, parents[children])
      tokens.append(best[:, above, ranks[children]])
      if depth < self.max_depth:
        inner = np.isin(children, parents[1:])
        read, above = children[inner], above[inner]
        above = jnp.broadcast_to(above, (len(context.root), len(above)))
        level = self._read_level(
          params, level, above, tokens[-1][:, inner], depth
        )
    drafts = jnp.concatenate(tokens, axis=1)
    tree = random_trees.mark_unused(self.tree, context.root, drafts)
    if self.is_random:
      tree = dataclasses.replace(tree, law=_law(laws, tree.tokens))
    return tree, level

  def _children(self, context, logits, nodes, depth):
    """The k best tokens [B, W, k] under the nodes of a level, best first.

    If they are drawn: in the order of their draws, -1 where there are no more,
    and with the log-probabilities [B, W, V] they were drawn from.
    """
    parents = topology.arrays(self.tree)[0]
    if not self.is_random:
      scores = self._scores(context, logits, depth)
      return sampling.top_k(scores, topology.width(self.tree))[1], None
    count = 1 + int(_sibling_ranks(parents).max())
    scores = self._processed(context, logits, depth)
    log_probs = jax.nn.log_softmax(scores, axis=-1)
    noise = lambda draw: self._draft_noise(
      context, nodes + draw * self.size, logits.shape
    )
    if self.options.drafting == 'gumbel_top_k':
      values, tokens = sampling.top_k(log_probs + noise(0), count)
      return jnp.where(values > -jnp.inf, tokens, -1), log_probs
    draws = [jnp.argmax(log_probs + noise(i), axis=-1) for i in range(count)]
    return jnp.stack(draws, axis=-1), log_probs

  def _draft_noise(self, context, sources, shape):
    """Noise of the drafts' own, float32 [B, W, V]; none when greedy."""
    keys = sampling.call_keys(
      context.row_keys, context.leaf_positions + 2, sampling.DRAFT_NOISE
    )
    sources = jnp.broadcast_to(jnp.asarray(sources, jnp.int32), shape[:2])
    return sampling.row_noise(keys, sources, shape[-1], context.settings)


def _sibling_ranks(parents):
  """How many earlier nodes share a node's parent, int [M].

  Not the ranks of a `fixed` tree, which may skip some: every draw must be a
  node, as siblings follow the law given all earlier draws.
  """
  same = parents[:, None] == parents[None]
  same[:, 0] = False  # the root is its own parent
  return np.tril(same, -1).sum(axis=1)


def _law(laws, tokens) -> tree_lib.DraftLaw:
  """The law of every node that was read, from (nodes, log_probs) per level."""
  nodes, log_probs = zip(*laws, strict=True)
  nodes = np.concatenate(nodes)
  index = np.zeros(tokens.shape[1], np.int32)
  index[nodes] = np.arange(len(nodes))
  return tree_lib.DraftLaw(
    jnp.concatenate(log_probs, axis=1), jnp.broadcast_to(index, tokens.shape)
  )


def _causal(batch, length):
  """[B, T, T] bool."""
  mask = jnp.tri(length, dtype=bool)[None]
  return jnp.broadcast_to(mask, (batch, length, length))


def _num_expanded(tree: config.TreeConfig) -> list[int]:
  """Nodes that are read at each depth; the deepest ones are not."""
  if tree.kind == 'best_first':
    return [tree.branching] * (tree.depth - 1)
  parents, depths, _ = topology.arrays(tree)
  inner = np.unique(parents[1:])
  return [int((depths[inner] == d).sum()) for d in range(1, tree.max_depth)]
