# SPDX-License-Identifier: Apache-2.0
"""Which model a drafter's weights were trained on, and whether this is it."""

from typing import Protocol

from specstream_jax import arrays, config
from specstream_jax.checkpoints import weights


class TrainedOn(Protocol):
  """What the config of such weights says of their model.

  Attributes:
    base_model_id: name of the base, for people.
    base_config_hash: `weights.config_hash` of the base.
    base_fingerprints: `weights.fingerprint` of the model that decodes, the
      base with the adapter's LoRA folded in: one for each dtype it may be
      loaded in, as folding rounds.
    adapter: name of that adapter, for people; empty without.
  """

  @property
  def base_model_id(self) -> str: ...
  @property
  def base_config_hash(self) -> str: ...
  @property
  def base_fingerprints(self) -> tuple[str, ...]: ...
  @property
  def adapter(self) -> str: ...


def check(
  what: str, cfg: TrainedOn, base: arrays.Params, model: config.ModelConfig
) -> None:
  """Raises ValueError unless the weights were trained on this model.

  Args:
    what: they are, in the plural.
    cfg: of the weights.
    base: flat weights of the model that decodes, kernels as [in, out].
    model: its sizes.
  """
  if cfg.base_config_hash != weights.config_hash(model):
    difference = 'other sizes or constants'
  elif weights.fingerprint(base) not in cfg.base_fingerprints:
    difference = 'the same sizes but other weights'
  else:
    return
  trained_on = repr(cfg.base_model_id)
  if cfg.adapter:
    trained_on += f' with adapter {cfg.adapter!r}'
  raise ValueError(
    f'{what} were trained on {trained_on}, but the model has {difference}; '
    f'load {trained_on}, or train some on this model'
  )
