# SPDX-License-Identifier: Apache-2.0
"""An evaluation that is stopped, or shared, comes to the result of one run."""

import dataclasses
import json

import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.bench import sides as sides_lib
from specstream_jax.workflows import evaluate

OPTIONS = evaluate.Options(
  num_prompts=5, max_new_tokens=7, batch=2, repeats=2, seed=3
)
# What does not depend on the clock.
FACTS = (
  *('new_tokens', 'calls', 'autoregressive_calls', 'equal_fraction'),
  *('quality', 'accept_length_histogram', 'samples', 'num_prompts', 'repeats'),
)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def run(model, folder=None, **changes):
  options = dataclasses.replace(OPTIONS, **changes)
  folder = str(folder) if folder else None
  return evaluate.evaluate(model, options, folder=folder, progress=False)


def facts(result):
  return {name: getattr(result, name) for name in FACTS}


@pytest.fixture(scope='module')
def whole(model):
  return facts(run(model))


def test_shards_meet(model, whole, tmp_path):
  parts = [{'shard': i, 'num_shards': 4} for i in range(4)]
  # Three batches: the fourth shard has nothing to do, and may end last.
  assert [run(model, tmp_path, **part) for part in parts[:2]] == [None, None]
  assert run(model, tmp_path, **parts[3]) is None
  done = run(model, tmp_path, **parts[2])
  assert facts(done) == whole
  assert facts(run(model, tmp_path, **parts[3])) == whole


@pytest.mark.slow
def test_sampled_tokens_do_not_depend_on_shards(model, tmp_path):
  hot = {'sampling': config.SamplingConfig(1.0)}
  one = facts(run(model, **hot))
  run(model, tmp_path, shard=0, num_shards=2, **hot)
  assert facts(run(model, tmp_path, shard=1, num_shards=2, **hot)) == one


def test_a_stopped_run_goes_on(model, whole, tmp_path, monkeypatch):
  count = iter(range(100))
  line = sides_lib.line

  def stop_at_the_fourth(result):
    if next(count) == 3:
      raise KeyboardInterrupt
    return line(result)

  with monkeypatch.context() as patch:
    patch.setattr(sides_lib, 'line', stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
      run(model, tmp_path)
  (file,) = tmp_path.iterdir()
  before = file.read_text()
  keys = [json.loads(text)['key'] for text in before.splitlines()[1:]]
  assert len(keys) == 3
  assert facts(run(model, tmp_path)) == whole
  assert file.read_text().startswith(before)
  evaluate.forget(str(tmp_path), OPTIONS)
  assert not list(tmp_path.iterdir())


def test_other_settings_do_not_mix(model, tmp_path):
  run(model, tmp_path)
  with pytest.raises(ValueError, match='other settings: options'):
    run(model, tmp_path, max_new_tokens=8)


def test_shards_need_a_folder(model):
  with pytest.raises(ValueError, match='shards need a folder'):
    run(model, num_shards=2)
