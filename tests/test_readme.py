# SPDX-License-Identifier: Apache-2.0
"""The README keeps its word: its Python runs, its files and flags exist."""

import contextlib
import io
import pathlib
import re

import pytest

from specstream_jax.checkpoints import fetch

NAME = 'smollm2-135m-instruct'
ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def block(name):
  """The fenced block after <!-- run:name -->."""
  pattern = rf'<!-- run:{name} -->\n```\w*\n(.*?)```'
  [found] = re.findall(pattern, README, re.DOTALL)
  return found


@pytest.mark.smollm
@pytest.mark.skipif(
  fetch.cached(NAME) is None, reason=f'run specstream fetch {NAME}'
)
def test_python_example_runs():
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    exec(compile(block('python'), 'README.md', 'exec'), {})
  text, calls, _ = output.getvalue().strip().rsplit('\n', 2)
  fast, plain = map(int, re.findall(r'\d+', calls))
  assert 'Blue Spice' in text
  assert fast < plain


def test_python_example_is_short():
  assert len(block('python').strip().splitlines()) <= 10


def test_commands_are_marked_for_the_fresh_clone():
  assert 'specstream quickstart' in block('main')
  assert block('test').strip().endswith('python -m pytest')


def test_links_and_named_files_exist():
  links = re.findall(r'\]\((?!http)([^)#]+)\)', README)
  files = re.findall(r'\b(?:configs|launch|docs)/[\w./]+\w', README)
  assert len(links) >= 2 and len(files) >= 4
  missing = [path for path in links + files if not (ROOT / path).exists()]
  assert missing == []
