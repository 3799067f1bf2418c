# SPDX-License-Identifier: Apache-2.0
"""Rows of JSONL that hold a prompt or a chat, with whatever else is in them."""

from collections.abc import Mapping
import os
from typing import Any

from specstream_jax.data import readers

_NAMES = ('prompt', 'inputs')


def read(path: str) -> list[dict[str, Any]]:
  """The rows, each with a text under "prompt" or "inputs" or a chat under
  "messages", which "tools" may go with.

  Args:
    path: plain or .gz file of JSON lines, or of one JSON array.

  Raises:
    ValueError: no such file or row, or a malformed one (file, line, problem).
  """
  if not os.path.isfile(path):
    raise ValueError(f'{path}: no such file')
  rows = []
  with readers.open_text(path) as file:
    for number, row in readers.json_rows(path, file):
      problem = row if isinstance(row, str) else _problem(row)
      if problem:
        raise ValueError(f'{path}:{number}: {problem}')
      rows.append(row)
  if not rows:
    raise ValueError(f'{path} has no rows')
  return rows


def _problem(row: Mapping[str, Any]) -> str:
  """What is wrong with a row; empty if nothing is."""
  if 'messages' in row:
    return _chat_problem(row)
  name = next((name for name in _NAMES if name in row), None)
  if name is None:
    return f"has no 'prompt', 'inputs' or 'messages', only {sorted(row)}"
  return readers.text_problem({name: row[name]})


def _chat_problem(row: Mapping[str, Any]) -> str:
  for name in ('messages', 'tools'):
    items = row.get(name)
    is_list = isinstance(items, list) and all(
      isinstance(item, dict) for item in items
    )
    if not is_list and (name == 'messages' or items is not None):
      return f'{name} is {str(items)[:60]!r}, not a list of objects'
  return '' if row['messages'] else 'messages is empty'
