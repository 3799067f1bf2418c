# SPDX-License-Identifier: Apache-2.0
"""What an engine does before it takes requests: room, programs, times."""

from collections.abc import Mapping
import os

import jax

from specstream_jax import memory, partitioning, runtime
from specstream_jax.checkpoints import draft_vocabulary, fitted
from specstream_jax.config import drafting, serving
from specstream_jax.decoding import batch_sizes, slots
from specstream_jax.serving import admission, requests, weights


def drafter(
  asked: str | drafting.DrafterConfig | None,
  model: runtime.Model,
  adapters: Mapping[str, fitted.Fitted],
) -> drafting.DrafterConfig:
  """All settings of the drafter; arguments as of `engine.Engine`.

  Raises:
    ValueError: a setting is unknown or out of range.
  """
  if asked is None:
    streams = model.stream or any(one.stream for one in adapters.values())
    asked = _streams(model, adapters) if streams else 'none'
  if not isinstance(asked, str):
    return asked
  trees = (found.tree for found in adapters.values() if found.tree)
  tree = model.tree if model.stream else next(trees, model.tree)
  return drafting.parse(asked, tree)


def _streams(model, adapters) -> str:
  """Streams that draft from their tasks' tokens, if all know them."""
  folders = [one.folder for one in adapters.values() if one.stream]
  folders = folders or [model.adapter_dir]
  has_own = all(
    folder and os.path.isfile(os.path.join(folder, draft_vocabulary.FILE))
    for folder in folders
  )
  return 'streams:vocabulary=adapter' if has_own else 'streams'


def make_decoder(
  made: weights.Weights,
  cfg: serving.EngineConfig,
  partitioner: partitioning.Partitioner,
) -> slots.SlotDecoder:
  """The running batch, of which nothing is compiled yet.

  Raises:
    OutOfMemoryError: it does not fit.
  """
  most, plain = cfg.max_drafting_rows, None
  if made.setup.drafter.size > 1 and (most is None or most < cfg.num_slots):
    plain = weights.without_drafts(made.setup)
  sizes = cfg.batch_sizes or batch_sizes.default(cfg.num_slots)
  decoder = slots.SlotDecoder(
    made.setup,
    num_slots=cfg.num_slots,
    chunk=cfg.chunk,
    prefix_bytes=cfg.prefix_cache_mb * 10**6,
    sizes=sizes[:-1],
    plain=plain,
    partitioner=partitioner,
  )
  _check_memory(decoder)
  return decoder


def _check_memory(decoder: slots.SlotDecoder) -> None:
  cfg, init = decoder.setup.cfg, decoder.setup.model.init_cache
  # With those that are read and scored, and those of the size that they come
  # from.
  num_rows = sum(decoder.sizes[-2:]) + 2
  cache = jax.eval_shape(lambda: init(num_rows, cfg.cache_length))
  shared = decoder.prefixes.most_bytes
  memory.check(
    f'the keys and values of {num_rows:,} slots of {cfg.cache_length:,} '
    f'positions and {memory.size(shared)} of shared prefixes',
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) + shared,
    'fewer slots, a smaller cache_length, batch_sizes of num_slots alone, a '
    'smaller prefix_cache_mb or bfloat16 need less',
  )


def warm_up(
  decoder: slots.SlotDecoder, made: weights.Weights, cfg: serving.EngineConfig
) -> None:
  """Compiles everything, and times steps if drafts are to be weighed."""
  arrays = admission.as_arrays(
    requests.Request((0,)),
    most=cfg.max_new_tokens,
    ids=[],
    num_ids=cfg.max_end_ids,
    has_drafts=True,
  )
  decoder.warm_up(
    made.of_slots,
    made.of_row(made.served[weights.BASE]),
    arrays,
    is_timed=cfg.max_drafting_rows is None,
  )
