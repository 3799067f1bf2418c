# SPDX-License-Identifier: Apache-2.0
"""RoPE in `config.json`, which transformers 4 and 5 spell differently.

Version 4 writes `rope_theta` and `rope_scaling`, version 5 one table,
`rope_parameters`; tools that convert leave both behind. A file is taken where
either version reads the same from it, and refused where its spellings
contradict each other.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields

TABLES = ('rope_scaling', 'rope_parameters')
FIELDS = ('rope_theta', *TABLES)
_DIVISORS = fields.lists(fields.POSITIVE, 'numbers above 0')
_INTEGER = fields.Kind(
  'an integer above 0',
  lambda value: fields.POSITIVE.fits(value) and value == int(value),
)
_NUMBER = fields.POSITIVE._replace(noun='a number above 0')
_KINDS = {
  'factor': _NUMBER,
  'low_freq_factor': _NUMBER,
  'high_freq_factor': _NUMBER,
  'original_max_position_embeddings': _INTEGER,
  'attention_factor': _NUMBER,
  'beta_fast': _NUMBER,
  'beta_slow': _NUMBER,
  'mscale': _NUMBER,
  'mscale_all_dim': _NUMBER,
  'truncate': fields.BOOL,
  'short_factor': _DIVISORS,
  'long_factor': _DIVISORS,
}
# Copied along by version 5 where it says nothing; version 4 lacks it.
_COPIED = 'original_max_position_embeddings'
# What each kind must say, and what it may.
_KEYS = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', _COPIED),
  'yarn': ('factor',),
  'longrope': ('short_factor', 'long_factor'),
}
_OPTIONAL = {
  'yarn': (
    _COPIED,
    'attention_factor',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
    'truncate',
  ),
  'longrope': (_COPIED, 'attention_factor', 'factor'),
}
_FRACTION = 'partial_rotary_factor'
_Table = dict[str, Any]


def type_problems(raw: Mapping[str, Any]) -> list[str]:
  """Fields that are no numbers or tables where such belong."""
  lines = [fields.problem('rope_theta', raw.get('rope_theta', 1.0), _NUMBER)]
  for name in TABLES:
    table = raw.get(name, {})
    if not isinstance(table, dict):
      lines.append(f'{name} is {table!r}; accepted: an object')
      continue
    for key in ('type', 'rope_type'):
      if table.get(key) is not None and not isinstance(table[key], str):
        lines.append(f'{name}.{key} is {table[key]!r}; accepted: a text')
    for key, kind in ({'rope_theta': _NUMBER} | _KINDS).items():
      if table.get(key) is not None:
        lines.append(fields.problem(f'{name}.{key}', table[key], kind))
  return list(filter(None, lines))


def lifted(raw: Mapping[str, Any]) -> dict[str, Any]:
  """config.json with `partial_rotary_factor` at the top, as version 4 has it.

  Version 5 keeps it in the table.
  """
  raw = dict(raw)
  for name in TABLES:
    table = raw.get(name)
    if not isinstance(table, dict):
      continue
    fraction = table.get(_FRACTION)
    # One that contradicts the top stays, and is refused.
    if fraction is not None and raw.get(_FRACTION) in (None, fraction):
      raw[_FRACTION] = fraction
      raw[name] = {k: v for k, v in table.items() if k != _FRACTION}
  return raw


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
  return float(theta), _READERS[kind](raw, values)


def _plain(kind: str, raw: Mapping[str, Any], values: _Table):
  if kind == 'dynamic':
    values = values | {_COPIED: raw['max_position_embeddings']}
  made: dict[str, Any] = {
    key: int(value) if key == _COPIED else float(value)
    for key, value in values.items()
  }
  return config.RopeScaling(kind, **made)


def _yarn(raw: Mapping[str, Any], values: _Table) -> config.RopeScaling:
  factor = float(values['factor'])
  spread = lambda scale: 0.1 * scale * math.log(max(factor, 1.0)) + 1.0
  scales = values.get('mscale'), values.get('mscale_all_dim')
  attention = spread(1.0)
  if all(scales):
    attention = spread(scales[0]) / spread(scales[1])
  return config.RopeScaling(
    'yarn',
    factor,
    original_max_position_embeddings=_original(raw, values),
    attention_factor=float(values.get('attention_factor', attention)),
    beta_fast=float(values.get('beta_fast', 32.0)),
    beta_slow=float(values.get('beta_slow', 1.0)),
    is_truncated=values.get('truncate', True),
  )


def _longrope(raw: Mapping[str, Any], values: _Table) -> config.RopeScaling:
  original = _original(raw, values)
  growth = values.get('factor', raw['max_position_embeddings'] / original)
  attention = 1.0
  if growth > 1.0:
    attention = math.sqrt(1 + math.log(growth) / math.log(original))
  return config.RopeScaling(
    'longrope',
    original_max_position_embeddings=original,
    attention_factor=float(values.get('attention_factor', attention)),
    divisors=tuple(map(float, values['short_factor'])),
    long_divisors=tuple(map(float, values['long_factor'])),
  )


def _original(raw: Mapping[str, Any], values: _Table) -> int:
  """Positions before stretching; Phi-3 says it beside the table."""
  beside = raw.get(_COPIED, values.get(_COPIED))
  return int(beside or raw['max_position_embeddings'])


_READERS: dict[str, Callable[..., config.RopeScaling]] = {
  **{
    kind: functools.partial(_plain, kind)
    for kind in ('default', 'linear', 'llama3', 'dynamic')
  },
  'yarn': _yarn,
  'longrope': _longrope,
}


def dump(scaling: config.RopeScaling) -> _Table | None:
  """`rope_scaling` as version 4 writes it; version 5 reads it as well."""
  kind = scaling.kind
  if kind == 'default':
    return None
  if kind == 'longrope':
    return {
      'rope_type': kind,
      'short_factor': list(scaling.divisors),
      'long_factor': list(scaling.long_divisors),
      'attention_factor': scaling.attention_factor,
      _COPIED: scaling.original_max_position_embeddings,
    }
  values = {key: getattr(scaling, key) for key in _KEYS[kind]}
  if kind == 'yarn':
    names = (_COPIED, 'attention_factor', 'beta_fast', 'beta_slow')
    values |= {key: getattr(scaling, key) for key in names}
    values['truncate'] = scaling.is_truncated
  return values | {'rope_type': kind}


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
  known = ('type', 'rope_type', 'rope_theta', *_settings(kind))
  lines = [
    f'{name}: missing RoPE {key}' for key in _KEYS[kind] if key not in table
  ]
  for key, value in table.items():
    if key not in (*known, _COPIED):
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
  values = {key: table[key] for key in _settings(kind) if key in table}
  is_none = kind == 'linear' and values['factor'] == 1.0
  return ('default', {}) if is_none else (kind, values)


def _settings(kind: str) -> tuple[str, ...]:
  return _KEYS[kind] + _OPTIONAL.get(kind, ())


def _words(scaling: tuple[str, _Table]) -> str:
  kind, values = scaling
  shown = lambda value: f'{value:g}' if fields.is_number(value) else str(value)
  return ' '.join([kind, *(f'{k} {shown(v)}' for k, v in values.items())])


def _chosen(tables: Mapping[str, _Table]) -> tuple[str, _Table]:
  """Of two tables that do not contradict each other, the one that scales."""
  return next((_scaling(table) for table in tables.values()), ('default', {}))
