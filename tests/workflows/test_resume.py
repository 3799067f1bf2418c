# SPDX-License-Identifier: Apache-2.0
"""A folder of checkpoints takes no run of other settings."""

import dataclasses
import json
from types import SimpleNamespace

import data_testing
import pytest

from specstream_jax import config
from specstream_jax.workflows import resume, train


@pytest.fixture
def run(tmp_path):
  """(start, output folder with a checkpoint of step 6); start takes changes."""
  records = str(tmp_path / 'records')
  data_testing.write_records(records, 5)
  out = tmp_path / 'out'

  def start(fingerprint='f', dtype='float32', data_dir=records, **changes):
    recipe = dataclasses.replace(
      train.Recipe(train=config.TrainConfig(num_steps=8)), **changes
    )
    loaded = SimpleNamespace(
      source='tiny',
      fingerprint=fingerprint,
      config=SimpleNamespace(dtype=dtype),
    )
    resume.start(str(out), recipe, loaded, data_dir, start=None)

  start()
  (out / 'checkpoints' / '6').mkdir(parents=True)
  return start, out


def test_the_same_settings_and_more_steps_go_on(run):
  start, out = run
  start()
  start(train=config.TrainConfig(num_steps=20, log_every=3))
  assert json.loads((out / 'recipe.json').read_text())['train'] == {
    **config.to_json(config.TrainConfig()),
    'num_steps': 20,
    'log_every': 3,
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'fingerprint': 'g'}, "run.base_fingerprint was 'f', now 'g'"),
    ({'dtype': 'bfloat16'}, "run.dtype was 'float32', now 'bfloat16'"),
    (
      {'optimizer': config.OptimizerConfig(learning_rate=9.0)},
      'optimizer.learning_rate was 0.001, now 9.0',
    ),
    ({'lora': config.LoraConfig(rank=3)}, r'lora.rank was \d+, now 3'),
    (
      {'train': config.TrainConfig(num_steps=4)},
      '6 steps are done, train.num_steps is 4',
    ),
  ],
)
def test_other_settings_are_refused_and_nothing_is_written(
  run, changes, message
):
  start, out = run
  before = (out / 'recipe.json').read_text()
  with pytest.raises(ValueError, match=message):
    start(**changes)
  assert (out / 'recipe.json').read_text() == before


def test_other_records_are_refused(run, tmp_path):
  start, _ = run
  other = str(tmp_path / 'other')
  data_testing.write_records(other, 6)
  with pytest.raises(ValueError, match=r'run\.records was'):
    start(data_dir=other)


def test_a_folder_without_checkpoints_is_free(run):
  start, out = run
  (out / 'checkpoints' / '6').rmdir()
  start(fingerprint='g')
