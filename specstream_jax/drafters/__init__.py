# SPDX-License-Identifier: Apache-2.0
"""Drafters, one module each: what it loads, and what it then proposes.

A module has `load(model, cfg, decode) -> Loaded`, where `model` is a `Target`
(a `runtime.Model`), `cfg` a `DrafterConfig` and `decode` a `DecodeConfig`. It
raises ValueError if the drafter does not fit the model, or lacks its weights.

A drafter of your own is one file and a name:

  @dataclasses.dataclass(frozen=True)
  class MineConfig(config_drafting.DrafterConfig):
    weight: float = 0.5  # `mine:weight=0.3`

  class Mine: ...  # see `interface.Drafter`

  def load(model, cfg, decode):
    return drafters.beside(model, Mine(cfg.weight))

  drafters.register('mine', load, MineConfig)

An installed package makes the name known to the commands with an entry point
of the group 'specstream_jax.drafters': the name, and the module to import.
"""

from collections.abc import Callable

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.drafters import (
  dart,
  draft_model,
  lookahead,
  medusa,
  mix,
  none,
  prompt_lookup,
  streams,
)
from specstream_jax.drafters.loaded import (
  Loaded as Loaded,
  Target as Target,
  beside as beside,
)

Load = Callable[
  [Target, config_drafting.DrafterConfig, config.DecodeConfig], Loaded
]
_LOAD: dict[str, Load] = {
  'none': none.load,
  'streams': streams.load,
  'draft_model': draft_model.load,
  'medusa': medusa.load,
  'dart': dart.load,
  'prompt_lookup': prompt_lookup.load,
  'lookahead': lookahead.load,
  'mix': mix.load,
}


def register(
  name: str,
  load: Load,
  settings: type[config_drafting.DrafterConfig] = config_drafting.DrafterConfig,
) -> None:
  """Makes a drafter known by its name; once more, it is another.

  Args:
    name: as in `DrafterConfig.name`.
    load: see the module.
    settings: `DrafterConfig`, or a frozen dataclass that adds fields to it.

  Raises:
    ValueError: the name is one of `config.drafting.DRAFTERS`.
  """
  config_drafting.register(name, settings)
  _LOAD[name] = load


def load(
  model: Target,
  cfg: config_drafting.DrafterConfig,
  decode: config.DecodeConfig,
) -> Loaded:
  """The pieces of the decoder that `cfg` asks for.

  Raises:
    ValueError: the drafter does not fit the model, or its weights are missing.
  """
  return _LOAD[cfg.name](model, cfg, decode)
