# SPDX-License-Identifier: Apache-2.0
"""A drafter that is told the text: what it drafts is right at every depth.

Where a call accepts less than the whole depth, something between drafting and
verifying has lost a node. The text is `params.drafter`, int32 [B, max_new].
"""

import jax
import jax.numpy as jnp

from specstream_jax.decoding import topology, tree as tree_lib


class KnownText:
  """A static tree with the right token once under every node.

  Its siblings are random tokens, and its rank is another in every call.
  """

  with_streams = False

  def __init__(self, cfg, vocab_size):
    self.cfg, self.vocab_size = cfg, vocab_size
    self.size, self.max_depth = cfg.size, cfg.max_depth

  def init(self, params, prompts, prompt_lengths):
    """How many trees were drafted."""
    del params, prompts, prompt_lengths
    return jnp.int32(0)

  def propose(self, params, context, state):
    """State counts the calls, so that every call has other siblings."""
    parents, depths, ranks = topology.arrays(self.cfg)
    batch, text = context.root.shape[0], params.drafter
    ahead = context.num_tokens[:, None] + jnp.arange(self.max_depth)[None]
    ahead = jnp.minimum(ahead, text.shape[1] - 1)
    truth = jnp.take_along_axis(text, ahead, axis=1)  # [B, D]
    keys = jax.random.split(jax.random.key(state))
    shape = (batch, self.size)
    wrong = jax.random.randint(keys[0], shape, 0, self.vocab_size)
    right = jax.random.randint(
      keys[1], (batch, self.max_depth), 0, topology.width(self.cfg)
    )
    above = jnp.maximum(depths - 1, 0)
    is_right = ranks[None] == right[:, above]
    tokens = jnp.where(is_right, truth[:, above], wrong)
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), shape)
    tokens = tokens.at[:, 0].set(context.root).astype(jnp.int32)
    tree = tree_lib.DraftTree(tokens, spread(parents), spread(depths))
    return tree, state + 1


def as_text(tokens, max_new):
  """[B, max_new] of rows of new tokens, padded with 0."""
  return jnp.array([row + [0] * (max_new - len(row)) for row in tokens])
