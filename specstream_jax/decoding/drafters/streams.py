# SPDX-License-Identifier: Apache-2.0
"""Speculative streams as the drafter (paper, section 3, steps 1, 2 and 4).

Axis letters: B rows, J streams, V vocabulary.
"""

import jax.numpy as jnp

from specstream_jax import config, config_drafting, sampling
from specstream_jax.decoding import tree as tree_lib


class Streams:
  """The tree of the streams at the last accepted token.

  When tokens are drawn rather than taken greedily, stream logits are perturbed
  with the noise that the target will use at the same position (Gumbel
  coupling), which raises the accept length and cannot change the output.
  """

  with_streams = True

  def __init__(
    self,
    cfg: config.TreeConfig,
    num_streams: int,
    options: config_drafting.DrafterConfig = config_drafting.DrafterConfig(),
  ):
    """Raises ValueError if the tree is deeper than there are streams."""
    cfg.check_fits(config.StreamConfig(num_streams=num_streams))
    self.cfg = cfg
    self.options = options
    self.size = cfg.size
    self.max_depth = cfg.max_depth

  def init(self, params, prompts, prompt_lengths):
    """No state."""
    del params, prompts, prompt_lengths
    return ()

  def propose(self, setup, params, context, state):
    """The tree of the leaf's streams."""
    logits = setup.model.stream_logits(
      params, context.stream_state, context.cache, context.leaf_positions
    )[:, : self.max_depth]
    # Main stream: leaf + 1, the root. Stream j (from 0): leaf + 2 + j.
    ahead = 2 + jnp.arange(self.max_depth)[None]
    positions = context.leaf_positions[:, None] + ahead
    scores = sampling.perturb(
      logits, context.row_keys, positions, setup.sampling
    )
    return tree_lib.from_stream_logits(scores, context.root, self.cfg), state
