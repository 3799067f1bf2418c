# SPDX-License-Identifier: Apache-2.0
"""Epochs of a run, by hand."""

import math
import types

import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.cli import train_flags
from specstream_jax.data import epochs, records
from specstream_jax.workflows import train as workflow


def write(folder, sizes):
  """Records of so many tokens."""
  ids = lambda n: np.arange(n, dtype=np.int32)
  pairs = [(ids(2), ids(size - 2)) for size in sizes]
  records.write(pairs, str(folder), metadata={'task': 'a', 'split': 'train'})
  return str(folder)


@pytest.fixture
def folders(tmp_path):
  """12 examples of 11 tokens, and 3 of 21: rows have 10 and 20 positions."""
  return write(tmp_path / 'a', [11] * 12), write(tmp_path / 'b', [21] * 3)


def count(data_dir, packed=True, **train):
  data = config.DataConfig(sequence_length=40, packed=packed)
  return epochs.count(data_dir, config.TrainConfig(**train), data)


def test_one_example_to_a_row(folders):
  found = count(folders[0], packed=False, num_steps=9, batch_size=4)
  assert found == (12, 3.0, {folders[0]: 3.0})
  assert str(found) == 'about 3 epochs of 12 examples'
  assert found.warning == ''


def test_packed_rows_hold_several(folders):
  # 40 positions take 4 examples of 10: 6 rows see 24 of 12.
  found = count(folders[0], num_steps=3, batch_size=2)
  assert found.total == pytest.approx(2.0)


def test_a_mixture_counts_each_folder(folders):
  mixture = f'{folders[0]}=1,{folders[1]}=3'
  # A quarter of 10 positions, three of 20: 17.5 on average, 40 / 17.5 a row.
  found = count(mixture, num_steps=7, batch_size=1)
  seen = 7 * 40 / 17.5
  assert found.total == pytest.approx(seen / 15)
  assert found.by_folder == pytest.approx(
    {folders[0]: seen / 4 / 12, folders[1]: seen * 3 / 4 / 3}
  )
  assert str(found).startswith('about 1.1 epochs of 15 examples, 0.33 of ')


def test_too_many_epochs_are_warned_of(folders):
  mixture = f'{folders[0]}=1,{folders[1]}=3'
  assert count(folders[0], num_steps=60, batch_size=1).warning == ''
  found = count(mixture, num_steps=40, batch_size=1)
  assert found.total < epochs.MANY
  assert f'goes through {folders[1]} 23 times; beyond some 20' in found.warning
  assert '--epochs=5, or more data' in found.warning


@pytest.mark.parametrize('wanted', [0.5, 1, 7.25])
def test_steps_are_the_inverse(folders, wanted):
  data = config.DataConfig(sequence_length=40)
  steps = epochs.steps(wanted, folders[0], 3, data)
  assert steps == math.ceil(wanted * 12 / (3 * 4))
  assert count(folders[0], num_steps=steps, batch_size=3).total >= wanted


@pytest.mark.parametrize('wanted', [0.0, -1.0, math.nan, math.inf])
def test_no_number_of_epochs(folders, wanted):
  with pytest.raises(ValueError, match=r'epochs is .*; accepted: a number'):
    epochs.steps(wanted, folders[0], 3, config.DataConfig())


# The flags


@pytest.fixture
def flags(monkeypatch, folders):
  """Sets the flags of a training command."""

  def set_flags(**given):
    none = dict.fromkeys(('steps', 'epochs', 'batch_size', 'learning_rate'))
    values = types.SimpleNamespace(**none | {'data_dir': folders[0]} | given)
    module = types.SimpleNamespace(FLAGS=values)
    monkeypatch.setattr(train_flags, 'flags', module)
    return values.data_dir

  return set_flags


RECIPE = workflow.Recipe(
  data=config.DataConfig(sequence_length=40),
  train=config.TrainConfig(num_steps=9, batch_size=1, seed=3),
)


def test_flags_come_before_the_recipe(flags):
  folder = flags()
  assert train_flags.apply(RECIPE, folder) == RECIPE
  flags(steps=4, batch_size=2, learning_rate=0.5)
  found = train_flags.apply(RECIPE, folder)
  assert (found.train.num_steps, found.train.batch_size) == (4, 2)
  assert found.train.seed == 3
  assert found.optimizer.learning_rate == 0.5
  flags(epochs=2.0, batch_size=2)
  assert train_flags.apply(RECIPE, folder).train.num_steps == 3


def test_steps_and_epochs_do_not_go_together(flags):
  folder = flags(steps=4, epochs=2.0)
  with pytest.raises(ValueError, match=r'--steps=4 and --epochs=2.0 say two'):
    train_flags.apply(RECIPE, folder)


def test_a_run_says_its_epochs(flags, capsys):
  folder = flags(steps=90)
  train_flags.announce(train_flags.apply(RECIPE, folder), folder)
  out, err = capsys.readouterr()
  assert out == '90 steps of 1 rows: about 30 epochs of 12 examples\n'
  flags(steps=123456, batch_size=3)
  train_flags.announce(train_flags.apply(RECIPE, folder), folder)
  assert 'about 123,456 epochs' in capsys.readouterr().out
  assert err.startswith('warning: the run goes through ')


@pytest.mark.parametrize('number', [0, -1, 1e7, 1e308, float('nan')])
def test_epochs_that_are_no_number_of_passes(folders, number):
  with pytest.raises(
    ValueError, match=r'epochs is .*; accepted: a number abov'
  ):
    epochs.steps(number, folders[0], 4, config.DataConfig())
