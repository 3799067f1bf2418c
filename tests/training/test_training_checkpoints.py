# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and metric files of a run, without a model."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specstream_jax import partitioning
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  metric_files as metrics_lib,
  step as step_lib,
)

OPTIMIZER = optax.adam(1e-3)


def make_state(number, value=1.0, size=5):
  adapter = {
    'layers': {
      2: {'attention_norm': {'scale': jnp.full(size, value)}},
      10: {'mlp_norm': {'scale': jnp.ones(7)}},
    },
    'streams': {'embedding': jnp.arange(6.0).reshape(3, 2)},
  }
  return step_lib.TrainState(
    jnp.int32(number), adapter, OPTIMIZER.init(adapter)
  )


def steps_on_disk(folder):
  return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def test_restores_state_and_place(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  assert checkpoints.restore(make_state(0)) is None
  saved = make_state(3, value=7.5)
  checkpoints.save(saved, {'place': [1, {'a': None}]})
  checkpoints.close()
  state, place = checkpoints_lib.Checkpoints(tmp_path).restore(make_state(0))
  assert place == {'place': [1, {'a': None}]}
  assert int(state.step) == 3
  for name in ('adapter', 'opt_state'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(saved, name), getattr(state, name)
    )


def test_a_restored_state_compiles_a_step_once(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  checkpoints.save(make_state(3), {})
  checkpoints.close()
  part = partitioning.default()
  like = step_lib.place_state(make_state(0), part)
  state, _ = checkpoints_lib.Checkpoints(tmp_path).restore(like)
  step = part.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
  )
  for _ in range(2):
    state = step(state)
  assert int(state.step) == 5
  assert step._cache_size() == 1


def test_keeps_best_and_last(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path, keep=2)
  calls = {1: 1.0, 2: 3.0, 3: 2.0, 4: None, 5: 1.5}
  for number, value in calls.items():
    metrics = None if value is None else {'tokens_per_call': value, 'x': 0.0}
    checkpoints.save(make_state(number), {}, metrics)
  checkpoints.close()
  assert steps_on_disk(tmp_path) == [2, 4, 5]
  reopened = checkpoints_lib.Checkpoints(tmp_path)
  assert reopened.best_step() == 2
  assert reopened.latest_step() == 5
  assert int(reopened.restore(make_state(0), 2)[0].step) == 2


def test_best_is_the_last_without_evaluations(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  assert checkpoints.best_step() is None
  for number in (1, 2):
    checkpoints.save(make_state(number), {})
  checkpoints.wait()
  assert checkpoints.best_step() == 2


def test_a_step_is_saved_once(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  checkpoints.save(make_state(1, value=2.0), {'place': 1})
  checkpoints.save(make_state(1, value=3.0), {'place': 2})
  checkpoints.wait()
  state, place = checkpoints.restore(make_state(0))
  assert place == {'place': 1}
  assert float(state.adapter['layers'][2]['attention_norm']['scale'][0]) == 2.0


def test_donated_state_does_not_reach_a_save_in_progress(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  advance = jax.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
  )
  state = advance(make_state(0, value=4.0, size=1_000_000))
  checkpoints.save(state, {})
  for _ in range(5):
    state = advance(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(state)
  np.testing.assert_array_equal(
    restored.adapter['layers'][2]['attention_norm']['scale'], 5.0
  )


def test_stale_temporary_folders_are_ignored_and_removed(tmp_path):
  stale = tmp_path / '7.orbax-checkpoint-tmp'
  (stale / 'adapter').mkdir(parents=True)
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  assert checkpoints.latest_step() is None
  checkpoints.save(make_state(1), {})
  checkpoints.wait()
  assert os.listdir(tmp_path) == ['1']


def damage(folder, how):
  """Empties the largest file of a checkpoint, or takes it away."""
  files = [path for path in folder.rglob('*') if path.is_file()]
  if how == 'truncated':
    for path in files:
      path.write_bytes(path.read_bytes()[:1])
  else:
    shutil.rmtree(folder / how)


@pytest.mark.parametrize('how', ['truncated', 'adapter', 'data'])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, how, caplog):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  for number in (1, 2):
    checkpoints.save(make_state(number, value=number), {'place': number})
  checkpoints.close()
  damage(tmp_path / '2', how)
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  with caplog.at_level('WARNING'):
    state, place = checkpoints.restore_last(make_state(0))
  assert (int(state.step), place) == (1, {'place': 1})
  assert 'checkpoint 2 in ' in caplog.text
  assert 'going on from step 1' in caplog.text
  assert sorted(os.listdir(tmp_path)) == ['1', 'damaged_2']
  checkpoints.save(make_state(2, value=5.0), {'place': 2})
  checkpoints.wait()
  state, _ = checkpoints.restore_last(make_state(0))
  assert float(state.adapter['layers'][2]['attention_norm']['scale'][0]) == 5.0


def test_nothing_readable_is_an_error_and_nothing_is_moved(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  assert checkpoints.restore_last(make_state(0)) is None
  checkpoints.save(make_state(1), {})
  checkpoints.close()
  damage(tmp_path / '1', 'truncated')
  with pytest.raises(
    ValueError, match=r'no checkpoint in .* can be read; of step 1: '
  ):
    checkpoints_lib.Checkpoints(tmp_path).restore_last(make_state(0))
  assert os.listdir(tmp_path) == ['1']


def test_save_error_names_folder_reason_and_last_step(tmp_path, monkeypatch):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  fail = lambda *_, **__: (_ for _ in ()).throw(
    OSError(28, 'No space left on device', '/somewhere/else')
  )
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._manager, 'save', fail)
    with pytest.raises(
      checkpoints_lib.SaveError, match='No space left on device; there is no'
    ):
      checkpoints.save(make_state(1), {})
  checkpoints.save(make_state(1), {})
  checkpoints.wait()
  monkeypatch.setattr(checkpoints._manager, 'save', fail)
  with pytest.raises(
    checkpoints_lib.SaveError, match=f'{tmp_path}: No .*; step 1 is whole'
  ):
    checkpoints.save(make_state(2), {})


# Metric files


def read(path):
  with open(path) as file:
    return [json.loads(line) for line in file]


def test_means_divide_sums_by_weights():
  means = metrics_lib.Means()
  means.add({'a': (2.0, 1.0), 'b': (0.0, 0.0)})
  means.add({'a': (4.0, 3.0), 'b': (0.0, 0.0)})
  assert means.result() == {'a': 1.5, 'b': 0.0}
  assert means.result() == {}


def test_writer_appends_finite_values(tmp_path):
  for step in (1, 2):
    writer = metrics_lib.Writer(str(tmp_path))
    writer.write(step, {'loss': 0.1234567, 'bad': float('nan')}, 'train')
    writer.close()
  lines = read(writer.path)
  assert lines == [
    {'step': 1, 'split': 'train', 'loss': 0.123457},
    {'step': 2, 'split': 'train', 'loss': 0.123457},
  ]


def test_disabled_writer_writes_nothing(tmp_path):
  writer = metrics_lib.Writer(str(tmp_path / 'run'), enabled=False)
  writer.write(1, {'loss': 1.0}, 'train')
  writer.close()
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'end',
  [
    *('{"step": 3, "lo', '{"step": 2}', '\n', '', '[2]', '2', '{"step": "2"}'),
    '[' * 10**5,
  ],
)
def test_forget_after_drops_later_and_broken_lines(tmp_path, end):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2, "split": "eval"}\n' + end)
  metrics_lib.forget_after(str(path), 2)
  metrics_lib.forget_after(str(tmp_path / 'missing.jsonl'), 2)
  with open(path, 'a') as file:
    file.write('{"step": 3}\n')
  found = [line['step'] for line in read(path)]
  assert found == ([1, 2, 2, 3] if end == '{"step": 2}' else [1, 2, 3])
  metrics_lib.forget_after(str(path), 0)
  assert path.read_text() == ''
