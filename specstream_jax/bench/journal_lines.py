# SPDX-License-Identifier: Apache-2.0
"""What the lines of a journal must hold to be used again."""

from collections.abc import Mapping
from typing import Any

from specstream_jax.checkpoints import fields

_ROWS = fields.lists(fields.COUNTS, 'lists of integers >= 0')
_SECONDS = fields.Kind(
  'a number >= 0', lambda value: fields.is_number(value) and value >= 0
)
_TIMED = {
  'tokens': _ROWS,
  'accept_lengths': _ROWS,
  'calls': fields.COUNTS,
  'prefill_seconds': _SECONDS,
  'decode_seconds': _SECONDS,
}
_COLD = {'batch': fields.COUNT, 'seconds': _SECONDS}
_ANSWER = {
  'prompt': fields.TEXT,
  'completion': fields.TEXT,
  'num_tokens': fields.COUNT,
  'finished': fields.BOOL,
}


def measurement(line: Mapping[str, Any]) -> str:
  """What makes a line no measured batch; empty if nothing does."""
  if 'seconds' in line:
    return _problem(line, _COLD)
  if found := _problem(line, _TIMED):
    return found
  sizes = [len(line[name]) for name in ('tokens', 'accept_lengths', 'calls')]
  if len(set(sizes)) > 1 or not sizes[0]:
    return f'tokens, accept_lengths and calls are of {sizes} rows'
  if 'compile_seconds' in line:
    return fields.problem('compile_seconds', line['compile_seconds'], _SECONDS)
  return ''


def answer(line: Mapping[str, Any]) -> str:
  """What makes a line no answer to a prompt; empty if nothing does."""
  return _problem(line, _ANSWER)


def _problem(line: Mapping[str, Any], kinds: Mapping[str, fields.Kind]) -> str:
  for name, kind in kinds.items():
    if name not in line:
      return f'it has no {name}; accepted: {kind.noun}'
    if found := fields.problem(name, line[name], kind):
      return found
  return ''
