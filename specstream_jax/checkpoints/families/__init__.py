# SPDX-License-Identifier: Apache-2.0
"""Families of checkpoints: whose config.json and weights are understood."""

from collections.abc import Mapping
from typing import Any

from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import llama, mistral
from specstream_jax.checkpoints.families.family import Family as Family
from specstream_jax.checkpoints.families.stored import Stored as Stored

FAMILIES: tuple[Family, ...] = (llama.LLAMA, mistral.MISTRAL)
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
      f'{source} has architectures {fields.shown(names)}; accepted: one of '
      f'{", ".join(map(repr, _BY_ARCHITECTURE))}'
    )
  return found
