# SPDX-License-Identifier: Apache-2.0
"""Golden files: written anew, or made again and compared with what is stored."""

import argparse
from collections.abc import Callable, Iterator, Mapping
import json
import math
import pathlib
import shutil
import sys
import tempfile

import numpy as np
from safetensors import numpy as safetensors_numpy

TOLERANCE = 1e-4  # of numbers that torch computed on another machine
# They name the version that saved a file, whatever it wrote.
_VERSIONS = ('transformers_version', 'peft_version')


def main(
  folder: pathlib.Path, writers: Mapping[str, Callable[[pathlib.Path], None]]
) -> None:
  """The command line of a script that writes golden files.

  Names choose folders; --check writes nothing, prints a line for every
  difference and ends with status 1 if there is one.

  Args:
    folder: of the golden files.
    writers: what writes a folder of it, by the folder's name.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument('names', nargs='*', help=f'of {", ".join(writers)}')
  parser.add_argument('--check', action='store_true', help='compare, not write')
  args = parser.parse_args()
  unknown = [name for name in args.names if name not in writers]
  if unknown:
    parser.error(f'{unknown[0]!r} is none of {", ".join(writers)}')
  names = args.names or list(writers)
  if args.check:
    sys.exit(check(folder, {name: writers[name] for name in names}))
  for name in names:
    shutil.rmtree(folder / name, ignore_errors=True)
    writers[name](folder / name)


def check(
  folder: pathlib.Path, writers: Mapping[str, Callable[[pathlib.Path], None]]
) -> int:
  """The status of --check."""
  lines = []
  with tempfile.TemporaryDirectory() as made:
    for name, write in writers.items():
      write(pathlib.Path(made) / name)
      lines += differences(folder / name, pathlib.Path(made) / name)
  for line in lines:
    print(line)
  print(f'{folder}: {len(lines)} differences in {len(writers)} folders')
  return int(bool(lines))


def differences(stored: pathlib.Path, made: pathlib.Path) -> Iterator[str]:
  """A line for all that is another in `made` than in `stored`."""
  names = {
    path.relative_to(root)
    for root in (stored, made)
    for path in root.rglob('*')
    if path.is_file()
  }
  for name in sorted(names):
    one, other = stored / name, made / name
    if not (one.is_file() and other.is_file()):
      kind = 'is stored, but not made' if one.is_file() else 'is not stored'
      yield f'{one}: {kind}'
    else:
      yield from (f'{one}{line}' for line in _in_file(one, other))


def _in_file(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
  if one.suffix == '.json':
    pair = (json.loads(path.read_text()) for path in (one, other))
    yield from _in_values(': ', *pair)
  elif one.suffix == '.safetensors':
    pair = (safetensors_numpy.load_file(path) for path in (one, other))
    yield from _in_values(': ', *pair)
  elif one.read_bytes() != other.read_bytes():
    yield ': other bytes'


def _in_values(place: str, one, other) -> Iterator[str]:
  """What differs within objects, lists, arrays and numbers."""
  if isinstance(one, dict) and isinstance(other, dict):
    for name in sorted({*one, *other} - {*_VERSIONS}):
      here = f'{place}{name} '
      if name not in one:
        yield f'{here}is made, but not stored'
      elif name not in other:
        yield f'{here}is stored, but not made'
      else:
        yield from _in_values(here, one[name], other[name])
  elif isinstance(one, np.ndarray):
    if (one.shape, one.dtype) != (other.shape, other.dtype):
      yield (
        f'{place}is {one.dtype}{list(one.shape)}, made '
        f'{other.dtype}{list(other.shape)}'
      )
    elif not np.allclose(one, other, rtol=0, atol=TOLERANCE, equal_nan=True):
      far = np.abs(one.astype(np.float64) - other).max()
      yield f'{place}differs by up to {far:.3g}'
  elif isinstance(one, list) and isinstance(other, list):
    if len(one) != len(other):
      yield f'{place}has {len(one)} items, made {len(other)}'
    else:
      for i, pair in enumerate(zip(one, other, strict=True)):
        yield from _in_values(f'{place}{i} ', *pair)
  elif not _is_same(one, other):
    yield f'{place}is {one!r}, made {other!r}'


def _is_same(one, other) -> bool:
  if isinstance(one, float) and isinstance(other, float):
    return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
  return type(one) is type(other) and one == other
