# SPDX-License-Identifier: Apache-2.0
"""What decodes in the slots of an engine: a model, and adapters by name.

A model that was loaded with an adapter serves that one alone, LoRA folded into
the base, which costs nothing (`Folded`). A model without serves any number of
them, each row with its own (`SideBySide`).
"""

from collections.abc import Mapping
import functools
import itertools
from typing import Any

from absl import logging
import jax
import numpy as np

from specstream_jax import config, drafters, runtime
from specstream_jax.checkpoints import eos, fitted
from specstream_jax.config import checks, drafting, serving
from specstream_jax.decoding import (
  batch_sizes,
  interface,
  row_trees,
  transformer_fns,
  verifiers,
)
from specstream_jax.drafters import mix, streams
from specstream_jax.modeling import adapters as adapters_lib
from specstream_jax.serving import solo, vocabularies
from specstream_jax.serving.served import (
  RowWeights as RowWeights,
  Served as Served,
  kind as kind,
)
from specstream_jax.streaming import loading as streamed_loading

# Those that read nothing of a prompt with a model of their own.
_ALONE = ('streams', 'medusa', 'prompt_lookup', 'lookahead', 'mix', 'none')
_BESIDE = ('streams', 'prompt_lookup', 'lookahead', 'mix', 'none')
BASE = ''


class Folded:
  """One model as it was loaded, with its adapter or without.

  Attributes:
    setup: model, drafter and sizes.
  """

  def __init__(
    self,
    model: runtime.Model,
    cfg: serving.EngineConfig,
    drafter: drafting.DrafterConfig,
  ):
    """Raises ValueError if the drafter does not fit the model."""
    made = drafters.load(model, drafter, _decode_config(cfg))
    self.setup = _setup(made, cfg, drafter)
    self._params = made.params
    has_drafts = drafter.name != 'none'
    num_drafts = self.setup.drafter.size - 1
    self.served = {BASE: Served(BASE, model.eos_ids, has_drafts, num_drafts)}

  def of_row(self, served: Served) -> Any:
    """Weights for a batch of one row."""
    del served
    return self._params

  def of_slots(
    self, shape: batch_sizes.Shape, served: Served, *, has_drafts: bool
  ) -> Any:
    """Weights for so many slots."""
    del shape, served, has_drafts
    return self._params

  copied_bytes = 0

  def programs(self, *, has_plain: bool) -> batch_sizes.Solo:
    """Those of all rows are the ones that there are."""
    del has_plain
    return batch_sizes.Solo()

  def seat(self, served: Served, slot: int) -> None:
    """Makes a slot's weights those of an adapter."""
    del served, slot

  def load(self, name: str, found: fitted.Fitted) -> None:
    """Raises ValueError: there is no room beside what is folded."""
    del found
    raise ValueError(
      f'adapter {name!r} cannot be loaded: the engine serves one model with what '
      'is folded into it; start it with adapters side by side, or with '
      'max_lora_rank > 0'
    )

  def unload(self, name: str) -> None:
    """Raises ValueError: there is nothing that could go."""
    _check_known(name, ())


class SideBySide:
  """A base and any number of adapters of one structure, each row with its own.

  A slot keeps the weights of the last adapter that was there, so that the next
  row of the same one finds them.

  Attributes:
    setup: model, drafter and sizes.
    served: adapters by name, the base among them.
  """

  def __init__(
    self,
    model: runtime.Model,
    cfg: serving.EngineConfig,
    drafter: drafting.DrafterConfig,
    adapters: Mapping[str, fitted.Fitted],
  ):
    """Puts all weights on the device.

    Raises:
      ValueError: the drafter cannot serve, or an adapter does not fit.
    """
    checks.check(
      not model.adapter and not model.adapter_dir,
      f'the model was loaded with the adapter {model.adapter_dir!r}; load it '
      'without, and serve that one beside the others',
    )
    self._model, self._drafts = model, drafter.name != 'none'
    self._room: row_trees.Room | None = None
    self._vocabulary: vocabularies.Union | None = None
    self._structure = adapters_lib.structure(
      {name: _parts(found) for name, found in adapters.items()},
      least_rank=cfg.max_lora_rank,
      modules=config.LORA_MODULES if cfg.max_lora_rank else (),
    )
    self._built = self._structure.build(model.config, model.layout)
    self.setup = _setup(self._make(cfg, drafter, adapters), cfg, drafter)
    self._solos: solo.Solos | None = None
    # What is stored in 8 bits, or not in memory, cannot take LoRA in.
    is_whole = model.streamed is None and not model.config.weights_dtype
    if cfg.max_folded and is_whole:
      self._solos = solo.Solos(
        model,
        self._structure,
        self.setup,
        self._vocabulary,
        self._options,
        [name for name, found in adapters.items() if found.stream],
        most=cfg.max_folded,
        is_growing=bool(cfg.max_lora_rank),
      )
    self.served: dict[str, Served] = {}
    self._owners = itertools.count(1)  # 0 is the base
    self.load(BASE, fitted.Fitted())
    self._rows = adapters_lib.spread(self.served[BASE].weights, cfg.num_slots)
    self._held: list[Served | None] = [None] * cfg.num_slots
    self._first: tuple[int, RowWeights] | None = None
    self.seat(self.served[BASE], 0)  # compiles
    for name, found in adapters.items():
      self.load(name, found)

  def _make(self, cfg, drafter, adapters) -> drafters.Loaded:
    """What decodes rows with adapters of their own."""
    model, stream, decode = (
      self._model,
      self._structure.stream,
      _decode_config(cfg),
    )
    if drafter.name not in drafting.STREAMS:
      proposer, keep = drafters.load(model, drafter, decode).drafter, 0
    else:
      proposer = _streams(drafter, stream, adapters)
      self._room, keep = proposer.room, proposer.cfg.keep_nodes
      if drafter.name == 'mix':
        proposer = mix.Mix(proposer, drafter)
      self._vocabulary = vocabularies.union(
        model,
        drafter,
        adapters,
        is_growing=bool(cfg.max_lora_rank),
      )
    fns = functools.partial(transformer_fns.model_fns, self._built)
    drafter = drafter.used_schedule(decode)
    self._options = {
      'schedule': drafter.schedule,
      'keep_nodes': keep,
      'has_draft_head': self._vocabulary is not None,
      'likely_nodes': drafter.likely_nodes,
    }
    return drafters.Loaded(
      fns(**self._options),
      proposer,
      transformer_fns.Params(model.base),
      fns(is_prompt=True),
      fns(),
    )

  def of_row(self, served: Served) -> Any:
    """Weights for a batch of one row."""
    return self._params(served.weights)

  def of_slots(
    self, shape: batch_sizes.Shape, served: Served, *, has_drafts: bool
  ) -> Any:
    """Weights for so many slots, the first ones.

    Args:
      shape: of the steps to come.
      served: the adapter of all rows, where its kind says that there is one.
      has_drafts: whether the steps draft.
    """
    size = shape.size
    if shape.kind != batch_sizes.SIDE_BY_SIDE:
      return self._shared(size, served, has_drafts)
    if size == len(self._held):
      return self._params(self._rows)
    if self._first is None or self._first[0] != size:
      self._first = None  # frees what it held
      self._first = size, adapters_lib.first(self._rows, size)
    return self._params(self._first[1])

  @property
  def copied_bytes(self) -> int:
    """Most that folded copies of the base take."""
    return 0 if self._solos is None else self._solos.most_bytes

  def _shared(self, size, served, has_drafts) -> transformer_fns.Params:
    """Weights that so many rows have in common."""
    assert self._solos is not None
    rows, is_base = served.weights, served.owner == 0
    found = self._solos.weights(served, rows.adapter, is_base=is_base)
    if not has_drafts:
      return transformer_fns.Params(*found)
    trees = adapters_lib.spread(rows.tree, size)
    extras = transformer_fns.StreamExtras(head=served.head, trees=trees)
    return transformer_fns.Params(*found, extras)

  def programs(self, *, has_plain: bool) -> batch_sizes.Solo:
    """For rows of one adapter; `has_plain` if some steps draft nothing."""
    if self._solos is None:
      return batch_sizes.Solo()
    return self._solos.programs(has_plain=has_plain)

  def _params(self, rows: RowWeights) -> transformer_fns.Params:
    head = () if self._vocabulary is None else self._vocabulary.head
    extras = transformer_fns.StreamExtras(head=head, trees=rows.tree)
    return transformer_fns.Params(self._model.base, rows.adapter, extras)

  def seat(self, served: Served, slot: int) -> None:
    """Makes a slot's weights those of an adapter."""
    if self._held[slot] is not served:
      self._rows = adapters_lib.put(self._rows, served.weights, np.int32(slot))
      self._held[slot], self._first = served, None

  def load(self, name: str, found: fitted.Fitted) -> None:
    """Serves one more adapter, or another one of that name.

    Raises:
      ValueError: it does not fit beside the others.
    """
    parts = _parts(found)
    self._structure.check_fits(name, parts)
    if self._vocabulary is not None and name != BASE:
      self._vocabulary.load(name, found, set(self.served))
    tree, num_drafts = self._tree(name, found)
    leaves = adapters_lib.leaves(self._built, self._structure, parts)
    has_streams = found.stream is not None
    drafter = self.setup.drafter
    is_drafting = (
      has_streams
      or not drafter.with_streams
      or isinstance(drafter, interface.Copier)
    )
    kind, head = batch_sizes.SIDE_BY_SIDE, ()
    if self._solos is not None:
      kind = self._solos.kind(name)
      head = self._solos.head(name, kind)
    self.served[name] = Served(
      name,
      eos.union(self._model.eos_ids, found.eos_ids),
      self._drafts and is_drafting,
      num_drafts,
      _put(self._model, RowWeights(leaves, tree)),
      0 if _spares_main(parts) else next(self._owners),
      kind,
      head,
    )

  def _tree(self, name: str, found: fitted.Fitted) -> tuple[Any, int]:
    """An adapter's own tree as a row has it, () for none; and its drafts."""
    room = self._room
    if room is None:
      return (), self.setup.drafter.size - 1
    if found.stream is None:
      return row_trees.nothing(room), room.cfg.size - 1
    asked = room.cfg if found.tree is None else found.tree
    tree = row_trees.fit(asked, room)
    if tree.size < asked.size or tree.max_depth < asked.max_depth:
      logging.warning(
        'adapter %r has a draft tree of %d nodes and depth %d, of which there '
        'is room for %d and %d; serve it from the start to have all of it',
        name,
        asked.size,
        asked.max_depth,
        tree.size,
        tree.max_depth,
      )
    return row_trees.as_arrays(tree, room), tree.size - 1

  def unload(self, name: str) -> None:
    """Serves an adapter no more; rows that have it go on.

    Raises:
      ValueError: there is no such adapter.
    """
    _check_known(name, self.served)
    del self.served[name]


Weights = Folded | SideBySide


def make(
  model: runtime.Model,
  cfg: serving.EngineConfig,
  drafter: drafting.DrafterConfig,
  adapters: Mapping[str, fitted.Fitted],
) -> Weights:
  """What serves a model, and adapters by name if there are or may be some.

  Raises:
    ValueError: the drafter cannot serve, an adapter does not fit, or the mesh
      splits rows.
  """
  is_alone = not adapters and not cfg.max_lora_rank
  accepted = _ALONE if is_alone else _BESIDE
  checks.one_of('the drafter of an engine', drafter.name, accepted)
  checks.check(
    drafter.output == 'lossless',
    f'the drafter has {drafter.output} output; an engine gives the tokens of '
    "plain decoding: take verifier='walk' and no synthetic_acceptance",
  )
  checks.check(
    model.partitioner.size('batch') == 1,
    f'the mesh is {dict(model.partitioner.mesh.shape)}; an engine splits a model '
    'by heads alone, take MeshConfig.tensor for all devices',
  )
  if model.streamed is not None:
    streamed_loading.check(drafter, model.partitioner.mesh.size)
  checks.check(
    BASE not in adapters, "an adapter cannot be named ''; give it a name"
  )
  if is_alone:
    return Folded(model, cfg, drafter)
  return SideBySide(model, cfg, drafter, adapters)


def _decode_config(cfg) -> config.DecodeConfig:
  return config.DecodeConfig(
    max_new_tokens=cfg.max_new_tokens,
    cache_length=cfg.cache_length,
    schedule=cfg.schedule,
  )


def _setup(made, cfg, drafter) -> interface.DecodeSetup:
  return interface.DecodeSetup(
    made.model,
    made.prompt_model,
    made.drafter,
    _decode_config(cfg),
    verifiers.make(drafter),
    made.chunk_model,
  )


def _streams(drafter, stream, adapters) -> streams.Streams:
  """The drafter of rows with streams of their own."""
  checks.check(
    stream is not None,
    f'drafter is {drafter.name!r} but no adapter brings streams; use '
    "'prompt_lookup' or 'none'",
  )
  checks.check(
    not drafter.ngram_table,
    'DrafterConfig.ngram_table is set; adapters side by side share none, leave '
    'it out',
  )
  trees = [one.tree for one in adapters.values() if one.stream and one.tree]
  trees = trees or [config.TreeConfig()]
  if drafter.name == 'mix':
    # The likeliest nodes of any adapter's tree, whatever shape it has alone.
    room = row_trees.room([drafter.tree] if drafter.tree else trees)
    room = room._replace(has_fixed=False)
    room.cfg.check_fits(stream)
    return streams.Streams(room.cfg, stream.num_streams, drafter, room=room)
  if drafter.tree is None and drafter.drafting == 'top_k':
    room = row_trees.room(trees)
    room.cfg.check_fits(stream)
    return streams.Streams(room.cfg, stream.num_streams, drafter, room=room)
  tree = drafter.tree or trees[0]
  tree.check_fits(stream)
  return streams.Streams(tree, stream.num_streams, drafter)


def _parts(found: fitted.Fitted) -> adapters_lib.Parts:
  """An adapter in the parts that rows are made of."""
  return adapters_lib.Parts(
    found.folded, found.folded_lora, found.stream, found.rest, found.lora
  )


def _spares_main(parts: adapters_lib.Parts) -> bool:
  """Whether main tokens are those of the base, as with lossless streams.

  Zeros do not spare anything from infinity.
  """
  own = parts.rest.values()
  return not parts.tuned_lora.rank and all(np.isfinite(x).all() for x in own)


def _put(model: runtime.Model, rows: Any) -> Any:
  """Weights of rows on the device, or whole on each of several."""
  part = model.partitioner
  return jax.device_put(rows, None if part.is_single else part.replicated)


def _check_known(name, served) -> None:
  known = sorted(set(served) - {BASE})
  checks.check(
    name in known,
    f'there is no adapter {name!r}; loaded: '
    + (', '.join(map(repr, known)) or 'none'),
  )
