# SPDX-License-Identifier: Apache-2.0
"""Speculative streams as the drafter (paper, section 3, steps 1, 2 and 4).

Axis letters: B rows, J streams, V vocabulary.
"""

import functools
import operator
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from specstream_jax import arrays, config, sampling
from specstream_jax.checkpoints import (
  draft_vocabulary,
  ngram_table,
  token_ids,
)
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  edits as edits_lib,
  interface,
  ngrams,
  random_trees,
  row_trees,
  topology,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import loaded
from specstream_jax.modeling import build, phases

# Of the target's noise in the scores: streams and Medusa heads know less than
# the target, and hence of what its noise will do.
NOISE_WEIGHT = 0.5


def load(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> loaded.Loaded:
  """The model with its streams.

  Raises:
    ValueError: no adapter is loaded, the tree is deeper than its streams, or
      the n-gram table does not fit.
  """
  if model.stream is None:
    raise ValueError(_without_streams(model, cfg.name))
  tree = cfg.tree or model.tree
  tree.check_fits(model.stream)
  built = build.build(model.config, model.stream, model.lora, model.layout)
  cfg = cfg.used_schedule(decode)
  return loaded.Loaded(
    transformer_fns.model_fns(
      built,
      cfg.schedule,
      tree.keep_nodes,
      likely_nodes=cfg.likely_nodes,
      has_draft_head=bool(cfg.vocabulary),
    ),
    Streams(tree, model.stream.num_streams, cfg),
    transformer_fns.Params(
      model.base,
      model.adapter,
      transformer_fns.StreamExtras(
        table(model, cfg), head(model, cfg, built, topology.width(tree))
      ),
    ),
    transformer_fns.model_fns(built, is_prompt=True),
    transformer_fns.model_fns(built),
  )


def _without_streams(model, name: str) -> str:
  """What a user reads who asks for streams that are not there."""
  folder = model.adapter_dir
  if not folder:
    return (
      f'drafter is {name!r} but no adapter is loaded; load one with adapter=…, '
      "or use drafter='none'"
    )
  return (
    f'drafter is {name!r} but the adapter {folder!r} brings no streams; use '
    "drafter='none' or 'prompt_lookup', or teach it some with `specstream train "
    f'--fold_adapter={folder} --gin.StreamConfig.mode=lossless`'
  )


def _file(value: str, model, name: str) -> str:
  """The file that a setting names; 'adapter' is `name` in the adapter's folder.

  Raises:
    ValueError: the adapter has no such file.
  """
  if value != 'adapter':
    return value
  path = os.path.join(model.adapter_dir, name)
  if not (model.adapter_dir and os.path.isfile(path)):
    raise ValueError(
      f"'adapter' asks for {name} in the adapter's folder "
      f'{model.adapter_dir!r}, which has none; name a file'
    )
  return path


def head(
  model: loaded.Target,
  cfg: config_drafting.DrafterConfig,
  built: build.Built,
  width: int,
) -> Any:
  """The LM head of the draft vocabulary; () without."""
  if not cfg.vocabulary:
    return ()
  is_known = isinstance(model.tokenizer, tokenizers.Tokenizer)
  ids = draft_vocabulary.load(
    _file(cfg.vocabulary, model, draft_vocabulary.FILE),
    tokenizer_sha256=(
      token_ids.tokenizer_hash(model.tokenizer) if is_known else None
    ),
    vocab_size=model.config.vocab_size,
    size=cfg.vocabulary_size,
  )
  if len(ids) < width:
    raise ValueError(
      f'draft vocabulary {cfg.vocabulary!r} has {len(ids)} tokens but the tree '
      f'branches into {width}; use a smaller branching or more tokens'
    )
  head = build.shell(built).merge(  # layers may lie elsewhere
    *map(build.without_layers, (model.base, model.adapter))
  )
  return transformer_fns.draft_head(head, jnp.asarray(ids))


def table(model: loaded.Target, cfg: config_drafting.DrafterConfig) -> Any:
  """The n-gram table on device; () without."""
  if not cfg.ngram_table:
    return ()
  path = pathlib.Path(_file(cfg.ngram_table, model, ngram_table.FILE))
  written = path.stat().st_mtime_ns if path.is_file() else 0
  table, metadata = _load(str(path), written)
  if isinstance(model.tokenizer, tokenizers.Tokenizer):
    ngram_table.check_tokenizer(
      str(path), metadata, token_ids.tokenizer_hash(model.tokenizer)
    )
  return table


@functools.lru_cache(maxsize=2)
def _load(path: str, written: int) -> tuple[ngrams.NgramTable, dict[str, Any]]:
  """Table on device and metadata; once for all decoders."""
  del written  # A table that was written anew is read anew.
  table, metadata = ngram_table.load(path)
  return jax.tree.map(jnp.asarray, table), metadata


class Streams:
  """The tree of the streams at the last accepted token.

  When tokens are drawn rather than taken greedily, stream logits are perturbed
  with the noise that the target will use at the same position (Gumbel
  coupling), which raises the accept length and cannot change the output.
  `options.couple_noise=False` ranks the drafts by their logits alone, and
  `options.drafting` may draw them at random, see `random_trees`. With
  `options.ngram_table`, the table is `params.drafter.ngrams`, see `ngrams`; an adapter
  with a coupling re-ranks children by their parents, see `modeling.streams`.
  """

  with_streams = True

  def __init__(
    self,
    cfg: config.TreeConfig,
    num_streams: int,
    options: config_drafting.DrafterConfig = config_drafting.DrafterConfig(),
    *,
    room: row_trees.Room | None = None,
  ):
    """Raises ValueError if the tree does not fit the streams or the drafting.

    Args:
      cfg: the tree.
      num_streams: J.
      options: how drafts are picked, and for which verifier.
      room: for trees that differ from row to row, in `params.drafter.trees`;
        `cfg` is its largest then.
    """
    cfg.check_fits(config.StreamConfig(num_streams=num_streams))
    if options.drafting != 'top_k':
      random_trees.check(options.drafting, cfg, options.verifier)
    ngrams.check(options, cfg)
    self.cfg = cfg
    self.options, self.room = options, room
    self.size = cfg.size
    self.max_depth = cfg.max_depth

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> Any:
    """No state, or the last token of each prompt for the n-gram table."""
    del params
    if not ngrams.is_used(self.options):
      return ()
    return ngrams.last_of(prompts, prompt_lengths)

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The tree of the leaf's streams."""
    grow = lambda said: self.grow(said, params, context, state)
    return phases.run('draft', grow, context.stream_logits()), state

  def grow(
    self,
    said: interface.StreamLogits,
    params: Any,
    context: interface.DraftContext,
    state: Any,
  ) -> tree_lib.DraftTree:
    """The tree of what streams, or heads, say at the leaf."""
    if self.options.drafting == 'top_k':
      scores = self._scores(said, context)
      asked = self._edges(said, params, context, state)
      if self.room is not None:
        return row_trees.from_stream_logits(
          scores, context.root, params.drafter.trees, self.room, **asked
        )
      return tree_lib.from_stream_logits(
        scores, context.root, self.cfg, **asked
      )
    keys = sampling.call_keys(
      context.row_keys, context.leaf_positions + 2, sampling.DRAFT_NOISE
    )
    logits, _ = self._logits(said, context)
    return random_trees.draw(
      logits,
      context.root,
      keys,
      self.cfg,
      context.settings,
      self.options.drafting,
    )

  def scored(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tree_lib.DraftTree:
    """The `best_first` tree of the leaf's streams, and how likely its nodes are.

    Rows whose trees have another shape get such a tree, too.
    """
    said = context.stream_logits()
    return tree_lib.best_first(
      self._scores(said, context),
      context.root,
      self.cfg,
      limits=self.limits(params),
      **self._edges(said, params, context, state),
    )

  def limits(self, params: Any) -> tree_lib.Limits | None:
    """Of the rows' trees, if they have their own."""
    return None if self.room is None else params.drafter.trees.limits

  def _logits(self, said, context):
    """What the streams say as far as the tree goes; of which positions."""
    # Main stream: leaf + 1, the root. Stream j (from 0): leaf + 2 + j.
    ahead = 2 + jnp.arange(self.cfg.max_depth)[None]
    positions = context.leaf_positions[:, None] + ahead
    # Streams do not know the path, so of the text the output alone counts.
    logits = said.logits[:, : self.cfg.max_depth]
    return edits_lib.apply(context.edits, logits, positions), positions

  def _scores(self, said, context):
    """The logits that the best tokens are picked by."""
    logits, positions = self._logits(said, context)
    return sampling.perturb(
      logits,
      context.row_keys,
      positions,
      context.settings,
      self.options.used_noise_weight(NOISE_WEIGHT),
    )

  def _edges(self, said, params, context, state):
    """What else ranks the nodes of a `best_first` tree, as named arguments."""
    before_root = context.root  # The coupling does not look that far back.
    edges = self._coupled(context, said.hidden)
    if ngrams.is_used(self.options):
      edges.append(
        ngrams.edge_scores(params.drafter.ngrams, self.options.ngram_weight)
      )
      before_root = ngrams.before_root(context, state)
    if not edges:
      return {}
    return {
      'edge_scores': lambda *nodes: functools.reduce(
        operator.add, (score(*nodes) for score in edges)
      ),
      'before_root': before_root,
    }

  def _coupled(self, context, hidden):
    """The edge scores of the coupling, if parents re-rank their children."""
    added = context.coupling_logits if self.options.coupling else None
    if added is None or self.cfg.kind != 'best_first':
      return []
    return [tree_lib.coupled_edges(added, hidden)]
