# SPDX-License-Identifier: Apache-2.0
"""RoPE in `config.json`, which transformers 4 and 5 spell differently.

Version 4 writes `rope_theta` and `rope_scaling`, version 5 one table,
`rope_parameters`; tools that convert leave both behind. A file is taken where
either version reads the same from it, and refused where its spellings
contradict each other.
"""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields

TABLES = ('rope_scaling', 'rope_parameters')
FIELDS = ('rope_theta', *TABLES)
_TYPES = {
  'factor': float,
  'low_freq_factor': float,
  'high_freq_factor': float,
  'original_max_position_embeddings': int,
}
_KEYS = {'default': (), 'linear': ('factor',), 'llama3': tuple(_TYPES)}
# Copied along by version 5; only llama3 reads it.
_COPIED = 'original_max_position_embeddings'
_Table = dict[str, Any]


def type_problems(raw: Mapping[str, Any]) -> list[str]:
  """Fields that are no numbers or tables where such belong."""
  lines = _number_problem('rope_theta', raw.get('rope_theta', 1.0))
  for name in TABLES:
    table = raw.get(name, {})
    if not isinstance(table, dict):
      lines.append(f'{name} is {table!r}; accepted: an object')
      continue
    for key in ('type', 'rope_type'):
      if table.get(key) is not None and not isinstance(table[key], str):
        lines.append(f'{name}.{key} is {table[key]!r}; accepted: a text')
    for key in ('rope_theta', *_TYPES):
      if table.get(key) is not None:
        lines += _number_problem(f'{name}.{key}', table[key], _TYPES.get(key))
  return lines


def _number_problem(name: str, value: Any, kind: type | None = None):
  is_good = fields.POSITIVE.fits(value)
  if kind is int:
    is_good = is_good and value == int(value)
  noun = 'an integer above 0' if kind is int else 'a number above 0'
  return (
    [] if is_good else [f'{name} is {fields.shown(value)}; accepted: {noun}']
  )


def problems(raw: Mapping[str, Any], default_theta: float | None) -> list[str]:
  """What is not understood, or is said twice and differently.

  Args:
    raw: config.json without `type_problems`.
    default_theta: of a file that names none; None without RoPE.
  """
  tables = _tables(raw)
  lines = []
  for name, table in tables.items():
    lines += _table_problems(name, table)
  if lines:
    return lines
  return _theta_problems(raw, tables, default_theta) + _contradictions(tables)


def read(
  raw: Mapping[str, Any], default_theta: float
) -> tuple[float, config.RopeScaling]:
  """θ and how frequencies are stretched, of a file without `problems`.

  Raises:
    ValueError: numbers that do not go together.
  """
  tables = _tables(raw)
  thetas = _thetas(raw, tables)
  theta = next(iter(thetas.values()), default_theta)
  kind, values = _chosen(tables)
  return float(theta), config.RopeScaling(
    kind, **{key: _TYPES[key](values[key]) for key in _KEYS[kind]}
  )


def dump(scaling: config.RopeScaling) -> _Table | None:
  """`rope_scaling` as version 4 writes it; version 5 reads it as well."""
  if scaling.kind == 'default':
    return None
  values = {key: getattr(scaling, key) for key in _KEYS[scaling.kind]}
  return values | {'rope_type': scaling.kind}


def _tables(raw) -> dict[str, _Table]:
  """Both tables without nulls, those that are there and not empty."""
  found = {name: raw.get(name) or {} for name in TABLES}
  clean = {
    name: {key: value for key, value in table.items() if value is not None}
    for name, table in found.items()
  }
  return {name: table for name, table in clean.items() if table}


def _kind(table: _Table) -> str:
  return table.get('rope_type', table.get('type', 'default'))


def _table_problems(name: str, table: _Table) -> list[str]:
  """Settings of one table that are missing or not understood."""
  kind = _kind(table)
  if table.get('type', kind) != kind:
    return [
      f'{name} has type {table["type"]!r} and rope_type {kind!r}; accepted: '
      'one of them, or the same twice'
    ]
  if kind not in _KEYS:
    accepted = ', '.join(map(repr, _KEYS))
    return [f'{name}: rope_type is {kind!r}; accepted: {accepted}']
  known = ('type', 'rope_type', 'rope_theta', *_KEYS[kind])
  lines = [
    f'{name}: missing RoPE {key}' for key in _KEYS[kind] if key not in table
  ]
  for key, value in table.items():
    is_neutral = key == 'partial_rotary_factor' and value == 1.0
    if key not in (*known, _COPIED) and not is_neutral:
      lines.append(f'{name}: RoPE {key} = {value!r} is not understood')
  return lines


def _thetas(raw, tables: Mapping[str, _Table]) -> dict[str, float]:
  """θ by the place that says it."""
  places = {'rope_theta': raw.get('rope_theta')} | {
    f'{name}.rope_theta': table.get('rope_theta')
    for name, table in tables.items()
  }
  return {place: theta for place, theta in places.items() if theta is not None}


def _theta_problems(
  raw, tables: Mapping[str, _Table], default_theta
) -> list[str]:
  """θ that depends on which spelling a program reads."""
  thetas = _thetas(raw, tables)
  # Of two tables a program reads `rope_scaling`, and what that leaves out at
  # the top.
  own = ('rope_theta', 'rope_scaling.rope_theta')
  if len(tables) > 1 and thetas and not any(place in thetas for place in own):
    thetas['rope_theta (left out)'] = default_theta
  if len(set(thetas.values())) < 2:
    return []
  said = ', '.join(f'{place} = {theta:g}' for place, theta in thetas.items())
  return [f'{said}; accepted: the same value in all of them']


def _contradictions(tables: Mapping[str, _Table]) -> list[str]:
  """Scaling that depends on which of two tables a program reads."""
  if len(tables) < 2:
    return []
  scaling, parameters = (_scaling(tables[name]) for name in TABLES)
  if scaling == parameters or parameters[0] == 'default':
    return []
  return [
    'rope_scaling and rope_parameters ask for different scalings, '
    f'{_words(scaling)} and {_words(parameters)}; accepted: one of the two '
    'tables, or the same in both'
  ]


def _scaling(table: _Table) -> tuple[str, _Table]:
  """(kind, the settings that it reads); a linear factor of 1 is no scaling."""
  kind = _kind(table)
  values = {key: table[key] for key in _KEYS[kind]}
  is_none = kind == 'linear' and values['factor'] == 1.0
  return ('default', {}) if is_none else (kind, values)


def _words(scaling: tuple[str, _Table]) -> str:
  kind, values = scaling
  return ' '.join([kind, *(f'{k} {v:g}' for k, v in values.items())])


def _chosen(tables: Mapping[str, _Table]) -> tuple[str, _Table]:
  """Of two tables that do not contradict each other, the one that scales."""
  return next((_scaling(table) for table in tables.values()), ('default', {}))
