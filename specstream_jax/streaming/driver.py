# SPDX-License-Identifier: Apache-2.0
"""Prompts and steps whose passes run layer by layer.

The parts between passes are those of `decoding.loop`, compiled one by one; the
host goes from step to step, and within a pass from layer to layer.

Axis letters: B rows, C tokens of a chunk, T prompt positions, J streams, D model
width.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays
from specstream_jax.decoding import (
  chunks,
  interface,
  likely,
  loop,
  stopping,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.modeling import build, cache as cache_lib
from specstream_jax.streaming import passes, weights as weights_lib


class Runs(NamedTuple):
  """The passes of the models of a setup.

  Attributes:
    step: of every step.
    prompt: over prompts.
    chunk: over parts of a prompt.
    weights: their layers.
  """

  step: passes.Passes
  prompt: passes.Passes
  chunk: passes.Passes
  weights: weights_lib.Source


def take_apart(
  setup: interface.DecodeSetup, weights: weights_lib.Source
) -> tuple[interface.DecodeSetup, Runs]:
  """(the setup of everything but layers, passes through these).

  Args:
    setup: as for resident weights; the recipes of its models are read.
    weights: the layers.
  """
  made: list[passes.Parts] = []
  runs: list[passes.Passes] = []
  shells: list[interface.ModelFns] = []
  models = setup.model, setup.prompt_model, setup.chunk_model or setup.model
  for model in models:
    recipe = model.recipe
    assert recipe is not None
    known = [parts for parts in made if parts.built == recipe.built]
    parts = known[0] if known else passes.Parts(recipe.built)
    made.append(parts)
    runs.append(passes.Passes(recipe, weights, parts))
    # Streams have run before, so their logits are those of `parallel`.
    fns = functools.partial(transformer_fns.model_fns, parts.shell, 'parallel')
    shells.append(_shell(fns(has_draft_head=recipe.has_draft_head)))
  model, prompt_model, chunk_model = shells
  setup = setup._replace(
    model=model, prompt_model=prompt_model, chunk_model=chunk_model
  )
  return setup, Runs(runs[0], runs[1], runs[2], weights)


def _shell(fns: interface.ModelFns) -> interface.ModelFns:
  """The functions; those that others call take weights with layers, too."""
  logits = lambda params, hidden: fns.logits(apart(params)[0], hidden)
  return fns._replace(logits=logits)


class Driver:
  """What `loop` and `chunks` do, for one setup."""

  def __init__(
    self,
    setup: interface.DecodeSetup,
    runs: Runs,
    jit: Callable[..., Any] = jax.jit,
  ):
    """Compiles nothing yet.

    Args:
      setup: of everything but layers, see `take_apart`.
      runs: passes.
      jit: compiles the parts between passes.
    """
    self.setup, self.runs = setup, runs
    of = lambda fun, *first, **named: functools.wraps(fun)(
      functools.partial(fun, *first, **named)
    )
    own = setup._replace(prompt_model=setup.chunk_model or setup.model)
    first_msa = runs.step.first_msa
    self._tree_inputs = jax.jit(loop.tree_inputs)
    self._prompt_inputs = jax.jit(loop.prompt_inputs)
    self._chunk_inputs = jax.jit(chunks.chunk_inputs)
    self.empty = jax.jit(setup.model.init_cache, static_argnums=(0, 1))
    self._first = jit(of(_first, setup), donate_argnums=1)
    self._first_of_chunk = jit(of(_first, own), donate_argnums=1)
    accept = of(_accept, setup, first_msa=first_msa)
    self._accept = jit(accept, donate_argnums=1)
    self._draft = jit(of(loop.draft, setup), donate_argnums=1)
    self._draft_first = jit(of(_draft_first, setup), donate_argnums=1)
    self._draft_chunk = jit(of(_draft_first, own), donate_argnums=1)

  def prefill(
    self,
    params: transformer_fns.Params,
    prompts: arrays.Array,
    prompt_lengths: arrays.Array,
    rows: loop.Rows,
    *,
    cache_length: int,
    stops: stopping.StopTexts | None = None,
    text_states: arrays.Array | None = None,
  ) -> loop.DecodeState:
    """As `loop.prefill`; raises ValueError if weights cannot be read."""
    shell, adapters = apart(params)
    run = self.runs.prompt
    with self.runs.weights.in_use:
      forward = self._pass(
        run,
        params,
        self._prompt_inputs(prompts),
        self.empty(len(prompts), cache_length),
      )
      rest = forward._replace(cache=None)
      asked = prompts, prompt_lengths, rows, stops, text_states
      last = np.asarray(prompt_lengths) - 1
      state, leaf = self._first(shell, forward.cache, rest, last, *asked)
      leaf = self._with_streams(run, shell, adapters, state, leaf)
    return self._draft_first(shell, state, leaf)

  def read_chunk(
    self,
    params: transformer_fns.Params,
    cache: cache_lib.Cache,
    tokens: arrays.Array,
    counts: arrays.Array,
  ) -> interface.Forward:
    """As `chunks.read_chunk`; raises ValueError if weights cannot be read."""
    inputs = self._chunk_inputs(tokens, cache.length)
    with self.runs.weights.in_use:
      forward = self._pass(self.runs.chunk, params, inputs, cache)
    grown = dataclasses.replace(forward.cache, length=cache.length + counts)
    return forward._replace(cache=grown)

  def read_on(
    self,
    params: transformer_fns.Params,
    cache: cache_lib.Cache,
    tokens: arrays.Array,
    counts: arrays.Array,
  ) -> cache_lib.Cache:
    """As `chunks.read_on`."""
    return self.read_chunk(params, cache, tokens, counts).cache

  def begin_row(
    self,
    params: transformer_fns.Params,
    cache: cache_lib.Cache,
    tokens: arrays.Array,
    counts: arrays.Array,
    prompts: arrays.Array,
    rows: loop.Rows,
  ) -> loop.DecodeState:
    """As `chunks.begin_row`."""
    shell, adapters = apart(params)
    with self.runs.weights.in_use:
      forward = self.read_chunk(params, cache, tokens, counts)
      rest, lengths = forward._replace(cache=None), forward.cache.length + 0
      asked = counts - 1, prompts, lengths, rows, None, None
      state, leaf = self._first_of_chunk(shell, forward.cache, rest, *asked)
      run = self.runs.chunk
      leaf = self._with_streams(run, shell, adapters, state, leaf)
    return self._draft_chunk(shell, state, leaf)

  def run(
    self,
    params: transformer_fns.Params,
    state: loop.DecodeState,
    max_steps: arrays.Array | int,
    stops: stopping.StopTexts | None = None,
    *,
    min_running: arrays.Array | int = 1,
  ) -> loop.DecodeState:
    """As `loop.run`; raises ValueError if weights cannot be read."""
    left = int(max_steps)
    while left > 0 and np.sum(~np.asarray(state.is_done)) >= int(min_running):
      state = self._step(params, state, stops)
      left -= 1
    return state

  def _step(self, params, state, stops):
    """As `loop.step`."""
    shell, adapters = apart(params)
    run = self.runs.step
    inputs = self._tree_inputs(state.tree, state.cache.length)
    with self.runs.weights.in_use:
      forward = self._pass(
        run, params, inputs, state.cache, scores=state.tree.scores
      )
      state = dataclasses.replace(state, cache=forward.cache)
      rest = forward._replace(cache=None, pruned=None)
      early = forward.pruned and forward.pruned.survivors
      state, leaf = self._accept(shell, state, rest, early, stops)
      leaf = self._with_streams(run, shell, adapters, state, leaf)
    return self._draft(shell, state, leaf)

  def _pass(self, run, params, inputs, cache, scores=None):
    """One pass, what comes after it being read ahead."""
    shell, adapters = apart(params)
    has_streams = self.setup.drafter.with_streams
    again = has_streams and run.recipe.schedule == 'deferred'
    layers = list(range(run.num_layers))
    self.runs.weights.expect(layers + layers[run.first_msa :] * again + layers)
    named = {} if scores is None else {'scores': scores}
    return run.forward(
      *(shell, adapters, *inputs, cache), with_streams=has_streams, **named
    )

  def _with_streams(self, run, params, adapters, state, leaf):
    """The leaf with its streams [B, J, D], by a pass of their own if need be."""
    found, schedule = leaf.stream_state, run.recipe.schedule
    if not self.setup.drafter.with_streams or schedule == 'parallel':
      return leaf
    hidden = found
    if isinstance(found, likely.Carried):
      if bool(found.is_known.all()):
        return leaf._replace(stream_state=found.streams)
      layers = list(range(run.num_layers))
      self.runs.weights.expect(layers[run.first_msa :] + layers)
      hidden = found.insertion
    if bool(np.all(state.is_done)):  # nothing is drafted any more
      shape = len(hidden), run.recipe.built.num_streams, hidden.shape[-1]
      return leaf._replace(stream_state=jnp.zeros(shape, hidden.dtype))
    positions = state.cache.length - 1
    streams = run.streams(params, adapters, hidden, positions, state.cache)
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
    base=build.without_layers(params.base),
    adapter=build.without_layers(params.adapter),
  )
  return shell, params.adapter.get('layers', {})


def run_plain(
  driver: Driver,
  params: transformer_fns.Params,
  state: loop.DecodeState,
  max_steps: arrays.Array | int,
  *,
  min_running: arrays.Array | int,
) -> loop.DecodeState:
  """As `batch_sizes.run_plain`.

  Args:
    driver: of a drafter that drafts nothing.
    params: weights.
    state: of rows that draft.
    max_steps: at most so many.
    min_running: wakes when fewer rows run.
  """
  drafts = state.tree
  root = tree_lib.root_only(drafts.tokens[:, 0])
  state = dataclasses.replace(state, tree=root)
  state = driver.run(params, state, max_steps, min_running=min_running)
  tokens = drafts.tokens.at[:, :1].set(state.tree.tokens)
  tree = dataclasses.replace(drafts, tokens=tokens)
  tree = tree_lib.without_drafts(tree, jnp.ones_like(state.is_done))
  return dataclasses.replace(state, tree=tree)


def _first(
  setup,
  params,
  cache,
  forward,
  last,
  prompts,
  lengths,
  rows,
  stops,
  text_states,
):
  """`loop.draw_first`, the cache of the pass being given apart."""
  return loop.draw_first(
    setup,
    params,
    forward._replace(cache=cache),
    last,
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
