# SPDX-License-Identifier: Apache-2.0
"""Rows as people have them: JSONL, JSON, CSV, Parquet, Hugging Face data sets.

A row is an object of its columns and the place it comes from. What is wrong
with a row is yielded in its stead, so that a reader can list all of them.
"""

from collections.abc import Iterator
import csv
import importlib
import os
import re
from typing import Any, NamedTuple

from specstream_jax.data import readers

_LINES = ('.jsonl', '.json', '.ndjson')
_TABLES = ('.csv', '.tsv')
_PARQUET = '.parquet'
SUFFIXES = (*_LINES, *_TABLES, _PARQUET)
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w.-]+')
# Of a folder that `datasets` wrote with `save_to_disk`.
_SAVED = ('dataset_dict.json', 'dataset_info.json')
_ACCEPTED = (
  'a file .jsonl, .json, .csv, .tsv (also .gz) or .parquet, a folder of such '
  'files, a folder that `datasets` saved, or the hub id OWNER/NAME of a data set'
)


class Row(NamedTuple):
  """A row of a file.

  Attributes:
    place: where it stands, such as `my.csv:17`.
    columns: its values by name.
    problem: what is wrong with it; empty if nothing is.
  """

  place: str
  columns: dict[str, Any]
  problem: str = ''


def read(source: str, *, split: str = 'train') -> Iterator[Row]:
  """Every row of a source, in its order.

  Args:
    source: a file, a folder, or a hub id.
    split: of a data set that has several; of a folder, the files that are
      called so, if there are any.

  Raises:
    ValueError: there is no such source, it cannot be read at all, or what reads
      it is not installed.
  """
  path = os.path.expanduser(source)
  if os.path.isfile(path):
    return _file(path)
  if os.path.isdir(path):
    is_saved = any(os.path.isfile(os.path.join(path, n)) for n in _SAVED)
    return (
      _data_set(path, split, on_hub=False) if is_saved else _folder(path, split)
    )
  if _HUB_ID.fullmatch(source) and not source.endswith(SUFFIXES):
    return _data_set(source, split, on_hub=True)
  raise ValueError(f'rows {source!r}: not found; accepted: {_ACCEPTED}')


def _folder(path: str, split: str) -> Iterator[Row]:
  names = sorted(n for n in os.listdir(path) if _suffix(n))
  own = [n for n in names if re.split(r'[.\-_]', n)[0] == split]
  if not names:
    raise ValueError(
      f'rows {path!r}: the folder has no file of rows; accepted: {_ACCEPTED}'
    )
  for name in own or names:
    yield from _file(os.path.join(path, name))


def _suffix(path: str) -> str:
  """The kind of a file by its name, '' if it is none of `SUFFIXES`."""
  plain = path.lower().removesuffix('.gz')
  return next((s for s in SUFFIXES if plain.endswith(s)), '')


def _file(path: str) -> Iterator[Row]:
  kind = _suffix(path)
  if kind in _LINES:
    return _json(path)
  if kind in _TABLES:
    return _csv(path, kind)
  if kind == _PARQUET:
    return _parquet(path)
  raise ValueError(
    f'rows {path!r}: the name does not say what it holds; accepted: {_ACCEPTED}'
  )


def _json(path: str) -> Iterator[Row]:
  with readers.open_text(path) as file:
    for line, row in readers.json_rows(path, file):
      place = f'{path}:{line}'
      if isinstance(row, str):
        yield Row(place, {}, row)
      else:
        yield Row(place, row)


def _csv(path: str, kind: str) -> Iterator[Row]:
  with readers.open_text(path) as file:
    first = file.readline()
    file.seek(0)
    delimiter = '\t' if kind == '.tsv' else ','
    if ',' not in first and ';' in first:  # what some spreadsheets write
      delimiter = ';'
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    try:
      header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
      raise ValueError(f'{path}:1: header is not CSV: {error}') from error
    if len(set(header)) < len(header) or not any(header):
      raise ValueError(
        f'{path}:1: header is {",".join(header)!r}; accepted: a name for each '
        'column, all different'
      )
    for line, values in readers.csv_rows(reader):
      if values == []:
        continue
      problem = readers.fields_problem(values, header)
      columns = {}
      if not (problem or isinstance(values, csv.Error)):
        columns = dict(zip(header, values, strict=True))
      yield Row(f'{path}:{line}', columns, problem)


def _parquet(path: str) -> Iterator[Row]:
  parquet = _module('pyarrow.parquet', 'parquet', 'Parquet files')
  arrow = _module('pyarrow', 'parquet', 'Parquet files')
  try:
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
      for columns in batch.to_pylist():
        number += 1
        yield Row(f'{path}:row {number}', columns)
  except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, OSError) as error:
    first = str(error).strip().splitlines()[0]
    raise ValueError(
      f'{path}: not a whole Parquet file ({first}); get the file again'
    ) from error


def _data_set(name: str, split: str, *, on_hub: bool) -> Iterator[Row]:
  """Rows of a data set on the hub, or of one that was saved to a folder."""
  datasets = _module('datasets', 'datasets', 'Hugging Face data sets')
  try:
    if on_hub:
      found = datasets.load_dataset(name, split=split)
    else:
      found = datasets.load_from_disk(name)
  except Exception as error:  # names, access, network: many unrelated classes
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    raise ValueError(
      f'rows {name!r}: cannot read the data set ({first}); give a split that it '
      'has with --split, or a file of rows'
    ) from error
  if isinstance(found, dict):
    if split not in found:
      raise ValueError(
        f'rows {name!r} has no split {split!r}; accepted: '
        f'--split={", --split=".join(found)}'
      )
    found = found[split]
  for number, columns in enumerate(found, start=1):
    yield Row(f'{name}:row {number}', dict(columns))


def _module(name: str, extra: str, what: str) -> Any:
  """A module of an extra."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f'{what} need {name.partition(".")[0]}; install the extra: pip install '
      f"'specstream-jax[{extra}]', or write the rows as .jsonl or .csv"
    ) from error
