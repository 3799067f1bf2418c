# SPDX-License-Identifier: Apache-2.0
"""The part of JSON Schema that results_schema.json uses, without a dependency.

Types, const, required, properties, additionalProperties, items, minItems,
maxItems, minimum, maximum, and $ref into $defs.
"""

from collections.abc import Iterator, Mapping
import functools
import json
import math
import pathlib
from typing import Any

from specstream_jax.checkpoints import fields

Schema = Mapping[str, Any]

_PATH = pathlib.Path(__file__).with_name('results_schema.json')
_TYPES = {
  'object': dict,
  'array': list,
  'string': str,
  'number': (int, float),
  'integer': int,
  'boolean': bool,
  'null': type(None),
}


@functools.cache
def load() -> Schema:
  """The schema of results.json."""
  return json.loads(_PATH.read_text(encoding='utf-8'))


def check(value: Any) -> None:
  """Raises ValueError, naming place and value, unless `value` fits `load()`."""
  for error in _errors(value, load(), 'results'):
    raise ValueError(f'{error} (schema: {_PATH.name})')


def _errors(value: Any, schema: Schema, place: str) -> Iterator[str]:
  if '$ref' in schema:
    schema = load()['$defs'][schema['$ref'].rpartition('/')[2]]
  if 'const' in schema and value != schema['const']:
    yield f'{place} is {fields.shown(value)}; accepted: {schema["const"]!r}'
  types = schema.get('type', ())
  types = [types] if isinstance(types, str) else types
  if types and not any(_is(value, name) for name in types):
    yield f'{place} is {fields.shown(value)}; accepted: {" or ".join(types)}'
    return
  if isinstance(value, dict):
    yield from _object_errors(value, schema, place)
  elif isinstance(value, list):
    yield from _array_errors(value, schema, place)
  elif _is(value, 'number'):
    yield from _number_errors(value, schema, place)


def _is(value: Any, name: str) -> bool:
  """Whether `value` is of the type; a bool is no number here."""
  return isinstance(value, _TYPES[name]) and (
    name == 'boolean' or not isinstance(value, bool)
  )


def _object_errors(value, schema, place):
  missing = [key for key in schema.get('required', ()) if key not in value]
  if missing:
    yield f'{place} has no {missing}; required: {schema["required"]}'
  properties = schema.get('properties', {})
  extra = schema.get('additionalProperties', {})
  for key, item in value.items():
    inner = properties.get(key, extra)
    if inner is False:
      yield f'{place} has {key!r}; accepted: {sorted(properties)}'
    else:
      yield from _errors(item, inner, f'{place}.{key}')


def _array_errors(value, schema, place):
  least, most = schema.get('minItems', 0), schema.get('maxItems', math.inf)
  if not least <= len(value) <= most:
    yield f'{place} has {len(value)} items; accepted: {least} to {most}'
  for i, item in enumerate(value):
    yield from _errors(item, schema.get('items', {}), f'{place}[{i}]')


def _number_errors(value, schema, place):
  least = schema.get('minimum', -math.inf)
  most = schema.get('maximum', math.inf)
  if not (fields.is_number(value) and least <= value <= most):
    yield (
      f'{place} is {fields.shown(value)}; accepted: a finite number from '
      f'{least} to {most}'
    )
