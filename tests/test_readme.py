# SPDX-License-Identifier: Apache-2.0
"""The README keeps its word: its Python runs, what it names exists."""

import contextlib
import io
import pathlib
import re

import doc_blocks
import pytest

from specstream_jax.checkpoints import fetch
from specstream_jax.cli import help_texts

NAME = 'smollm2-135m-instruct'
ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
README_WITHOUT_TABLES = re.sub(r'(?m)^\|.*$', '', README)


def marked_block(name):
  """The fenced block right after <!-- run:name -->."""
  pattern = rf'<!-- run:{name} -->\n```\w*\n(.*?)```'
  [found] = re.findall(pattern, README, re.DOTALL)
  return found


def python_example():
  [found] = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  return found


@pytest.mark.slow
@pytest.mark.smollm
@pytest.mark.skipif(
  fetch.cached(NAME) is None, reason=f'run specstream fetch {NAME}'
)
def test_python_example_decodes_the_same_tokens_in_fewer_calls():
  names, output = {}, io.StringIO()
  with contextlib.redirect_stdout(output):
    exec(compile(python_example(), 'README.md', 'exec'), names)
  assert names['fast'].tokens == names['plain'].tokens
  assert 0 < names['fast'].calls < names['plain'].calls
  assert output.getvalue().startswith(names['fast'].text)


def test_python_example_is_ten_lines():
  assert len(python_example().strip().splitlines()) <= 10


def test_commands_are_marked_for_the_fresh_clone():
  assert 'specstream quickstart' in marked_block('main')
  assert marked_block('test').strip().endswith('python -m pytest')


def test_what_the_readme_names_exists():
  links = re.findall(r'\]\((?!http)([^)#]+)\)', README)
  files = re.findall(r'\b(?:configs|launch|docs|tests)/[\w./]+\w', README)
  assert {'docs/step.svg', 'docs/how_to/train.md'} <= {*links, *files}
  assert [p for p in links + files if not (ROOT / p).exists()] == []


def test_commands_of_the_readme_are_commands():
  blocks = re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
  used = re.findall(r'^specstream (\w+)', '\n'.join(blocks), re.MULTILINE)
  assert {'quickstart', 'adapt', 'fetch'} <= set(used)
  assert set(used) <= set(help_texts.COMMANDS)


def test_it_has_few_numbers_outside_its_one_table():
  assert len(re.findall(r'(?m)^\|[-|]+$', README)) == 2  # and one of links
  for text in (doc_blocks.prose(README), README_WITHOUT_TABLES):
    words = [word for word in text.split() if re.search(r'\w', word)]
    numbers = [word for word in words if re.search(r'\d', word)]
    share = 100 * len(numbers) / len(words)
    assert share <= 4, f'{share:.1f} numbers per 100 words: {numbers}'


def test_the_first_screen_shows_what_why_and_how():
  screen = README.partition('## How much faster?')[0]
  order = [
    'docs/step.svg',
    'specstream quickstart',
    'specstream adapt',
    'ss.load',
  ]
  places = [screen.index(word) for word in order]
  assert places == sorted(places)
  assert len(doc_blocks.prose(screen).split()) < 150
