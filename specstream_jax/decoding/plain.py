# SPDX-License-Identifier: Apache-2.0
"""Steps without drafts: the loop becomes plain autoregressive decoding."""

from typing import Any

from specstream_jax import arrays
from specstream_jax.decoding import interface, tree as tree_lib, verify


class NoDraft:
  """Trees of the root alone; one token per call."""

  max_depth = 0
  with_streams = False

  def __init__(self, size: int = 1):
    """Takes the nodes that a later step may need room for in the cache."""
    self.size = size

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> tuple[()]:
    """No state."""
    del params, prompts, prompt_lengths
    return ()

  def propose(
    self, params: Any, context: interface.DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The root; whatever state another drafter left stays as it is."""
    del params
    return tree_lib.root_only(context.root), state


def without_drafts(setup: interface.DecodeSetup) -> interface.DecodeSetup:
  """The same model for steps that draft nothing, between others that do."""
  rest = NoDraft(setup.drafter.size)
  return setup._replace(drafter=rest, verifier=verify.walk)
