# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the documentation, and what their marks say of them.

A mark is a comment right above a block:

  <!-- run -->           a test runs it
  <!-- run: slow -->     a test marked slow runs it
  <!-- run:NAME -->      the README's, which are run from a fresh clone
  <!-- not run: WHY -->
"""

from collections.abc import Iterator
import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(
  r'^(?:<!-- (?P<mark>(?:not )?run[^>]*?) -->\n)?```(?P<kind>\w*)\n'
  r'(?P<code>.*?)^```$',
  re.DOTALL | re.MULTILINE,
)
# Kinds that somebody types.
_TYPED = ('bash', 'python')


class Block(NamedTuple):
  """One block.

  Attributes:
    page: its path in the repository.
    line: number of its first line.
    kind: what stands behind the fence.
    mark: what the comment above it says, or nothing.
    code: what is in it.
  """

  page: str
  line: int
  kind: str
  mark: str
  code: str

  @property
  def is_run(self) -> bool:
    return self.mark.startswith('run') and not self.mark.startswith('run:m')

  @property
  def place(self) -> str:
    return f'{self.page}:{self.line}'


def pages() -> list[pathlib.Path]:
  """Every page that people read, but for tables that programs wrote."""
  found = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']
  found += [ROOT / 'launch' / 'README.md', *(ROOT / 'docs').rglob('*.md')]
  return sorted(page for page in found if page.name != 'table.md')


def blocks(page: pathlib.Path) -> list[Block]:
  """The blocks of a page that somebody may type."""
  text = page.read_text()
  name = str(page.relative_to(ROOT))
  return [
    Block(
      name,
      text.count('\n', 0, match.start('code')) + 1,
      match['kind'],
      match['mark'] or '',
      match['code'],
    )
    for match in _BLOCK.finditer(text)
    if match['kind'] in _TYPED
  ]


def all_blocks(kind: str = '') -> list[Block]:
  """Those of all pages, or of one kind."""
  found = [block for page in pages() for block in blocks(page)]
  return [block for block in found if not kind or block.kind == kind]


def commands(code: str) -> Iterator[list[str]]:
  """The simple commands of a piece of shell, each as its words."""
  for line in code.replace('\\\n', ' ').splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
      if set(word) <= set('();<>|&'):
        yield words
        words = []
      else:
        words.append(word)
    yield words


def of_specstream(code: str) -> Iterator[list[str]]:
  """What follows `specstream` in each command that is one."""
  for words in commands(code):
    if 'specstream' in words:
      yield words[words.index('specstream') + 1 :]


def prose(text: str) -> str:
  """A page without blocks, tables, comments, marks and targets of links."""
  text = re.sub(r'(?ms)^```.*?^```$', '', text)
  text = re.sub(r'(?s)<!--.*?-->', '', text)
  text = re.sub(r'(?m)^\|.*$', '', text)
  return re.sub(r'\]\([^)]*\)', ']', text)
