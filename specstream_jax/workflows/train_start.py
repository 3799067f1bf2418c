# SPDX-License-Identifier: Apache-2.0
"""What a training run starts from: its recipe and the adapters it is given."""

import dataclasses
import os
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import adapters, eos, loading


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run starts from.

  Attributes:
    recipe: with the settings of the adapter it starts from.
    initial: flat weights of that adapter.
    folded: flat LoRA that is folded into the base.
    folded_lora: settings of it.
    origins: name and provenance of the adapters they are of.
  """

  recipe: Any
  initial: dict[str, Any] = dataclasses.field(default_factory=dict)
  folded: dict[str, Any] = dataclasses.field(default_factory=dict)
  folded_lora: config.LoraConfig = config.LoraConfig(rank=0)
  origins: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Where answers end that those adapters were trained on."""
    found = (o['provenance'] for o in self.origins.values() if o)
    ids = (values.get('eos_ids', []) for values in found)
    return eos.union(*(eos.check('eos_ids', value, None) for value in ids))


def start(
  init_adapter: str | None,
  fold_adapter: str | None,
  loaded: loading.LoadedModel,
  recipe: Any,
) -> Start:
  """The start of a run.

  Args:
    init_adapter: folder of the adapter to go on from; its settings hold, but for
      `coupling_rank`.
    fold_adapter: folder of a fine-tuned adapter whose LoRA is folded into the
      base.
    loaded: the base.
    recipe: `train.Recipe`.

  Raises:
    ValueError: an adapter of another base, or two that do not go together.
  """
  origins = {
    'init_adapter': _origin(init_adapter),
    'fold_adapter': _origin(fold_adapter),
  }
  begin = Start(recipe, origins=origins)
  if init_adapter:
    flat, cfg = adapters.load_adapter(init_adapter)
    adapters.check_base(cfg, loaded)
    adapters.check_weights(init_adapter, flat, cfg, loaded.config)
    stream = cfg.stream
    if recipe.stream.coupling_rank:
      stream = dataclasses.replace(
        stream,
        coupling_rank=recipe.stream.coupling_rank,
        coupling=recipe.stream.coupling,
      )
    recipe = dataclasses.replace(recipe, stream=stream, lora=cfg.lora)
    begin = dataclasses.replace(begin, recipe=recipe, initial=flat)
    if stream.mode == 'lossless':
      folded, folded_lora, rest = adapters.split(flat, cfg)
      begin = Start(recipe, rest, folded, folded_lora, origins)
  if not fold_adapter:
    return begin
  _check_fold(begin, fold_adapter)
  flat, cfg = adapters.load_adapter(fold_adapter)
  adapters.check_base(cfg, loaded)
  adapters.check_weights(fold_adapter, flat, cfg, loaded.config)
  folded, folded_lora, _ = adapters.split(flat, cfg)
  return dataclasses.replace(begin, folded=folded, folded_lora=folded_lora)


def _origin(folder):
  """Name and provenance of the adapter that a run started from, or None."""
  if not folder:
    return None
  name = os.path.basename(os.path.normpath(folder))
  provenance = adapters.load_adapter(folder)[1].provenance
  return {'name': name, 'provenance': provenance}


def _check_fold(begin, folder):
  """Raises ValueError unless LoRA of `folder` can be folded under this run."""
  mode = begin.recipe.stream.mode
  if mode != 'lossless':
    raise ValueError(
      f'--fold_adapter={folder} is for lossless streams, StreamConfig.mode is '
      f'{mode!r}: use --gin.StreamConfig.mode=lossless, or --init_adapter to go '
      'on with the LoRA itself'
    )
  if begin.folded:
    raise ValueError(
      'the adapter of --init_adapter brings the LoRA that its streams were '
      f'trained on; leave out --fold_adapter={folder}'
    )
  cfg = adapters.read_config(folder)
  if cfg.stream.mode != 'fine_tuned' or not cfg.lora.rank:
    raise ValueError(
      f'--fold_adapter={folder} holds no LoRA of the main stream (mode '
      f'{cfg.stream.mode!r}, rank {cfg.lora.rank}); give a fine-tuned adapter'
    )
