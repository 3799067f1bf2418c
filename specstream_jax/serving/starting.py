# SPDX-License-Identifier: Apache-2.0
"""What an engine does before it takes requests: room, programs, times."""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
from typing import Any

import jax

from specstream_jax import memory, runtime
from specstream_jax.checkpoints import draft_vocabulary, fitted
from specstream_jax.config import drafting, serving
from specstream_jax.decoding import (
  batch_sizes,
  plain as plain_lib,
  slots,
  topology,
)
from specstream_jax.serving import admission, requests, scoring, weights
from specstream_jax.streaming import slots as streamed_slots
from specstream_jax.workflows import tune

# Functions that the large programs are made of, those of a pass of the model.
_LARGE = ('read_on', 'begin_row', 'run', 'run_plain')


def drafter(
  asked: str | drafting.DrafterConfig | None,
  model: runtime.Model,
  adapters: Mapping[str, fitted.Fitted],
) -> drafting.DrafterConfig:
  """All settings of the drafter; arguments as of `engine.Engine`.

  Where nobody asked, it is what was tuned for the one adapter that the model was
  loaded with; else streams, from their vocabularies if all have one.

  Raises:
    ValueError: a setting is unknown or out of range.
  """
  if asked is None:
    streams = model.stream or any(one.stream for one in adapters.values())
    asked = _streams(model, adapters) if streams else 'none'
    tuned = tune.find(model, 1)
    if tuned is not None:
      return drafting.parse(tuned.one_size, model.tree)
  if not isinstance(asked, str):
    return asked
  trees = (found.tree for found in adapters.values() if found.tree)
  tree = model.tree if model.stream else next(trees, model.tree)
  return drafting.parse(asked, tree)


def _streams(model, adapters) -> str:
  """Streams that draft from their tasks' tokens, if all know enough of them."""
  found = [one for one in adapters.values() if one.stream]
  pairs = [(one.folder, one.tree or model.tree) for one in found]
  pairs = pairs or [(model.adapter_dir, model.tree)]
  has_own = all(
    draft_vocabulary.num_tokens(folder) >= topology.width(tree)
    for folder, tree in pairs
  )
  return 'streams:vocabulary=adapter' if has_own else 'streams'


def with_tuned_tree(
  found: fitted.Fitted, model: runtime.Model
) -> fitted.Fitted:
  """An adapter with the tree that was tuned for it here, if one was.

  Args:
    found: the adapter.
    model: that serves it.

  Raises:
    ValueError: its tuning.json is damaged.
  """
  tuned = tune.find(model, 1, folder=found.folder) if found.stream else None
  if tuned is None:
    return found
  tree = drafting.parse(tuned.one_size, found.tree or model.tree).tree
  return dataclasses.replace(found, tree=tree or found.tree)


def with_tuned_trees(
  adapters: Mapping[str, fitted.Fitted], model: runtime.Model
) -> dict[str, fitted.Fitted]:
  """`with_tuned_tree` of each."""
  return {
    name: with_tuned_tree(found, model) for name, found in adapters.items()
  }


def make_decoder(
  made: weights.Weights,
  cfg: serving.EngineConfig,
  model: runtime.Model,
) -> slots.SlotDecoder:
  """The running batch, of which nothing is compiled yet.

  Args:
    made: what decodes in it.
    cfg: sizes.
    model: where weights lie.

  Raises:
    OutOfMemoryError: it does not fit.
  """
  most, plain = cfg.max_drafting_rows, None
  if made.setup.drafter.size > 1 and (most is None or most < cfg.num_slots):
    plain = plain_lib.without_drafts(made.setup)
  sizes = cfg.batch_sizes or batch_sizes.default(cfg.num_slots)
  options: dict[str, Any] = {
    'num_slots': cfg.num_slots,
    'chunk': cfg.chunk,
    'prefix_bytes': cfg.prefix_cache_mb * 10**6,
    'sizes': sizes[:-1],
    'plain': plain,
    'partitioner': model.partitioner,
  }
  if model.streamed is None:
    solo = made.programs(has_plain=plain is not None)
    decoder = slots.SlotDecoder(made.setup, solo=solo, **options)
  else:
    decoder = streamed_slots.StreamedSlots(
      made.setup, model.streamed, **options
    )
  _check_memory(decoder, made.copied_bytes)
  return decoder


def make_scorer(
  decoder: slots.SlotDecoder, model: runtime.Model
) -> scoring.Scorer:
  """What scores texts beside the running batch."""
  is_streamed = isinstance(decoder, streamed_slots.StreamedSlots)
  return scoring.Scorer(
    decoder.setup,
    chunk=decoder.chunk,
    partitioner=model.partitioner,
    read=decoder.read_chunk if is_streamed else None,
  )


def _check_memory(decoder: slots.SlotDecoder, copied: int) -> None:
  cfg, init = decoder.setup.cfg, decoder.setup.model.init_cache
  # With those that are read and scored, and those of the size that they come
  # from.
  num_rows = sum(decoder.sizes[-2:]) + 2
  cache = jax.eval_shape(lambda: init(num_rows, cfg.cache_length))
  shared = decoder.prefixes.most_bytes
  memory.check(
    f'the keys and values of {num_rows:,} slots of {cfg.cache_length:,} '
    f'positions, {memory.size(shared)} of shared prefixes and '
    f'{memory.size(copied)} of folded weights',
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    + shared
    + copied,
    'fewer slots, a smaller cache_length, batch_sizes of num_slots alone, a '
    'smaller prefix_cache_mb or max_folded, or bfloat16 need less',
  )


def warm_up(
  decoder: slots.SlotDecoder,
  made: weights.Weights,
  cfg: serving.EngineConfig,
  tell: Callable[[int, int], None],
) -> None:
  """Compiles everything, and times steps if drafts are to be weighed.

  Args:
    decoder: of which nothing is compiled yet.
    made: weights.
    cfg: sizes.
    tell: is told which of how many large programs compiles next.
  """
  numbers = itertools.count(1)
  total = 2 + decoder.num_steps

  def on_compile(name):
    if name in _LARGE:
      tell(next(numbers), total)

  decoder.on_compile = on_compile
  arrays = admission.as_arrays(
    requests.Request((0,)),
    most=cfg.max_new_tokens,
    ids=[],
    num_ids=cfg.max_end_ids,
    num_guessed=admission.room_to_guess(decoder.setup.drafter, cfg),
    has_drafts=True,
  )
  base = made.served[weights.BASE]
  examples = {served.kind: served for served in made.served.values()}
  decoder.warm_up(
    lambda shape, has_drafts: made.of_slots(
      shape, examples.get(shape.kind, base), has_drafts=has_drafts
    ),
    made.of_row(base),
    arrays,
    is_timed=cfg.max_drafting_rows is None,
  )
