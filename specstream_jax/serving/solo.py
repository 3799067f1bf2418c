# SPDX-License-Identifier: Apache-2.0
"""Rows that all have the same adapter, as if it were the only one.

Side by side each row multiplies with LoRA of its own and drafts from the tokens
of all adapters. Where all rows of a batch have one adapter, what of its LoRA acts
on every token is folded into the base, the rest is shared by the rows, and drafts
come from the adapter's own tokens. A folded base is a copy: those of the adapters
that were asked for last are kept.

Axis letters: B rows, N tokens of a draft vocabulary, R ranks.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import config, runtime
from specstream_jax.decoding import (
  batch_sizes,
  interface,
  plain as plain_lib,
  transformer_fns,
)
from specstream_jax.modeling import (
  adapters as adapters_lib,
  build as build_lib,
  params as params_lib,
)
from specstream_jax.serving import vocabularies

_LEAST, _TIMES = 1024, 4  # sizes of draft vocabularies: 1,024, 4,096, …
_BESIDE = 8  # adapters to keep at hand that need no copy of the base


class Weights(NamedTuple):
  """An adapter that all rows share.

  Attributes:
    base: nested weights with LoRA folded in.
    adapter: nested weights that stay beside it, no axis of rows.
  """

  base: Any
  adapter: Any


class Solos:
  """The adapters of an engine, one at a time.

  Attributes:
    setup: what decodes, for `batch_sizes.Solo`.
    kinds: ascending sizes of draft vocabularies that there are programs for.
  """

  def __init__(
    self,
    model: runtime.Model,
    structure: adapters_lib.Structure,
    rows: interface.DecodeSetup,
    vocabulary: vocabularies.Union | None,
    options: Mapping[str, Any],
    names: Iterable[str],
    *,
    most: int,
    is_growing: bool,
  ):
    """Folds nothing yet.

    Args:
      model: the base.
      structure: of the adapters.
      rows: what decodes them side by side.
      vocabulary: that they draft from; None is all tokens.
      options: of its `transformer_fns.model_fns`.
      names: of adapters that draft from the start.
      most: folded copies of the base to keep; at least one.
      is_growing: whether others may come later.
    """
    self._model, self._vocabulary, self._most = model, vocabulary, most
    kinds = {0}
    if vocabulary is not None:
      kinds = {self._needed(name) for name in names}
      if is_growing or not kinds:
        kinds.add(vocabulary.size)
    self.kinds = tuple(sorted(kinds))
    self._rows = structure.build(model.config, model.layout)
    self._built = _built(model, structure)
    fns = transformer_fns.model_fns(self._built, **options)
    self.setup = rows._replace(model=fns)
    self._kept: OrderedDict[int, tuple[Any, Weights]] = OrderedDict()

  def programs(self, *, has_plain: bool) -> batch_sizes.Solo:
    """What is to be compiled; `has_plain` if there are steps without drafts."""
    plain = plain_lib.without_drafts(self.setup) if has_plain else None
    return batch_sizes.Solo(self.setup, plain, self.kinds)

  @property
  def most_bytes(self) -> int:
    """Most that the copies take."""
    stems = {
      path.removesuffix('/lora_a')
      for path in params_lib.flatten(self._rows.adapter)
      if path.endswith('/lora_a')
    }
    base = params_lib.flatten(self._model.base)
    return self._most * sum(base[f'{stem}/kernel'].nbytes for stem in stems)

  def kind(self, name: str) -> int:
    """The kind of an adapter's weights, the tokens that there is room for.

    `SIDE_BY_SIDE` if nothing was compiled for so many.
    """
    if self._vocabulary is None:
      return 0
    needed = self._needed(name)
    return next(
      (kind for kind in self.kinds if kind >= needed), batch_sizes.SIDE_BY_SIDE
    )

  def head(self, name: str, kind: int) -> Any:
    """The LM head of an adapter's drafts; () where it is that of all tokens."""
    vocabulary = self._vocabulary
    if vocabulary is None:
      return ()
    ids = vocabulary.own(name)
    if not len(ids) or len(ids) > kind:
      return vocabulary.head
    return vocabulary.head_of(ids, kind)

  def _needed(self, name: str) -> int:
    """Tokens that an adapter drafts from, rounded up."""
    assert self._vocabulary is not None
    most, count = self._vocabulary.size, len(self._vocabulary.own(name))
    room = _LEAST
    while room < count:
      room *= _TIMES
    return min(room, most) if count else most

  def weights(self, owner: Any, row: Any, *, is_base: bool) -> Weights:
    """An adapter's weights; those of the last ones are at hand.

    Args:
      owner: whatever stands for the adapter.
      row: its nested weights as a row, [1, ...].
      is_base: what acts on all tokens is the base as it is.
    """
    found = self._kept.pop(id(owner), None)
    if found is None:
      # First frees what it held, as one more copy may be one too many.
      self._make_room(is_base=is_base)
      found = owner, self._fold(row, is_base=is_base)
    self._kept[id(owner)] = found
    return found[1]

  def _make_room(self, *, is_base) -> None:
    """For one more, which is a copy or leaves the base as it is."""
    copies = [
      key
      for key, (_, kept) in self._kept.items()
      if kept.base is not self._model.base
    ]
    if not is_base and len(copies) >= self._most:
      del self._kept[copies[0]]
    elif len(self._kept) >= self._most + _BESIDE:
      self._kept.popitem(last=False)

  def _fold(self, row, *, is_base) -> Weights:
    flat = params_lib.flatten(row)
    paths = params_lib.flatten(self._built.adapter)
    own = {path: leaf for path, leaf in flat.items() if path in paths}
    gates = {
      path.rpartition('/')[0]: leaf
      for path, leaf in flat.items()
      if path.endswith('/lora_gate')
    }
    adapter = params_lib.unflatten(_beside(own, gates))
    if is_base or not gates:
      return Weights(self._model.base, adapter)
    base = params_lib.flatten(self._model.base)
    kernels = {stem: base[f'{stem}/kernel'] for stem in gates}
    pairs = {
      stem: (flat[f'{stem}/lora_a'], flat[f'{stem}/lora_b']) for stem in gates
    }
    folded = _folded(
      kernels, pairs, gates, is_turned=self._model.layout == 'out_in'
    )
    base |= {f'{stem}/kernel': leaf for stem, leaf in folded.items()}
    return Weights(params_lib.unflatten(base), adapter)


def _built(
  model: runtime.Model, structure: adapters_lib.Structure
) -> build_lib.Built:
  """The model with what of an adapter stays beside a folded base."""
  room, stream = structure.lora, structure.stream
  lora = None
  if stream is not None and room.rank:
    # That of lossless streams, with the scale in B; others have zeros there.
    stream = dataclasses.replace(stream, mode='lossless')
    lora = config.LoraConfig(
      rank=room.rank, alpha=float(room.rank), modules=room.modules
    )
  return build_lib.build(model.config, stream, lora, model.layout)


@jax.jit
def _beside(leaves, gates):
  """An adapter's leaves [1, ...] without their axis; of LoRA, the streams' own."""

  def own(path, leaf):
    stem, _, kind = path.rpartition('/')
    if kind == 'lora_a':
      leaf = jnp.where(gates[stem][:, None] == 0.0, leaf, 0.0)
    return leaf[0]

  return {path: own(path, leaf) for path, leaf in leaves.items()}


@functools.partial(jax.jit, static_argnames='is_turned')
def _folded(kernels, pairs, gates, *, is_turned):
  """Kernels by stem with the LoRA that acts on all tokens; float32 products."""

  def fold(stem, kernel):
    low, high = (leaf[0] for leaf in pairs[stem])
    low = jnp.where(gates[stem] == 1.0, low, 0.0)
    added = low @ high
    wide = kernel.astype(jnp.float32) + (added.T if is_turned else added)
    return wide.astype(kernel.dtype)

  return {stem: fold(stem, kernel) for stem, kernel in kernels.items()}
