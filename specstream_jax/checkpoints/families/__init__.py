# SPDX-License-Identifier: Apache-2.0
"""Families of checkpoints: whose config.json and weights are understood."""

from collections.abc import Mapping
from typing import Any

from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import (
  gemma,
  gpt_neox,
  granite,
  llama,
  mistral,
  olmo,
  opt,
  phi,
  qwen,
  smollm3,
)
from specstream_jax.checkpoints.families.family import Family as Family
from specstream_jax.checkpoints.families.stored import Stored as Stored

FAMILIES: tuple[Family, ...] = (
  llama.LLAMA,
  mistral.MISTRAL,
  qwen.QWEN2,
  qwen.QWEN3,
  gemma.GEMMA,
  gemma.GEMMA2,
  gemma.GEMMA3,
  opt.OPT,
  opt.GPT2,
  phi.PHI,
  phi.PHI3,
  gpt_neox.GPT_NEOX,
  smollm3.SMOLLM3,
  olmo.OLMO2,
  granite.GRANITE,
)
# Fields, or parts of names, that give away models of other kinds.
_EXPERTS = ('num_experts', 'num_local_experts', 'n_routed_experts', 'moe')
_SENSES = (
  'vision_config',
  'audio_config',
  'ForConditionalGeneration',
  'ImageText',
  'MultiModal',
)
_STATES = ('ssm_cfg', 'state_size', 'mamba', 'rwkv', 'rglru', 'lru_width')
_BY_NAME = {one.name: one for one in FAMILIES}
_BY_ARCHITECTURE = {one.architecture: one for one in FAMILIES}
_BY_TYPE = {one.model_type: one for one in FAMILIES}


def by_name(name: str) -> Family:
  """The family of a `ModelConfig.family`.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in _BY_NAME:
    raise ValueError(
      f'ModelConfig.family is {name!r}; accepted: '
      f'{", ".join(map(repr, _BY_NAME))}'
    )
  return _BY_NAME[name]


def family_of(raw: Mapping[str, Any], source: str) -> Family:
  """The family of a config.json.

  Its `architectures` decide or, where there are none, its `model_type`.

  Args:
    raw: the JSON object.
    source: where it came from, for messages.

  Raises:
    ValueError: it is of no family that is understood; says what it is.
  """
  names, kind = raw.get('architectures') or [], raw.get('model_type')
  if names == [] and isinstance(kind, str) and kind in _BY_TYPE:
    return _BY_TYPE[kind]
  is_one = isinstance(names, list) and len(names) == 1
  found = _BY_ARCHITECTURE.get(str(names[0])) if is_one else None
  if found is None:
    raise ValueError(
      f'{source} has architectures {fields.shown(names)}'
      f'{_other_kind(raw, names)}; accepted: one of '
      f'{", ".join(map(repr, _BY_ARCHITECTURE))}'
    )
  return found


def _other_kind(raw: Mapping[str, Any], names: Any) -> str:
  """What a model is that is no dense decoder of text; empty if unknown."""
  said = ' '.join([*map(str, raw), str(names), str(raw.get('model_type'))])
  for signs, what in (
    (_SENSES, 'a multimodal model'),
    (_STATES, 'a model with state-space or recurrent layers'),
    (_EXPERTS, 'a mixture of experts'),
  ):
    if any(sign.lower() in said.lower() for sign in signs):
      return f', {what}, which this package does not run'
  return ''
