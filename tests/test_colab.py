# SPDX-License-Identifier: Apache-2.0
"""The notebooks: what they name is there, and what is shown was run."""

import ast
import importlib
import inspect
import re
import tomllib

import notebooks
import pytest

import specstream_jax as ss

# Of the badges and the cell that installs, until the project names its own.
HOME = 'https://github.com/OWNER/specstream_jax'
LARGEST = 400_000
OF_ONE_MACHINE = re.compile(r'(?<![\w.])/(home|root|tmp|work|usr|opt|Users)/')
by_path = pytest.mark.parametrize(
  'path', notebooks.PATHS, ids=lambda path: path.stem
)


def home():
  """Where the project lies, as its metadata has it."""
  project = tomllib.loads((notebooks.ROOT / 'pyproject.toml').read_text())
  return project['project'].get('urls', {}).get('Repository', HOME)


def test_there_are_six_and_the_names_count():
  numbers = [path.stem[:3] for path in notebooks.PATHS]
  assert numbers == [f'{n:02d}_' for n in range(1, 7)]


@by_path
def test_it_is_a_notebook_with_a_badge_and_a_cell_that_installs(path):
  nbformat = pytest.importorskip('nbformat')
  nbformat.validate(nbformat.read(path, as_version=4))
  first, second, third = notebooks.read(path.stem)[:3]
  place = home().removeprefix('https://github.com/')
  link = f'/github/{place}/blob/main/colabs/{path.name})'
  assert notebooks.source(first).startswith('[![Open in Colab](https://colab')
  assert link in notebooks.source(first)
  install = notebooks.source(second)
  assert "find_spec('specstream_jax') is None:" in install
  assert install.endswith(f'%pip install -q git+{home()}')
  assert notebooks.is_parameters(third)


@by_path
def test_what_it_shows_was_run_from_top_to_bottom(path):
  cells = [c for c in notebooks.read(path.stem) if c['cell_type'] == 'code']
  outputs = [output for cell in cells for output in cell['outputs']]
  counts = [cell['execution_count'] for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  assert not [o for o in outputs if o['output_type'] == 'error']
  assert not [o for o in outputs if o.get('name') == 'stderr']
  kinds = {kind for o in outputs for kind in o.get('data', {})}
  assert kinds & {'image/png', 'image/svg+xml'}


@by_path
def test_it_is_small_and_tells_nothing_of_a_machines_folders(path):
  text = path.read_text()
  assert len(text.encode()) < LARGEST
  assert OF_ONE_MACHINE.search(text) is None


@by_path
def test_what_it_imports_and_calls_is_there(path):
  for text in notebooks.code(notebooks.read(path.stem)):
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.ImportFrom) and 'specstream' in node.module:
        for alias in node.names:
          assert is_there(node.module, alias.name), alias.name
      if isinstance(node, ast.Call) and is_of_ss(node.func):
        function = getattr(ss, node.func.attr)
        known = inspect.signature(function).parameters
        assert {k.arg for k in node.keywords if k.arg} <= set(known)


def is_there(module, name):
  if hasattr(importlib.import_module(module), name):
    return True
  return importlib.import_module(f'{module}.{name}') is not None


def is_of_ss(node):
  is_member = isinstance(node, ast.Attribute)
  return (
    is_member and isinstance(node.value, ast.Name) and node.value.id == 'ss'
  )


def test_the_first_one_starts_with_the_example_of_the_readme():
  cells = [c for c in notebooks.read('01') if c['cell_type'] == 'code']
  readme = (notebooks.ROOT / 'README.md').read_text()
  assert f'```python\n{notebooks.source(cells[2])}\n```' in readme


def test_parameters_that_a_notebook_lacks():
  cell = {'source': ['A = 1\n', 'B = 2']}
  assert notebooks.assignments({'B': 'x'}, cell) == "B = 'x'"
  with pytest.raises(AssertionError):
    notebooks.assignments({'C': 1}, cell)
