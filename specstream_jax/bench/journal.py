# SPDX-License-Identifier: Apache-2.0
"""The raw measurements of a benchmark, one JSON line each, as they come.

Tables and plots are derived from it; a run that was stopped goes on after its
last whole line.
"""

from collections.abc import Callable, Mapping
import json
import os
from typing import Any

from specstream_jax.checkpoints import fields, files
from specstream_jax.outputs import writing

Key = tuple[Any, ...]
Problem = Callable[[Mapping[str, Any]], str]


class Journal:
  """Measurements under keys; what is there is not measured again."""

  def __init__(
    self,
    path: str,
    header: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool = False,
    problem: Problem | None = None,
  ):
    """Opens or starts the file.

    Args:
      path: JSONL file; its folder is made.
      header: what must agree for measurements to belong together.
      resume: keep what an earlier run with the same header wrote.
      overwrite: without `resume`, lose what an earlier run wrote.
      problem: what is wrong with a line of an earlier run, see `read`.

    Raises:
      ValueError: it cannot be written, an earlier run had another header or
        left what is no measurement, or there is one and neither `resume` nor
        `overwrite`.
    """
    self._path = path
    if not (resume or overwrite):
      _refuse_to_lose(path)
    lines = _whole_lines(path, header) if resume else []
    self._entries = _entries(path, lines, problem)
    text = [json.dumps(line) for line in lines or [header]]
    writing.write_text(path, ''.join(f'{line}\n' for line in text))

  def __contains__(self, key: Key) -> bool:
    return key in self._entries

  def __getitem__(self, key: Key) -> Mapping[str, Any]:
    return self._entries[key]

  def __len__(self) -> int:
    return len(self._entries)

  def add(self, key: Key, values: Mapping[str, Any]) -> None:
    """Appends one measurement; it is on disk when this returns.

    Raises:
      WriteError: the disk is full, for example.
    """
    line = {'key': list(key), **values}
    with (
      writing.readable(self._path),
      open(self._path, 'a', encoding='utf-8') as file,
    ):
      file.write(json.dumps(line) + '\n')
      file.flush()
      os.fsync(file.fileno())
    self._entries[key] = line


class Memory(dict[Key, Mapping[str, Any]]):
  """A journal without a file, of measurements that are read at once."""

  def add(self, key: Key, values: Mapping[str, Any]) -> None:
    """Keeps one measurement."""
    self[key] = values


def _refuse_to_lose(path: str) -> None:
  if os.path.isfile(path):
    with open(path, 'rb') as file:
      count = max(sum(1 for _ in file) - 1, 0)
    if count:
      raise ValueError(
        f'{path} holds {count} measurements; add --resume to go on, '
        '--overwrite to start anew, or give another folder'
      )


def read(
  path: str, header: Mapping[str, Any], problem: Problem | None = None
) -> dict[Key, Mapping[str, Any]]:
  """The measurements in a file; none if there is no file.

  Args:
    path: JSONL file.
    header: what must agree.
    problem: line -> what makes it no measurement, empty if nothing does.

  Raises:
    ValueError: it was written with another header, or holds something else.
  """
  return _entries(path, _whole_lines(path, header), problem)


def _entries(path, lines, problem) -> dict[Key, Mapping[str, Any]]:
  """The lines after the header, by key."""
  found = {}
  for number, line in enumerate(lines[1:], start=2):
    key = line.get('key')
    is_key = isinstance(key, list) and not any(
      isinstance(part, list | dict) for part in key
    )
    wrong = '' if is_key else f'key is {fields.shown(key)}; accepted: a list'
    wrong = wrong or (problem(line) if problem else '')
    if wrong:
      raise ValueError(
        f'{path}:{number}: {wrong}; remove the line, and it is measured again'
      )
    found[tuple(key)] = line
  return found


def _whole_lines(path: str, header: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The lines up to the first that a stop cut short."""
  if not os.path.isfile(path):
    return []
  lines = []
  with open(path, 'rb') as file:
    for text in file:
      try:
        line = files.loads(text.decode('utf-8'))
      except ValueError:
        break
      if not isinstance(line, dict):
        break
      lines.append(line)
  if not lines and os.path.getsize(path):
    raise ValueError(
      f'{path} does not begin with a JSON object, so no run wrote it; give '
      'another folder, or remove it'
    )
  header = json.loads(json.dumps(header))  # as it reads from disk
  if lines and lines[0] != header:
    raise ValueError(
      f'{path} was written with other settings: {_difference(lines[0], header)}'
      '; give another folder, or start anew without what is there'
    )
  return lines


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """Names and values that differ, within dicts too: `options.seed 0 -> 1`."""
  old, new = _leaves(old), _leaves(new)
  names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
  return ', '.join(
    f'{name} {str(old.get(name))[:80]!r} -> {str(new.get(name))[:80]!r}'
    for name in names
  )


def _leaves(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one, by dotted names."""
  flat = {}
  for name, value in values.items():
    nested = isinstance(value, Mapping)
    flat |= (
      _leaves(value, f'{prefix}{name}.') if nested else {prefix + name: value}
    )
  return flat
