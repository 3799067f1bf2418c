# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from top to bottom and show what they promise."""

import byte_model
import notebooks
import pytest

from specstream_jax.checkpoints import fetch

NAME = 'smollm2-135m-instruct'
SHORT = {'PROMPTS': 2, 'NEW_TOKENS': 6}
# Of a tiny model: what makes a notebook short.
VALUES = {
  '02': {'ROWS': 30, 'MINUTES': 0.1, 'NEW_TOKENS': 12},
  '03': {'TOKENS': (2, 4), 'NODES': (2, 3), 'REPEATS': 1} | SHORT,
  '04': SHORT,
  '05': {'STEPS': 2, 'LAYERS': 1, 'LENGTH': 512, 'NEW_TOKENS': 6},
  '06': {'REPEATS': 1} | SHORT,
}
pytestmark = pytest.mark.slow


def run(name, folder, **values):
  """Runs a notebook in a kernel of its own; kinds of what it shows, by cell."""
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  pytest.importorskip('ipykernel')
  [path] = (p for p in notebooks.PATHS if p.stem.startswith(name))
  notebook = nbformat.read(path, as_version=4)
  place = [notebooks.is_parameters(cell) for cell in notebook.cells].index(True)
  added = notebooks.assignments(values, notebook.cells[place])
  notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(added))
  resources = {'metadata': {'path': str(folder)}}
  client = nbclient.NotebookClient(notebook, timeout=900, resources=resources)
  client.execute()
  return [
    kind
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    for kind in output.get('data', {})
  ]


def num_pictures(kinds):
  return sum(kind in ('image/png', 'image/svg+xml') for kind in kinds)


@pytest.mark.smollm
@pytest.mark.skipif(
  fetch.cached(NAME) is None, reason=f'run specstream fetch {NAME}'
)
def test_the_quickstart(tmp_path):
  shown = run('01', tmp_path, PROMPTS=2)
  assert 'image/svg+xml' in shown  # The draft tree.
  assert 'text/html' in shown  # The report.


def test_rows_of_ones_own(tmp_path):
  # Of random bytes, no answer would be a text.
  letters = [chr(byte) for byte in range(0x21, 0x7F)] + ['Ġ', 'Ċ']
  tokenizer = byte_model.byte_tokenizer(alphabet=letters)
  cfg = byte_model.model_config(vocab_size=tokenizer.get_vocab_size())
  byte_model.write_model(tmp_path / 'model', cfg, tokenizer)
  shown = run('02', tmp_path, MODEL=str(tmp_path / 'model'), **VALUES['02'])
  assert num_pictures(shown) == 5
  assert 'text/html' in shown  # Tokens in the colours of their calls.
  assert (tmp_path / 'weather' / 'run' / 'report.html').is_file()


@pytest.mark.parametrize(
  ('name', 'pictures'), [('03', 4), ('04', 4), ('05', 3), ('06', 2)]
)
def test_the_others(name, pictures, tmp_path):
  model, adapter = notebooks.write_tiny(tmp_path)
  places = {'MODEL': model, 'ADAPTER': adapter}
  shown = run(name, tmp_path, **places, **VALUES[name])
  assert num_pictures(shown) == pictures
