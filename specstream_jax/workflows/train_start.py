# SPDX-License-Identifier: Apache-2.0
"""What a training run starts from: its recipe and the adapters it is given."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import eos, fitted, loading


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
  initial: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  folded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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
      `coupling_rank`. A PEFT LoRA gets new streams and is trained further.
    fold_adapter: folder of a fine-tuned adapter, or of a PEFT LoRA, whose LoRA
      is folded into the base.
    loaded: the base.
    recipe: `train.Recipe`.

  Raises:
    ValueError: an adapter of another base, or two that do not go together.
  """
  begin = Start(recipe)
  origins: dict[str, Any] = {'init_adapter': None, 'fold_adapter': None}
  if init_adapter:
    begin, provenance = _go_on(init_adapter, loaded, recipe)
    origins['init_adapter'] = _origin(init_adapter, provenance)
  if fold_adapter:
    found = fitted.read(fold_adapter, loaded)
    _check_fold(begin, fold_adapter, found)
    origins['fold_adapter'] = _origin(fold_adapter, found.provenance)
    begin = dataclasses.replace(
      begin, folded=found.folded, folded_lora=found.folded_lora
    )
  return dataclasses.replace(begin, origins=origins)


def _go_on(folder, loaded, recipe) -> tuple[Start, Mapping[str, Any]]:
  """The start with the weights of an adapter, and its provenance."""
  found = fitted.read(folder, loaded)
  if found.stream is None:
    return _with_streams(folder, found, recipe), found.provenance
  stream = found.stream
  if recipe.stream.coupling_rank:
    stream = dataclasses.replace(
      stream,
      coupling_rank=recipe.stream.coupling_rank,
      coupling=recipe.stream.coupling,
    )
  recipe = dataclasses.replace(
    recipe, stream=stream, lora=found.lora or found.folded_lora
  )
  if stream.mode == 'lossless':
    begin = Start(recipe, found.rest, found.folded, found.folded_lora)
  else:
    begin = Start(recipe, {**found.folded, **found.rest})
  return begin, found.provenance


def _with_streams(folder, found, recipe) -> Start:
  """A plain LoRA that goes on with new streams, both of them trained."""
  mode = recipe.stream.mode
  if mode != 'fine_tuned':
    raise ValueError(
      f'--init_adapter={folder} is a plain LoRA, StreamConfig.mode is {mode!r}: '
      'use --fold_adapter to learn streams on top of it, or '
      '--gin.StreamConfig.mode=fine_tuned to train it further with them'
    )
  recipe = dataclasses.replace(recipe, lora=found.folded_lora)
  return Start(recipe, dict(found.folded))


def _origin(folder, provenance):
  """Name and provenance of an adapter that a run started from."""
  name = os.path.basename(os.path.normpath(folder))
  return {'name': name, 'provenance': dict(provenance)}


def _check_fold(begin, folder, found):
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
  mode = 'fine_tuned' if found.stream is None else found.stream.mode
  if mode != 'fine_tuned' or not found.folded_lora.rank:
    rank = (found.lora or found.folded_lora).rank
    raise ValueError(
      f'--fold_adapter={folder} holds no LoRA of the main stream (mode '
      f'{mode!r}, rank {rank}); give a fine-tuned adapter or a PEFT LoRA'
    )
