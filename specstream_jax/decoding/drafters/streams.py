# SPDX-License-Identifier: Apache-2.0
"""Speculative streams as the drafter (paper, section 3, steps 1, 2 and 4).

Axis letters: B rows, J streams, V vocabulary.
"""

import functools

import jax.numpy as jnp

from specstream_jax import config, config_drafting, sampling
from specstream_jax.decoding import ngrams, random_trees, tree as tree_lib


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
  ):
    """Raises ValueError if the tree does not fit the streams or the drafting.

    Args:
      cfg: the tree.
      num_streams: J.
      options: how drafts are picked, and for which verifier.
    """
    cfg.check_fits(config.StreamConfig(num_streams=num_streams))
    if options.drafting != 'top_k':
      random_trees.check(options.drafting, cfg, options.verifier)
    ngrams.check(options, cfg)
    self.cfg = cfg
    self.options = options
    self.size = cfg.size
    self.max_depth = cfg.max_depth

  def init(self, params, prompts, prompt_lengths):
    """No state, or the last token of each prompt for the n-gram table."""
    del params
    if not ngrams.is_used(self.options):
      return ()
    return ngrams.last_of(prompts, prompt_lengths)

  def propose(self, setup, params, context, state):
    """The tree of the leaf's streams."""
    said = setup.model.stream_logits(
      params, context.stream_state, context.cache, context.leaf_positions
    )
    logits = said.logits[:, : self.max_depth]
    if self.options.drafting == 'top_k':
      scores = self._scores(setup, logits, context)
      edges = self._coupled(setup, params, said.hidden)
      return self._best(params, scores, edges, context, state), state
    keys = sampling.call_keys(
      context.row_keys, context.leaf_positions + 2, sampling.DRAFT_NOISE
    )
    drafts = random_trees.draw(
      logits,
      context.root,
      keys,
      self.cfg,
      setup.sampling,
      self.options.drafting,
    )
    return drafts, state

  def _scores(self, setup, logits, context):
    """What the streams' tokens are ranked by, [B, J, V]."""
    # Main stream: leaf + 1, the root. Stream j (from 0): leaf + 2 + j.
    ahead = 2 + jnp.arange(self.max_depth)[None]
    positions = context.leaf_positions[:, None] + ahead
    return sampling.perturb(
      logits,
      context.row_keys,
      positions,
      setup.sampling,
      self.options.used_noise_weight,
    )

  def _best(self, params, scores, edges, context, state):
    """The tree of the streams' best tokens."""
    before_root = context.root  # The coupling does not look that far back.
    if ngrams.is_used(self.options):
      edges.append(
        ngrams.edge_scores(params.drafter.ngrams, self.options.ngram_weight)
      )
      before_root = ngrams.before_root(context, state)
    if not edges:
      return tree_lib.from_stream_logits(scores, context.root, self.cfg)
    return tree_lib.from_stream_logits(
      scores,
      context.root,
      self.cfg,
      edge_scores=lambda *nodes: sum(score(*nodes) for score in edges),
      before_root=before_root,
    )

  def _coupled(self, setup, params, hidden):
    """The edge scores of the coupling, if parents re-rank their children."""
    is_coupled = (
      self.options.coupling
      and setup.model.coupling_logits is not None
      and self.cfg.kind == 'best_first'
    )
    if not is_coupled:
      return []
    added = functools.partial(setup.model.coupling_logits, params)
    return [tree_lib.coupled_edges(added, hidden)]
