# SPDX-License-Identifier: Apache-2.0
"""Which drafter was fastest, by machine, number type and rows per call.

`specstream tune` writes tuning.json into an adapter's folder; for an adapter
that ships, or another folder that cannot be written, it goes to the cache.
Commands that are told no drafter take theirs from there.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fetch, fields, files, shipped
from specstream_jax.config import drafting as config_drafting

FILE = 'tuning.json'
FORMAT = 'specstream tuning 1'


@dataclasses.dataclass(frozen=True)
class Place:
  """What a time is true of.

  Attributes:
    machine: in words, see `bench.machine.describe`.
    jax: its version.
    dtype: of weights and activations.
    batch: rows per call, see `bucket`.
  """

  machine: str
  jax: str
  dtype: str
  batch: int


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What is fastest there.

  Attributes:
    place: where.
    drafter: as `config.drafting.parse` reads it; 'none' where no drafts pay.
    schedule: of the streams.
    speedup: measured against plain decoding.
    task: whose prompts it was measured on.
    fixed: the fastest drafter of streams alone whose calls all verify the same
      tree, where `drafter` has budgets or copies; empty where it has neither.
  """

  place: Place
  drafter: str
  schedule: str
  speedup: float
  task: str
  fixed: str = ''

  @property
  def one_size(self) -> str:
    """The drafter for those who choose by other means when to draft."""
    return self.fixed or self.drafter


_KINDS = {
  'machine': fields.TEXT,
  'jax': fields.TEXT,
  'dtype': fields.TEXT,
  'batch': fields.SIZE,
  'drafter': fields.TEXT,
  'schedule': fields.Kind(
    ' or '.join(map(repr, config.SCHEDULES)),
    lambda value: value in config.SCHEDULES,
  ),
  'speedup': fields.POSITIVE,
  'task': fields.TEXT,
}


def bucket(num_rows: int) -> int:
  """The power of two that so many rows are tuned as."""
  return 1 << max(num_rows - 1, 0).bit_length()


def path(adapter_dir: str) -> str:
  """Where the file of an adapter is: beside it, or in the cache."""
  folder = pathlib.Path(adapter_dir).resolve()
  is_shipped = shipped.FOLDER.resolve() in folder.parents
  if not is_shipped and os.access(folder, os.W_OK):
    return str(folder / FILE)
  digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
  name = f'{folder.name}-{digest}.json'
  return str(fetch.cache_folder() / 'tuning' / name)


def is_there(adapter_dir: str) -> bool:
  """Whether anything was tuned for an adapter, here or elsewhere."""
  return os.path.isfile(path(adapter_dir))


def find(adapter_dir: str, place: Place) -> Tuned | None:
  """What was tuned for a place; None if nothing was.

  Raises:
    ValueError: the file is no such file.
  """
  where = path(adapter_dir)
  try:
    written = os.stat(where).st_mtime_ns
  except OSError:
    return None
  return _read(where, written).get(place)


def keep(adapter_dir: str, tuned: Tuned) -> str:
  """Adds to the file, in place of what was tuned for the same place.

  Returns:
    The path of the file.

  Raises:
    ValueError: what is there is no such file, or it cannot be written.
  """
  where = path(adapter_dir)
  known = {}
  if os.path.exists(where):
    known = _read(where, os.stat(where).st_mtime_ns)
  known = {**known, tuned.place: tuned}
  value = {'format': FORMAT, 'tuned': [_to_json(one) for one in known.values()]}
  text = json.dumps(value, indent=2) + '\n'
  folder, name = os.path.split(where)
  os.makedirs(folder, exist_ok=True)
  files.write_all(folder, {name: lambda path: files.write_text(path, text)})
  return where


@functools.lru_cache(maxsize=32)
def _read(where: str, written: int) -> Mapping[Place, Tuned]:
  """All of a file; a file that was written anew is read anew."""
  del written
  value = files.read_json(where, 'remove it, and tune again')
  entries = value.get('tuned') if isinstance(value, dict) else None
  if not isinstance(entries, list) or value.get('format') != FORMAT:
    raise ValueError(
      f'{where} is not of the format {FORMAT!r}; remove it, and tune again'
    )
  found = {}
  for number, entry in enumerate(entries, start=1):
    tuned = _from_json(entry, f'{where}, entry {number}')
    found[tuned.place] = tuned
  return found


def _to_json(tuned: Tuned) -> dict[str, Any]:
  value = dataclasses.asdict(tuned)
  return value.pop('place') | value


def _from_json(entry: Any, where: str) -> Tuned:
  if not isinstance(entry, dict):
    raise ValueError(f'{where} is no object; remove the file, and tune again')
  for name, kind in _KINDS.items():
    wrong = fields.problem(name, entry.get(name), kind)
    if wrong:
      raise ValueError(f'{where}: {wrong}; remove the file, and tune again')
  fixed = entry.get('fixed', '')
  wrong = fields.problem('fixed', fixed, fields.TEXT)
  if wrong:
    raise ValueError(f'{where}: {wrong}; remove the file, and tune again')
  for name in filter(None, (entry['drafter'], fixed)):
    try:
      config_drafting.parse(name)
    except ValueError as error:
      raise ValueError(
        f'{where}: {error}; or remove the file, and tune again'
      ) from error
  own = {name: entry[name] for name in _KINDS}
  place = Place(
    *(own.pop(name) for name in ('machine', 'jax', 'dtype', 'batch'))
  )
  return Tuned(place, **own, fixed=fixed)
