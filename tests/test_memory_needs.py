# SPDX-License-Identifier: Apache-2.0
"""What does not fit is said before it runs, with what there is and what helps."""

import dataclasses
import types

import byte_model
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runtime

import specstream_jax as ss
from specstream_jax import config, memory, partitioning
from specstream_jax.checkpoints import loading
from specstream_jax.cli import exits
from specstream_jax.workflows import (
  dry_run,
  train as train_workflow,
  train_run,
)


@pytest.fixture
def free(monkeypatch):
  """Sets the bytes that are free."""
  return lambda count: monkeypatch.setattr(memory, 'available', lambda _: count)


def test_as_much_as_there_is_fits(free):
  free(2000)
  memory.check('rows', 2000, 'fewer')
  with pytest.raises(
    memory.OutOfMemoryError,
    match=r'^rows take 2\.0 kB, and 2\.0 kB are free on .*; fewer need less$',
  ):
    memory.check('rows', 2001, 'fewer need less')
  free(None)  # where it is not known
  memory.check('rows', 10**18, 'fewer need less')


def test_a_machine_has_memory():
  device = types.SimpleNamespace(platform='cpu')
  assert 10**8 < memory.available(device) < 10**14


@pytest.mark.parametrize(
  ('limit', 'free'), [('max\n', None), ('5000\n', 5000 - 3000 + 700)]
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, limit, free):
  (tmp_path / 'memory.max').write_text(limit)
  (tmp_path / 'memory.current').write_text('3000\n')
  (tmp_path / 'memory.stat').write_text('anon 9\ninactive_file 700\n')
  monkeypatch.setattr(memory, '_CGROUP', tmp_path)
  assert memory._of_container() == free
  if free:
    assert memory.available(types.SimpleNamespace(platform='cpu')) == free


def test_an_accelerator_says_what_is_left():
  stats = {'bytes_limit': 900, 'bytes_in_use': 200}
  device = types.SimpleNamespace(platform='gpu', memory_stats=lambda: stats)
  assert memory.available(device) == 700
  device.memory_stats = lambda: None
  assert memory.available(device) is None


@pytest.mark.parametrize(
  ('count', 'text'),
  [(999, '1.0 kB'), (1.5e9, '1.5 GB'), (123e6, '123.0 MB'), (2e13, '20.0 TB')],
)
def test_sizes(count, text):
  assert memory.size(int(count)) == text


# Decoding


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def test_a_cache_that_does_not_fit_is_refused(model, free):
  free(4000)
  with pytest.raises(
    memory.OutOfMemoryError,
    match=r'keys and values of 2 rows of \d+ positions take .* kB, and 4\.0 kB '
    r'are free on .*; fewer rows at once, shorter prompts, fewer new tokens',
  ):
    ss.generate(model, ['a', 'b'], max_new_tokens=7)


@pytest.mark.parametrize('count', [10**9, 10**11, 10**15])
def test_more_tokens_than_any_memory_holds(model, count):
  with pytest.raises(ValueError, match=r'max_new_tokens|new tokens'):
    ss.generate(model, ['a'] * 4096, max_new_tokens=count)


def test_weights_that_do_not_fit_are_not_read(tmp_path, free):
  byte_model.write_model(tmp_path, byte_model.model_config())
  free(1000)
  with pytest.raises(
    memory.OutOfMemoryError,
    match=r'weights in float32 take .*; bfloat16 needs half',
  ):
    loading.load_model(str(tmp_path))


def test_a_large_training_step_is_warned_of(tmp_path, free, caplog):
  byte_model.write_model(tmp_path, byte_model.model_config(num_layers=10))
  recipe = train_workflow.Recipe()
  arguments = {'dtype': 'float32', 'remat': 'none'}
  with caplog.at_level('WARNING'):
    dry_run.warn_if_large(str(tmp_path), recipe, **arguments)
    assert caplog.text == ''
    free(1000)
    dry_run.warn_if_large(str(tmp_path), recipe, **arguments)
  assert 'by an estimate weights, adapter and activations' in caplog.text
  assert '--batch_size, --remat=full' in caplog.text


def test_an_mlp_without_a_gate_keeps_two_activations():
  recipe = train_workflow.Recipe()
  gated = byte_model.model_config()
  plain = dataclasses.replace(gated, mlp=config.MlpConfig(is_gated=False))
  count = lambda cfg, remat: dry_run.activation_bytes(cfg, recipe, remat=remat)
  rows, length = recipe.train.batch_size, recipe.data.sequence_length
  anchors = min(recipe.objective.anchors_per_sequence, length)
  streams = recipe.stream.num_msa_layers * recipe.stream.num_streams * anchors
  tokens = rows * (gated.num_layers * length + streams)
  saved = count(gated, 'none') - count(plain, 'none')
  assert saved == 4 * tokens * gated.intermediate_size
  assert count(gated, 'full') == count(plain, 'full')


def test_a_budget_of_stream_tokens_is_what_counts():
  cfg, few = byte_model.model_config(), config.StreamConfig(num_streams=4)
  objective = config.ObjectiveConfig(stream_tokens=320)

  def count(stream, **fields):
    recipe = train_workflow.Recipe(stream=stream, **fields)
    return dry_run.activation_bytes(cfg, recipe, remat='none')

  many = dataclasses.replace(few, num_streams=16)
  assert count(few) < count(many)
  assert count(few, objective=objective) == count(many, objective=objective)
  eighty = config.ObjectiveConfig(anchors_per_sequence=80)
  assert count(few, objective=objective) == count(few, objective=eighty)


def test_batches_that_do_not_fit_are_not_filled(tmp_path, free):
  byte_model.write_records(tmp_path / 'data', [('a', 'b')])
  recipe = train_workflow.Recipe(
    train=config.TrainConfig(batch_size=3),
    data=config.DataConfig(sequence_length=100, eval_batch_size=3),
  )
  rest = str(tmp_path / 'data'), recipe, partitioning.local()
  free(5999)
  with pytest.raises(
    memory.OutOfMemoryError, match=r'a batch of 3 rows of 100 take 6\.0 kB'
  ):
    train_run.open_training(*rest)
  free(6000)
  train_run.open_training(*rest)
  free(1919)  # examples are padded to 32 tokens
  with pytest.raises(memory.OutOfMemoryError, match='of 3 rows of 32 take'):
    train_run.eval_opener(*rest)


# What libraries say


def raised(function):
  with pytest.raises((RuntimeError, MemoryError)) as caught:
    function()
  return caught.value


@pytest.mark.parametrize(
  ('error', 'asked'),
  [
    (lambda: jnp.zeros(10**13).block_until_ready(), '40.0 TB'),
    (lambda: np.zeros(10**13), '72.8 TiB'),
  ],
)
def test_errors_of_libraries_are_explained(error, asked, free):
  error = raised(error)
  free(3 * 10**9)
  text = memory.explain(error)
  assert text.startswith('out of memory on ')
  assert text.endswith(f': {asked} more were asked for, 3.0 GB are free')


@pytest.mark.parametrize(
  ('text', 'found'),
  [
    (
      'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 '
      'bytes.',
      '8.6 GB more were asked for',
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G',
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G',
    ),
    ('RESOURCE_EXHAUSTED: Error writing "a": No space left on device', None),
    ('INVALID_ARGUMENT: something of memory', None),
  ],
)
def test_errors_of_accelerators(text, found):
  explained = memory.explain(RuntimeError(text))
  assert explained is found is None or found in explained


def test_the_line_names_flags_of_the_command(monkeypatch, capsys):
  known = {'batch_size', 'max_new_tokens', 'dtype', 'seed'}
  monkeypatch.setattr(exits.flags, 'FLAGS', known)
  error = memory.OutOfMemoryError('rows take 2 GB')
  assert exits.report('distill', error) == 1
  assert capsys.readouterr().err == (
    'specstream distill: rows take 2 GB. Smaller with --batch_size, '
    '--max_new_tokens, --dtype=bfloat16\n'
  )
  monkeypatch.setattr(exits.flags, 'FLAGS', {'remat', 'batch_size'})
  exits.report('train', error)
  assert capsys.readouterr().err.endswith(
    '--batch_size, --remat=full, --gin.DataConfig.sequence_length, '
    '--gin.ObjectiveConfig.chunk_size\n'
  )
