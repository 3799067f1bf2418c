# SPDX-License-Identifier: Apache-2.0
"""From rows to a report with a tiny model, in one call and over stops."""

import json
import pathlib

import byte_model
import pytest

from specstream_jax.checkpoints import adapters
from specstream_jax.workflows import adapt, adapt_plan, adapt_stages

OPTIONS = adapt.Options(max_new_tokens=12)
# Few nodes and steps, to compile little.
SMALL = {'_NODES': {'cpu': (3, 4)}, '_FEWEST_STEPS': 6}


def rows(count=24):
  return [
    {'prompt': f'say {i % 7}{i}:', 'completion': f' {i % 7} {i % 7} {i % 7}'}
    for i in range(count)
  ]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder with model/ and rows.jsonl."""
  root = tmp_path_factory.mktemp('adapt')
  byte_model.write_model(root / 'model', byte_model.model_config())
  lines = [json.dumps(row) + '\n' for row in rows()]
  (root / 'rows.jsonl').write_text(''.join(lines))
  return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(adapt_stages.adapt_tune, '_NODES', SMALL['_NODES'])
  monkeypatch.setattr(adapt_plan, '_FEWEST_STEPS', SMALL['_FEWEST_STEPS'])
  monkeypatch.setattr(adapt_plan, 'EPOCHS', {'fine_tuned': 1, 'lossless': 1})


def run(root, folder, options=OPTIONS):
  said = []
  done = adapt.adapt(
    str(root / 'rows.jsonl'),
    str(root / 'model'),
    str(folder),
    options,
    say=said.append,
    progress=False,
  )
  return done, said


@pytest.fixture(scope='module', name='done')
def _done(root):
  with pytest.MonkeyPatch.context() as patch:
    small.__wrapped__(patch) if hasattr(small, '__wrapped__') else None
    patch.setattr(adapt_stages.adapt_tune, '_NODES', SMALL['_NODES'])
    patch.setattr(adapt_plan, '_FEWEST_STEPS', SMALL['_FEWEST_STEPS'])
    patch.setattr(adapt_plan, 'EPOCHS', {'fine_tuned': 1, 'lossless': 1})
    return run(root, root / 'run')


def test_one_call_gives_adapter_report_and_numbers(root, done):
  done, said = done
  assert done.run is not None and done.run.equal_fraction == 1.0
  assert done.run.num_prompts == 2
  assert adapters.is_adapter(done.adapter)
  page = pathlib.Path(done.report).read_text()
  for words in ('base model', 'Call reduction', 'Training of the', 'run run1'):
    assert words in page, words
  print(said)


def test_again_changes_nothing(root, done):
  pass
