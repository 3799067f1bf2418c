# SPDX-License-Identifier: Apache-2.0
"""No drafts: the loop becomes plain autoregressive decoding."""

from specstream_jax.decoding import tree as tree_lib


class NoDraft:
  """Trees of the root alone; one token per call."""

  size = 1
  max_depth = 0
  with_streams = False

  def init(self, params, prompts, prompt_lengths):
    """No state."""
    del params, prompts, prompt_lengths
    return ()

  def propose(self, setup, params, context, state):
    """The root."""
    del setup, params
    return tree_lib.root_only(context.root), state
