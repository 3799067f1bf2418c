# SPDX-License-Identifier: Apache-2.0
"""Reads task files (CSV and JSONL, plain, gzip or zip) into pairs of texts.

A malformed row is an error that names file, line and what is wrong, or, on
request, is skipped and counted.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import csv
import dataclasses
import glob
import gzip
import io
import json
import lzma
import os
import re
import struct
from typing import IO, Any
import zipfile
import zlib

from absl import logging

from specstream_jax.checkpoints import chat_format, files

_SOURCE_KEYS = ('prompt', 'inputs')
_ANSWER_KEYS = ('completion', 'targets')
_IN_ZIP = '.zip/'
# Of files that are packed; RuntimeError: with a password, or in an unknown way.
_DAMAGED = (
  EOFError,
  RuntimeError,
  gzip.BadGzipFile,
  lzma.LZMAError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Raw rows of a file.

  Attributes:
    pairs: (source, answer) texts in file order.
    num_skipped: malformed rows left out.
  """

  pairs: tuple[tuple[str, str], ...]
  num_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt and every reference answer to it, as raw text."""

  inputs: str
  references: tuple[str, ...]


class _Collector:
  """Gathers rows; raises at a malformed one or counts it."""

  def __init__(self, path: str, skip_bad_rows: bool):
    self._path = path
    self._skip_bad_rows = skip_bad_rows
    self._pairs = []
    self._num_skipped = 0

  def add(self, source: str, answer: str) -> None:
    self._pairs.append((source, answer))

  def bad(self, line: int, problem: str) -> None:
    message = f'{self._path}:{line}: {problem}'
    if not self._skip_bad_rows:
      raise ValueError(
        f'{message}; correct the row, or leave it out with --skip_bad_rows '
        '(of `prepare` and `distill`)'
      )
    self._num_skipped += 1
    logging.warning('skipped %s', message)

  def rows(self) -> Rows:
    if not self._pairs:
      raise ValueError(f'{self._path} has no usable rows')
    if self._num_skipped:
      logging.warning(
        '%s: %d rows left out, %d read',
        *(self._path, self._num_skipped, len(self._pairs)),
      )
    return Rows(tuple(self._pairs), self._num_skipped)


@contextlib.contextmanager
def open_text(path: str) -> Iterator[IO[str]]:
  """Opens text, also of a .gz or in a .zip; bad bytes become U+FFFD.

  Raises:
    ValueError: the compressed file is damaged or cut short.
  """
  how: dict[str, Any] = {
    'encoding': 'utf-8-sig',
    'errors': 'replace',
    'newline': '',
  }
  archive, in_archive, member = path.rpartition(_IN_ZIP)
  with contextlib.ExitStack() as stack:
    try:
      if in_archive and os.path.isfile(archive + '.zip'):
        outer = stack.enter_context(zipfile.ZipFile(archive + '.zip'))
        file = io.TextIOWrapper(outer.open(member), **how)
      else:
        opener = gzip.open if path.endswith('.gz') else open
        file = opener(path, 'rt', **how)
      yield stack.enter_context(file)
    except _DAMAGED as error:
      raise ValueError(
        f'{path}: damaged or cut short ({error}); get the file again'
      ) from error
    except OSError as error:
      if error.filename is None:  # of what decompresses, not of the file
        raise ValueError(f'{path}: damaged ({error})') from error
      raise


def csv_rows(reader: Any) -> Iterator[tuple[int, list[str] | csv.Error]]:
  """Yields (line, fields), or (line, error) where the csv syntax breaks."""
  while True:
    line = reader.line_num + 1
    try:
      yield line, next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield line, error


def fields_problem(fields: list[str] | csv.Error, header: list[str]) -> str:
  """What is wrong with a CSV row; empty if nothing is."""
  if isinstance(fields, csv.Error):
    return f'not CSV: {fields}'
  if len(fields) != len(header):
    return (
      f'has {len(fields)} columns, the header has {len(header)} '
      f'({",".join(header)})'
    )
  return ''


def text_problem(texts: Mapping[str, object]) -> str:
  """What is wrong with the named texts of a row; empty if nothing is."""
  for name, text in texts.items():
    if not isinstance(text, str):
      return f'{name} is {type(text).__name__}, not text'
    if not text.strip():
      return f'{name} is empty'
    if '\ufffd' in text or not is_encodable(text):
      return f'{name} is not valid UTF-8; save the file as UTF-8'
  return ''


def is_encodable(text: str) -> bool:
  """Whether the text has no half of a surrogate pair, which JSON can hold."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True


def read_csv(
  path: str,
  *,
  source_column: str = 'mr',
  answer_column: str = 'ref',
  skip_bad_rows: bool = False,
) -> Rows:
  """Reads a CSV file with a header.

  Args:
    path: plain or .gz file.
    source_column: header name of the source text, case ignored.
    answer_column: header name of the answer, case ignored.
    skip_bad_rows: count malformed rows and leave them out.

  Raises:
    ValueError: a malformed row (file, line, problem), or no such columns.
  """
  collector = _Collector(path, skip_bad_rows)
  with open_text(path) as file:
    reader = csv.reader(file, strict=True)
    try:
      header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
      raise ValueError(f'{path}:1: header is not CSV: {error}') from error
    for column in (source_column, answer_column):
      if column not in header:
        raise ValueError(
          f'{path}:1: header is {",".join(header)!r}; it needs the columns '
          f'{source_column!r} and {answer_column!r}'
        )
    source, answer = header.index(source_column), header.index(answer_column)
    for line, fields in csv_rows(reader):
      if fields == []:
        continue
      problem = fields_problem(fields, header)
      if problem or isinstance(fields, csv.Error):
        collector.bad(line, problem)
        continue
      texts = fields[source], fields[answer]
      problem = text_problem(
        dict(zip((source_column, answer_column), texts, strict=True))
      )
      if problem:
        collector.bad(line, problem)
      else:
        collector.add(*(text.strip() for text in texts))
  return collector.rows()


def _pick(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
  return next((name for name in names if name in row), None)


def json_rows(
  path: str, file: IO[str]
) -> Iterator[tuple[int, dict[str, object] | str]]:
  """(line, object or what is wrong with it); of an array, (number, object)."""
  line = next(filter(str.strip, file), '')
  if line.lstrip().startswith('['):
    file.seek(0)
    try:
      rows = files.loads(file.read())
    except ValueError as error:
      raise ValueError(f'{path}: not a JSON array: {error}') from error
    yield from enumerate(map(_json_object, rows), start=1)
    return
  file.seek(0)
  for number, line in enumerate(file, start=1):
    if line.strip():
      yield number, _json_line(line)


def _json_line(line: str) -> dict[str, object] | str:
  """The JSON object of a line, or what is wrong with it."""
  try:
    return _json_object(files.loads(line))
  except ValueError as error:
    if isinstance(error, json.JSONDecodeError):
      return f'not JSON: {error.msg} at column {error.colno}'
    return f'not JSON: {error}'


def _json_object(row: object) -> dict[str, object] | str:
  if not isinstance(row, dict):
    return f'is a JSON {type(row).__name__}, not an object'
  return row


class CutAnswer(str):
  """An answer that stopped before its end, so that no EOS follows it."""

  __slots__ = ()


def json_pair(row: dict[str, Any]) -> tuple[str, str] | str:
  """The (source, answer) of a JSON object, or what is wrong with it.

  An answer whose row says `"finished": false` is a `CutAnswer`; a source whose
  row says `"chat": true` is a `chat_format.Text`.
  """
  texts = {}
  for accepted in (_SOURCE_KEYS, _ANSWER_KEYS):
    name = _pick(row, accepted)
    if name is None:
      return f'has no {" or ".join(map(repr, accepted))}, only {sorted(row)}'
    texts[name] = row[name]
  is_finished = row.get('finished', True)
  if not isinstance(is_finished, bool):
    return f'finished is {is_finished!r}, not true or false'
  problem = text_problem(texts)
  if problem:
    return problem
  source, answer = texts.values()
  if row.get('chat') is True:
    source = chat_format.Text(source)
  return source, answer if is_finished else CutAnswer(answer)


def sql_pair(row: dict[str, Any]) -> tuple[str, str] | str:
  """(tables and question, query) of a sql-create-context row, or a problem."""
  names = ('context', 'question', 'answer')
  missing = [name for name in names if name not in row]
  if missing:
    return f'has no {", ".join(missing)}, only {sorted(row)}'
  texts = {name: row[name] for name in names}
  problem = text_problem(texts)
  return problem or (f'{row["context"]}\n{row["question"]}', row['answer'])


def dialogue_pairs(row: dict[str, Any]) -> list[tuple[str, str]] | str:
  """(dialogue, summary) for each summary of a DialogSum row, or a problem.

  The authors' files call them `summary`, in the test set `summary1` to
  `summary3`.
  """
  names = [name for name in sorted(row) if re.fullmatch(r'summary\d*', name)]
  missing = [] if 'dialogue' in row else ['dialogue']
  missing += [] if names else ['summary']
  if missing:
    return f'has no {", ".join(missing)}, only {sorted(row)}'
  texts = {name: row[name] for name in ('dialogue', *names)}
  problem = text_problem(texts)
  if problem:
    return problem
  dialogue, *summaries = (text.strip() for text in texts.values())
  return [(dialogue, summary) for summary in summaries]


Pairs = tuple[str, str] | list[tuple[str, str]]


def read_jsonl(
  path: str,
  *,
  skip_bad_rows: bool = False,
  pair: Callable[[dict[str, object]], Pairs | str] = json_pair,
) -> Rows:
  """Reads lines `{"prompt": …, "completion": …}`, kept verbatim.

  `inputs` and `targets` are accepted as names too, and one JSON array of such
  objects in place of lines. `"finished": false` marks an answer that was cut,
  `"chat": true` a prompt that a chat template wrote, BOS included.

  Args:
    path: plain or .gz file.
    skip_bad_rows: count malformed rows and leave them out.
    pair: JSON object -> (source, answer), a list of such pairs, or what is
      wrong with it.

  Raises:
    ValueError: a malformed row (file, line, problem).
  """
  collector = _Collector(path, skip_bad_rows)
  with open_text(path) as file:
    for number, row in json_rows(path, file):
      texts = row if isinstance(row, str) else pair(row)
      if isinstance(texts, str):
        collector.bad(number, texts)
        continue
      for one in texts if isinstance(texts, list) else [texts]:
        collector.add(*one)
  return collector.rows()


def find_file(data_dir: str, names: tuple[str, ...]) -> str:
  """The first of `names`, plain or .gz, that exists in `data_dir`.

  If there is none, the first in a .zip of that folder, whichever folder of the
  archive it is in; its path is ARCHIVE.zip/MEMBER, which only readers open.

  Raises:
    ValueError: none exists; lists what was looked for and what is there.
  """
  if not os.path.isdir(data_dir):
    raise ValueError(f'data_dir {data_dir!r} is not a folder')
  for name in names:
    for suffix in ('', '.gz'):
      path = os.path.join(data_dir, name + suffix)
      if os.path.isfile(path):
        return path
  for archive in sorted(
    glob.glob(os.path.join(glob.escape(data_dir), '*.zip'))
  ):
    if found := _find_in_zip(archive, names):
      return found
  raise ValueError(
    f'data_dir {data_dir!r} has none of {", ".join(dict.fromkeys(names))} '
    '(plain, .gz or in a .zip); '
    f'it has: {", ".join(sorted(os.listdir(data_dir))[:20]) or "nothing"}'
  )


def _find_in_zip(archive, names):
  """ARCHIVE.zip/MEMBER of the first name that is in it, or ''."""
  if not zipfile.is_zipfile(archive):
    return ''
  try:
    with zipfile.ZipFile(archive) as file:
      members = {os.path.basename(name): name for name in file.namelist()}
  except _DAMAGED as error:
    raise ValueError(
      f'{archive}: damaged or cut short ({error}); get the file again'
    ) from error
  found = next((members[name] for name in names if name in members), '')
  return found and f'{archive}/{found}'


def group(pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, list[str]]]:
  """Collects the answers of equal sources, in order of first appearance.

  >>> group((('a', '1'), ('b', '2'), ('a', '3')))
  [('a', ['1', '3']), ('b', ['2'])]
  """
  answers = {}
  for source, answer in pairs:
    answers.setdefault(source, []).append(answer)
  return list(answers.items())
