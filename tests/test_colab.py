# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from top to bottom and shows what it promises."""

import json
import pathlib

import pytest

from specstream_jax.checkpoints import fetch

NAME = 'smollm2-135m-instruct'
ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'colabs' / '01_quickstart.ipynb'


def test_notebook_is_committed_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  assert not any(cell.get('outputs') for cell in cells)


def test_notebook_starts_with_the_example_of_the_readme():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  first = next(cell for cell in cells if cell['cell_type'] == 'code')
  readme = (ROOT / 'README.md').read_text()
  assert f'```python\n{"".join(first["source"])}\n```' in readme


@pytest.mark.smollm
@pytest.mark.skipif(
  fetch.cached(NAME) is None, reason=f'run specstream fetch {NAME}'
)
@pytest.mark.slow
def test_notebook_runs(monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  pytest.importorskip('ipykernel')
  monkeypatch.setenv('SPECSTREAM_NOTEBOOK_PROMPTS', '2')
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  resources = {'metadata': {'path': str(ROOT)}}
  client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
  client.execute()
  shown = [
    kind
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    for kind in output.get('data', {})
  ]
  assert 'image/svg+xml' in shown  # The draft tree.
  assert 'text/html' in shown  # The report.
