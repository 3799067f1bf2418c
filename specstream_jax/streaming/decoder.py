# SPDX-License-Identifier: Apache-2.0
"""The decoder of a model whose layers pass through memory.

The parts of a step are those of `decoding.loop`, compiled one by one; the host
goes from step to step, and within a pass from layer to layer. The tokens are
those of resident weights.

Axis letters: B rows, J streams, D model width.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config
from specstream_jax.decoding import (
  decoder as decoder_lib,
  interface,
  likely,
  loop,
  transformer_fns,
  verify,
)
from specstream_jax.streaming import passes, weights as weights_lib


class StreamedDecoder(decoder_lib.Decoder):
  """As `Decoder`; `params` hold no layers but those of the adapter."""

  def __init__(
    self,
    model: interface.ModelFns,
    drafter: interface.Drafter,
    cfg: config.DecodeConfig,
    weights: weights_lib.LayerWeights,
    sampling_cfg: config.SamplingConfig = config.SamplingConfig(),
    *,
    prompt_model: interface.ModelFns,
    verifier: interface.Verifier = verify.walk,
    params: Any = None,
    most_positions: int = 0,
  ):
    """Takes what `Decoder` takes, and where the layers come from."""
    own, prompt = model.recipe, prompt_model.recipe
    assert own is not None and prompt is not None
    parts = passes.Parts(own.built)
    shell = transformer_fns.model_fns(
      parts.shell, 'parallel', has_draft_head=own.has_draft_head
    )
    super().__init__(
      shell,
      drafter,
      cfg,
      sampling_cfg,
      prompt_model=shell._replace(
        stream_logits=transformer_fns.model_fns(
          parts.shell, 'parallel', has_draft_head=prompt.has_draft_head
        ).stream_logits
      ),
      verifier=verifier,
      params=params,
      most_positions=most_positions,
    )
    self.weights = weights
    self._passes = passes.Passes(own, weights, parts)
    same = parts if prompt.built == own.built else None
    self._prompt_passes = passes.Passes(prompt, weights, same)
    self._compile()
    self._prefill, self._run = self._prefill_layers, self._run_layers

  def _compile(self):
    """The parts of a step between passes."""
    jit = self._partitioner.jit
    self._inputs = jax.jit(loop.tree_inputs)
    self._prompt_inputs = jax.jit(loop.prompt_inputs)
    self._empty = jax.jit(self.setup.model.init_cache, static_argnums=(0, 1))
    self._first = jit(self._counted(_first), donate_argnums=1)
    accept = functools.partial(_accept, first_msa=self._passes.first_msa)
    accept = functools.wraps(_accept)(accept)
    self._accept = jit(self._counted(accept), donate_argnums=1)
    self._draft = jit(self._counted(loop.draft), donate_argnums=1)
    self._draft_first = jit(self._counted(_draft_first), donate_argnums=1)

  def _prefill_layers(
    self,
    params,
    prompts,
    prompt_lengths,
    rows,
    *,
    cache_length,
    stops=None,
    text_states=None,
  ):
    """As `loop.prefill`."""
    shell, adapters = apart(params)
    runs = self._prompt_passes
    self.weights.expect(self._order(runs))
    tokens, positions, mask = self._prompt_inputs(prompts)
    forward = runs.forward(
      shell,
      adapters,
      tokens,
      positions,
      mask,
      self._empty(len(prompts), cache_length),
      with_streams=self.setup.drafter.with_streams,
    )
    rest = forward._replace(cache=None)
    asked = prompts, prompt_lengths, rows, stops, text_states
    state, leaf = self._first(shell, forward.cache, rest, *asked)
    leaf = self._with_streams(runs, shell, adapters, state, leaf)
    return self._draft_first(shell, state, leaf)

  def _run_layers(self, params, state, max_steps, stops=None):
    """As `loop.run`."""
    shell, adapters = apart(params)
    runs, left = self._passes, int(max_steps)
    while left > 0 and not np.all(state.is_done):
      self.weights.expect(self._order(runs))
      inputs = self._inputs(state.tree, state.cache.length)
      tokens, positions, mask = inputs
      forward = runs.forward(
        shell,
        adapters,
        tokens,
        positions,
        mask,
        state.cache,
        with_streams=self.setup.drafter.with_streams,
        scores=state.tree.scores,
      )
      state = dataclasses.replace(state, cache=forward.cache)
      rest = forward._replace(cache=None, pruned=None)
      early = forward.pruned and forward.pruned.survivors
      state, leaf = self._accept(shell, state, rest, early, stops)
      leaf = self._with_streams(runs, shell, adapters, state, leaf)
      state = self._draft(shell, state, leaf)
      left -= 1
    return state

  def _order(self, runs):
    """The layers of a call, and then those of the next."""
    layers = list(range(runs.num_layers))
    schedule = runs.recipe.schedule
    again = self.setup.drafter.with_streams and schedule == 'deferred'
    return layers + layers[runs.first_msa :] * again + layers

  def _with_streams(self, runs, params, adapters, state, leaf):
    """The leaf with its streams [B, J, D], by a pass of their own if need be."""
    found, schedule = leaf.stream_state, runs.recipe.schedule
    if not self.setup.drafter.with_streams or schedule == 'parallel':
      return leaf
    hidden = found
    if isinstance(found, likely.Carried):
      if bool(found.is_known.all()):
        return leaf._replace(stream_state=found.streams)
      layers = list(range(runs.num_layers))
      self.weights.expect(layers[runs.first_msa :] + layers)
      hidden = found.insertion
    if bool(np.all(state.is_done)):  # nothing is drafted any more
      shape = len(hidden), runs.recipe.built.num_streams, hidden.shape[-1]
      return leaf._replace(stream_state=jnp.zeros(shape, hidden.dtype))
    positions = state.cache.length - 1
    streams = runs.streams(params, adapters, hidden, positions, state.cache)
    if isinstance(found, likely.Carried):
      # What a row drafts must not depend on its neighbours.
      is_known = found.is_known[:, None, None]
      streams = jnp.where(is_known, found.streams, streams)
    return leaf._replace(stream_state=streams)


def apart(
  params: transformer_fns.Params,
) -> tuple[transformer_fns.Params, Any]:
  """(params without layers, adapter weights by layer)."""
  shell = params._replace(
    base=passes.without_layers(params.base),
    adapter=passes.without_layers(params.adapter),
  )
  return shell, params.adapter.get('layers', {})


def _first(
  setup, params, cache, forward, prompts, lengths, rows, stops, text_states
):
  """`loop.draw_first` at the end of each prompt."""
  return loop.draw_first(
    setup,
    params,
    forward._replace(cache=cache),
    lengths - 1,
    prompts,
    lengths,
    rows,
    stops=stops,
    text_states=text_states,
  )


def _draft_first(setup, params, state, leaf):
  """`loop.draft` after the prompt pass."""
  return loop.draft(
    setup._replace(model=setup.prompt_model), params, state, leaf
  )


def _accept(setup, params, state, forward, survivors, stops, *, first_msa):
  """`loop.accept`, the cache of the pass being that of the state."""
  pruned = None
  if survivors is not None:
    pruned = interface.Pruned(survivors, first_msa)
  forward = forward._replace(cache=state.cache, pruned=pruned)
  return loop.accept(setup, params, state, forward, stops)
