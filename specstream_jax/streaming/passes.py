# SPDX-License-Identifier: Apache-2.0
"""A pass whose layers are run one by one, each when its weights are there.

What is between the layers is that of `modeling.forward`: here every part is
compiled by itself, and the host goes from one to the next.

Axis letters: B rows, M tree nodes, J streams, D model width.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import nnx
import jax

from specstream_jax import arrays
from specstream_jax.decoding import interface, pruning, transformer_fns
from specstream_jax.modeling import (
  attention,
  build,
  cache as cache_lib,
  forward as forward_lib,
  transformer,
)
from specstream_jax.streaming import weights as weights_lib


class Parts:
  """A model taken apart: its layers, and a shell of everything else.

  Attributes:
    built: the whole.
    shell: as `build.Built`, with no layers.
    model: the whole, of shapes alone; its settings are read.
  """

  def __init__(self, built: build.Built):
    """Takes apart what `build.build` made, layers unstacked."""
    self.built = built
    self.model: transformer.Transformer = built.merge(built.base, built.adapter)
    self._layers = [nnx.split(layer)[0] for layer in self.model.layers]
    self.shell = build.shell(built)
    self.cfg = built.cfg
    self._compiled: dict[Any, Any] = {}

  def layer(self, index: int, *, keeps: bool) -> Callable[..., Any]:
    """The compiled layer; layers alike share one.

    Args:
      index: of the layer.
      keeps: whether the pass writes keys and values.
    """
    graphdef, kind = self._layers[index], self.cfg.kinds[index]
    for (known, *rest), made in self._compiled.items():
      if rest == [kind, keeps] and known == graphdef:
        return made
    run = functools.partial(_layer, self.model, graphdef, kind)
    made = jax.jit(run, donate_argnums=(3, 4) if keeps else ())
    self._compiled[graphdef, kind, keeps] = made
    return made


def _layer(model, graphdef, kind, weights, adapter, way, keys, values):
  """x behind a layer, and its keys and values [B, K, S, H] with the new ones."""
  layer = nnx.merge(graphdef, weights, adapter)
  rows = forward_lib.rows_of(model, way)[kind]
  cached = None
  if rows.cache_mask is not None:
    cached = attention.KeyValues(keys, values)
  x, new = layer(way.x, rows, cached)
  if way.start is None:
    return x, None, None
  x, new, start = cache_lib.order(x, new, way.start)
  append = lambda old, own: cache_lib.append(old, own, start)
  return x, append(keys, new.keys), append(values, new.values)


class Passes:
  """The passes of one `transformer_fns.Recipe`, layers one by one."""

  def __init__(
    self,
    recipe: transformer_fns.Recipe,
    weights: weights_lib.Source,
    parts: Parts | None = None,
  ):
    """Compiles nothing yet; `parts` are those of the same model, if made."""
    self.recipe, self._weights = recipe, weights
    self.parts = parts or Parts(recipe.built)
    self._layer_of = [
      {keeps: self.parts.layer(i, keeps=keeps) for keeps in (True, False)}
      for i in range(recipe.built.cfg.num_layers)
    ]
    self._enter = jax.jit(self._entered, static_argnums=5)
    self._insert = jax.jit(self._inserted, static_argnums=5)
    self._leave = jax.jit(self._left)
    self._enter_streams = jax.jit(self._entered_streams, static_argnums=4)
    self._leave_streams = jax.jit(self._left_streams)

  @property
  def num_layers(self) -> int:
    """Of the model."""
    return self.parts.cfg.num_layers

  @property
  def first_msa(self) -> int:
    """The first MSA layer."""
    return self.parts.model.first_msa

  def _merge(self, params):
    return self.parts.shell.merge(params.base, params.adapter)

  def _entered(self, params, tokens, positions, mask, length, num_slots):
    args = tokens, positions, mask, length, num_slots
    return forward_lib.enter(self._merge(params), *args)

  def _inserted(self, params, way, tokens, mask, scores, with_streams):
    recipe = self.recipe
    chosen = transformer_fns.carriers_of(recipe, scores, mask, way.positions)
    runs_along = chosen is not None or recipe.schedule == 'parallel'
    return forward_lib.insert(
      self._merge(params),
      way,
      tokens,
      mask,
      with_streams=with_streams and runs_along,
      survivors_of=pruning.best(recipe.keep_nodes),
      carriers_of=chosen,
    )

  def _left(self, params, way, chosen):
    result = forward_lib.leave(self._merge(params), way, chosen)
    forward = transformer_fns.as_forward(result, 0)
    return forward._replace(pruned=forward.pruned and forward.pruned.survivors)

  def _entered_streams(self, params, hidden, positions, length, num_slots):
    args = hidden, positions, length, num_slots
    return forward_lib.enter_streams(self._merge(params), *args)

  def _left_streams(self, params, x):
    return self._merge(params).final_norm(x)

  def forward(
    self,
    params: transformer_fns.Params,
    layer_adapters: Mapping[int, Any],
    tokens: arrays.Array,
    positions: arrays.Array,
    tree_mask: arrays.Array,
    cache: cache_lib.Cache,
    *,
    with_streams: bool,
    scores: arrays.Array | None = None,
  ) -> interface.Forward:
    """As `interface.ModelFns.forward`; the cache is consumed.

    Args:
      params: without the layers.
      layer_adapters: adapter weights by layer.
      tokens: [B, M] int32.
      positions: [B, M] int32.
      tree_mask: [B, M, M] bool.
      cache: see there.
      with_streams: see there.
      scores: see there.

    Raises:
      ValueError: weights cannot be read.
    """
    num_slots = 0 if self.recipe.is_prompt else cache.num_slots
    way = self._enter(
      params, tokens, positions, tree_mask, cache.length, num_slots
    )
    keys, values = list(cache.keys), list(cache.values)
    middle, end = self.first_msa, self.num_layers
    way = self._through(range(middle), way, layer_adapters, keys, values)
    way, chosen = self._insert(
      params, way, tokens, tree_mask, scores, with_streams
    )
    way = self._through(range(middle, end), way, layer_adapters, keys, values)
    forward = self._leave(params, way, chosen)
    if forward.pruned is not None:
      pruned = interface.Pruned(forward.pruned, middle)
      forward = forward._replace(pruned=pruned)
    written = cache_lib.Cache(tuple(keys), tuple(values), cache.length)
    return forward._replace(cache=written)

  def streams(
    self,
    params: transformer_fns.Params,
    layer_adapters: Mapping[int, Any],
    hidden: arrays.Array,
    positions: arrays.Array,
    cache: cache_lib.Cache,
  ) -> arrays.Array:
    """Streams [B, J, D] of committed tokens alone, see `forward_streams`."""
    way = self._enter_streams(
      params, hidden, positions, cache.length, cache.num_slots
    )
    keys, values = list(cache.keys), list(cache.values)
    span = range(self.first_msa, self.num_layers)
    way = self._through(span, way, layer_adapters, keys, values)
    return self._leave_streams(params, way.x)

  def _through(self, span, way, adapters, keys, values):
    """The way behind layers; `keys` and `values` get what they write."""
    keeps = way.start is not None
    for i in span:
      taken, x = self._weights.take(i), None
      try:
        x, *new = self._layer_of[i][keeps](
          taken.params, adapters.get(i, {}), way, keys[i], values[i]
        )
      finally:  # an interrupt must not keep the buffer
        self._weights.give_back(taken, x)
      if keeps:
        keys[i], values[i] = new
      way = way._replace(x=x)
    return way
