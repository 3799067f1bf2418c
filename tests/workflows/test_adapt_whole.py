# SPDX-License-Identifier: Apache-2.0
"""From rows to a report with a tiny model, nothing stood in for."""

import json
import pathlib

import byte_model
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import adapters
from specstream_jax.workflows import adapt, adapt_plan, adapt_tune

pytestmark = pytest.mark.slow
ROWS = [
  {'prompt': f'say {i % 7}{i}:', 'completion': f' {i % 7} {i % 7} {i % 7}'}
  for i in range(24)
]


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  # Of random bytes, no answer would be a text.
  letters = [chr(byte) for byte in range(0x21, 0x7F)] + ['Ġ']
  tokenizer = byte_model.byte_tokenizer(alphabet=letters)
  cfg = byte_model.model_config(vocab_size=tokenizer.get_vocab_size())
  byte_model.write_model(folder, cfg, tokenizer)
  return str(folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Few nodes and steps, to compile little."""
  monkeypatch.setattr(adapt_tune, '_NODES', {'cpu': (3,)})
  monkeypatch.setattr(adapt_plan, '_FEWEST_STEPS', 6)
  monkeypatch.setattr(adapt_plan, 'EPOCHS', {'fine_tuned': 1, 'lossless': 1})


def run(rows, model, folder):
  path = folder / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  options = adapt.Options(max_new_tokens=12)
  return adapt.adapt(
    str(path), model, str(folder / 'run'), options, progress=False
  )


def test_rows_with_answers(model, tmp_path):
  done = run(ROWS, model, tmp_path)
  assert done.run.equal_fraction == 1.0 and done.run.num_prompts == 2
  _, cfg = adapters.load_adapter(done.adapter)
  assert cfg.stream.mode == 'fine_tuned'
  assert cfg.tree == config.TreeConfig(num_nodes=3, branching=32)
  page = pathlib.Path(done.report).read_text()
  for words in ('base model', 'Call reduction', 'Training of the', 'run run1'):
    assert words in page, words
  assert run(ROWS, model, tmp_path) == done


def test_rows_without_answers(model, tmp_path):
  rows = [{'prompt': row['prompt']} for row in ROWS]
  done = run(rows, model, tmp_path)
  assert done.run.equal_fraction == 1.0
  assert adapters.read_config(done.adapter).stream.mode == 'lossless'
  assert (tmp_path / 'run' / 'own' / 'train.jsonl').is_file()
