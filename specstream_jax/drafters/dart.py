# SPDX-License-Identifier: Apache-2.0
"""One extra layer that drafts in one pass as the drafter (arXiv 2601.19278).

What the layer knows of the prefix lies in the target's cache, as one layer more:
every pass of the target also writes the layer's keys and values of its nodes,
and the loop commits them with all others. To draft, the root and the masks go
through the layer against them. The paper's n-gram scores are `ngram_table`, see
`decoding.ngrams`.

Axis letters: B rows, M tree nodes including the root, S cache slots, J drafts,
D model width, V vocabulary.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.checkpoints import dart as checkpoint
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.decoding import (
  interface,
  topology,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded, streams
from specstream_jax.modeling import (
  attention,
  build,
  cache as cache_lib,
  dart as dart_lib,
  fused,
  params as params_lib,
)


class Weights(NamedTuple):
  """`params.drafter` of this drafter.

  Attributes:
    layer: nested weights of the layer.
    ngrams: as of `transformer_fns.StreamExtras`.
    head: likewise.
  """

  layer: Any
  ngrams: Any = ()
  head: Any = ()


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model with the layer at `cfg.path` on top.

  Raises:
    ValueError: no path, a layer of another model, or a tree deeper than it
      drafts.
  """
  del decode
  if not cfg.path:
    raise ValueError(
      "drafter 'dart' has no path; name the folder of its layer: "
      'dart:path=FOLDER (train one with `specstream train_dart`)'
    )
  own = checkpoint.read_config(cfg.path)
  flat = loaded.known_weights(model, cfg.name)
  checkpoint.check_base(own, flat, model.config)
  tree = cfg.tree or _default_tree(own, cfg.drafting)
  dtype, layout = model.config.dtype, fused.of_kernels(model.layout)
  layer = dart_lib.build(
    model.config, own.num_drafts, dtype=dtype, layout=layout
  )
  written = os.stat(os.path.join(cfg.path, checkpoint.CONFIG)).st_mtime_ns
  tensors = _load(cfg.path, dtype, layout, written)
  shapes = params_lib.flatten(layer.shapes)
  checkpoint.check_shapes(cfg.path, tensors, shapes)
  built = build.build(model.config, layout=model.layout)
  fns = functools.partial(transformer_fns.model_fns, built)
  width = topology.width(tree)
  weights = Weights(
    params_lib.unflatten(tensors),
    streams.table(model, cfg),
    streams.head(model, cfg, built, width),
  )
  return loaded.Loaded(
    with_layer(fns(), built, layer),
    Dart(built, layer, tree, cfg),
    transformer_fns.Params(model.base, drafter=weights),
    with_layer(fns(is_prompt=True), built, layer),
  )


def _default_tree(own, drafting) -> config.TreeConfig:
  """A best-first tree, or one of a fixed shape where drafts are drawn."""
  if drafting in ('top_k', 'beam'):
    return own.tree
  return config.TreeConfig('full', depth=min(own.num_drafts, 3), branching=2)


@functools.lru_cache(maxsize=2)
def _load(path: str, dtype: str, layout: str, written: int) -> Any:
  """Flat weights on device; once for all decoders."""
  del written  # A layer that was written anew is read anew.
  flat, _ = checkpoint.load(path)
  if layout == 'out_in':
    flat = params_lib.transpose_kernels(flat)
  arrays = {name: jnp.asarray(leaf, dtype) for name, leaf in flat.items()}
  return jax.block_until_ready(arrays)


def with_layer(
  fns: interface.ModelFns, built: build.Built, layer: dart_lib.Built
) -> interface.ModelFns:
  """The functions of the target, whose cache holds one layer more.

  Args:
    fns: of the target.
    built: its structure.
    layer: whose weights are `params.drafter.layer`.
  """

  def init_cache(rows, slots):
    own = fns.init_cache(rows, slots)
    more = cache_lib.init(layer.cfg, rows, slots, layer.cfg.dtype)
    return _joined(own, more)

  def forward(
    params, tokens, positions, tree_mask, cache, *, with_streams, scores=None
  ) -> interface.Forward:
    """See `interface.ModelFns`; also writes the layer's keys and values."""
    below = cache_lib.Cache(cache.keys[:-1], cache.values[:-1], cache.length)
    result = fns.forward(
      params,
      tokens,
      positions,
      tree_mask,
      below,
      with_streams=with_streams,
      scores=scores,
    )
    embedded = built.merge(params.base, {}).inputs(tokens, positions)
    module = layer.merge(params.drafter.layer)
    new = module.prefix(result.hidden, embedded, positions)
    start = cache.length + tree_mask.shape[-1] - tokens.shape[1]
    more = cache_lib.Cache(
      (cache_lib.append(cache.keys[-1], new.keys, start),),
      (cache_lib.append(cache.values[-1], new.values, start),),
      cache.length,
    )
    return result._replace(cache=_joined(result.cache, more))

  # Nobody may run the layers one by one: there is one that he does not know.
  return fns._replace(init_cache=init_cache, forward=forward, recipe=None)


def _joined(own, more) -> cache_lib.Cache:
  """One cache of the layers of both."""
  return cache_lib.Cache(
    own.keys + more.keys, own.values + more.values, own.length
  )


class Dart:
  """The tree of what the layer says behind the root.

  Draft j stands for stream j: from its logits on, drafts are made as
  `streams.Streams` makes them. The weights are `params.drafter`, `Weights`.
  """

  with_streams = False

  def __init__(
    self,
    built: build.Built,
    layer: dart_lib.Built,
    cfg: config.TreeConfig,
    options: config_drafting.DrafterConfig | None = None,
  ):
    """Raises ValueError if the tree does not fit the layer or the drafting.

    Args:
      built: structure of the target.
      layer: of the layer.
      cfg: the tree.
      options: how drafts are picked, and for which verifier.
    """
    check_tree(cfg, layer.num_drafts)
    self.built, self.layer = built, layer
    self._drafts = streams.Streams(
      cfg, layer.num_drafts, options or config_drafting.DrafterConfig('dart')
    )
    self.size = cfg.size
    self.max_depth = cfg.max_depth

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> Any:
    """No state, or what the n-gram table asks for, see `streams.Streams`."""
    return self._drafts.init(params, prompts, prompt_lengths)

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The tree of the leaf's drafts; those below the tree are left out."""
    said = interface.StreamLogits(self.logits(params, context))
    return self._drafts.grow(said, params, context, state), state

  def logits(
    self, params: Any, context: interface.DraftContext
  ) -> arrays.Array:
    """What the layer says of the tokens behind the root, float32 [B, J, V]."""
    target = self.built.merge(params.base, {})
    cache, positions = context.cache, context.leaf_positions[:, None] + 1
    slots = jnp.arange(cache.num_slots)[None, None]
    states = self.layer.merge(params.drafter.layer).drafts(
      context.hidden[:, None],
      target.inputs(context.root[:, None], positions),
      positions,
      attention.KeyValues(cache.keys[-1], cache.values[-1]),
      slots < positions[..., None],
      self.max_depth,
    )
    head = params.drafter.head if self._drafts.options.vocabulary else None
    return transformer_fns.draft_logits(target, states[:, 0], head)


def check_tree(cfg: config.TreeConfig, num_drafts: int) -> None:
  """Raises ValueError if the tree is deeper than the layer drafts, or pruned."""
  checks.check(
    cfg.max_depth <= num_drafts,
    f'draft tree has depth {cfg.max_depth} but the DART layer drafts '
    f'{num_drafts} tokens; use tree depth <= {num_drafts} or train with '
    f'num_drafts >= {cfg.max_depth}',
  )
  checks.check(
    not cfg.keep_nodes,
    f'TreeConfig.keep_nodes is {cfg.keep_nodes} but a DART layer has no pruning '
    'adapter; use keep_nodes=0',
  )
