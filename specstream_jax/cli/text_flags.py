# SPDX-License-Identifier: Apache-2.0
"""Texts from the command line and from files of lines, by one rule.

A text is taken as it is typed. With --escapes, a backslash begins an escape in
--prompt, --stop and the lines of --prompt_file: \\n, \\r, \\t, \\\\, and \\uXXXX.
"""

import codecs
from collections.abc import Sequence
import re
import sys

from absl import flags

from specstream_jax.config import checks

_ESCAPES = {'n': '\n', 'r': '\r', 't': '\t', '\\': '\\'}
_ESCAPE = re.compile(r'\\(u[0-9A-Fa-f]{4}|.|$)', re.DOTALL)


def define() -> None:
  """Declares --escapes, which `text` reads."""
  flags.DEFINE_bool(
    'escapes',
    None,
    'Read \\n, \\r, \\t, \\\\ and \\uXXXX in --prompt, --stop and the lines of '
    '--prompt_file; without, every text is taken as it is typed.',
  )


def text(value: str, place: str) -> str:
  """The text that a user typed, escapes read if --escapes asks for it.

  Args:
    value: as it was typed.
    place: the flag, or file and line.

  Raises:
    ValueError: an unknown escape, or bytes that are not UTF-8.
  """
  checks.text(place, value)
  if not flags.FLAGS.escapes:
    return value

  def read(match):
    name = match[1]
    if name[:1] == 'u' and len(name) == 5:
      return chr(int(name[1:], 16))
    if name not in _ESCAPES:
      raise ValueError(
        f'{place} holds {match[0]}, which is no escape; accepted: \\n, \\r, '
        '\\t, \\\\, \\uXXXX; leave out --escapes to take it as it is'
      )
    return _ESCAPES[name]

  spelled = _ESCAPE.sub(read, value)
  try:
    # Two escapes may spell a character beyond \uFFFF.
    return spelled.encode('utf-16', 'surrogatepass').decode('utf-16')
  except UnicodeDecodeError:
    raise ValueError(
      f'{place} spells half of a surrogate pair; write both halves, or the '
      'character itself'
    ) from None


def note_of_escapes(values: Sequence[str], flag: str) -> None:
  """Says on stderr that a typed \\n stays what it is, unless that was asked."""
  if flags.FLAGS.escapes is None and any('\\n' in value for value in values):
    print(
      f'note: --{flag} holds \\n, which is taken as it is typed; --escapes '
      'makes it a line break, --noescapes leaves this note out',
      file=sys.stderr,
    )


def lines(path: str, flag: str) -> list[tuple[int, str]]:
  """(number, text) of the lines of a file that are not blank.

  Lines end at line feeds alone, perhaps with a carriage return before them; a
  byte order mark is no part of the first. What is blank is said on stderr.

  Args:
    path: - is stdin.
    flag: that names the file.

  Raises:
    ValueError: the file cannot be read, or is not UTF-8 (its line).
  """
  whole = _decoded(_content(path, flag), f'--{flag}={path}')
  found = [line.removesuffix('\r') for line in whole.split('\n')]
  if not found[-1]:
    del found[-1]
  kept, blank = [], []
  for number, line in enumerate(found, start=1):
    if line.strip():
      kept.append((number, line))
    else:
      blank.append(number)
  if blank:
    print(
      f'note: --{flag}={path}: left out blank line'
      f'{"s" if len(blank) > 1 else ""} {", ".join(map(str, blank[:10]))}'
      f'{f" and {len(blank) - 10} more" if len(blank) > 10 else ""}',
      file=sys.stderr,
    )
  return kept


def read(path: str, flag: str) -> str:
  """The text of a file that a flag names, without a byte order mark.

  Raises:
    ValueError: it cannot be read, or is not UTF-8 (its line).
  """
  return _decoded(_content(path, flag), f'--{flag}={path}')


def _content(path: str, flag: str) -> bytes:
  if path == '-':
    return sys.stdin.buffer.read()
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise ValueError(f'--{flag}={path}: {error.strerror}') from error


def _decoded(content: bytes, place: str) -> str:
  content = content.removeprefix(codecs.BOM_UTF8)
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise ValueError(
      f'{place}:{line}: not UTF-8 text (byte {content[error.start]:#04x}); '
      'save the file as UTF-8'
    ) from error
