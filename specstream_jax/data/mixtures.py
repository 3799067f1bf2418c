# SPDX-License-Identifier: Apache-2.0
"""Several folders of records drawn from at given rates.

`records/e2e=2,records/sql=1` takes two examples of E2E for each of SQL, for as
long as training goes on; a small folder starts its next epoch sooner. A folder
with mixture.json says the same of the folders in it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from specstream_jax.checkpoints import fields, files
from specstream_jax.data import records
from specstream_jax.outputs import names

FILE = 'mixture.json'


@dataclasses.dataclass(frozen=True)
class Part:
  """A folder of records and how often it is drawn from, relative to others."""

  path: str
  rate: float = 1.0


def parse(text: str) -> tuple[Part, ...]:
  """The parts of `FOLDER` or `FOLDER=RATE,FOLDER=RATE,…`.

  A folder that exists is one, whatever is in its name.

  Raises:
    ValueError: a rate that is not a number above 0, a folder named twice, or a
      damaged mixture.json.
  """
  if os.path.isfile(os.path.join(text, FILE)):
    return _read(text)
  if not set('=,') & set(text) or os.path.isdir(text):
    return (Part(text),)
  parts = tuple(_part(piece.strip(), text) for piece in text.split(','))
  paths = [os.path.normpath(part.path) for part in parts]
  twice = sorted({path for path in paths if paths.count(path) > 1})
  if twice:
    raise ValueError(f'mixture {text!r} names {twice} more than once')
  return parts


def _part(piece: str, text: str) -> Part:
  path, equals, rate = piece.rpartition('=')
  try:
    value = float(rate) if equals and path else math.nan
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise ValueError(
      f'mixture {text!r}: {piece!r} has no rate above 0; write '
      'FOLDER=RATE,FOLDER=RATE and leave out what is not wanted'
    )
  return Part(path, value)


def write(folder: str, name: str, rates: Mapping[str, float]) -> dict[str, Any]:
  """Makes a folder of several records a mixture of them.

  Args:
    folder: that holds them.
    name: of the mixture.
    rates: by the name of each folder in it.

  Returns:
    What the file says.
  """
  said = {'task': name, 'rates': dict(rates)}
  files.write_json(os.path.join(folder, FILE), said)
  return said


def _read(folder: str) -> tuple[Part, ...]:
  """The parts that a folder's mixture.json names."""
  path = os.path.join(folder, FILE)
  rates = fields.get(files.read_json(path), 'rates', fields.OBJECT, path)
  for name, rate in rates.items():
    names.check(f'{path}: a folder', name)
    if not fields.NUMBER.fits(rate) or not 0 < rate < math.inf:
      raise ValueError(
        f'{path}: the rate of {name!r} is {rate!r}; accepted: > 0'
      )
  if not rates:
    raise ValueError(f'{path} names no folders; prepare the records again')
  return tuple(
    Part(os.path.join(folder, name), float(rate))
    for name, rate in rates.items()
  )


def manifests(text: str) -> list[dict[str, Any]]:
  """The manifest of every part."""
  return [records.read_manifest(part.path) for part in parse(text)]


def describe(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What training says of several manifests.

  Returns:
    Task names, number of examples, and whether all prompts are chats.
  """
  return {
    'task': '+'.join(str(manifest.get('task')) for manifest in found),
    'num_examples': sum(manifest['num_examples'] for manifest in found),
    'is_chat': all(manifest.get('is_chat', False) for manifest in found),
  }
