# SPDX-License-Identifier: Apache-2.0
"""A folder of layers belongs to the very weights that it was written from."""

import contextlib
import glob
import json
import os
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
import tiny

from specstream_jax import config
from specstream_jax.checkpoints import files, weights as weights_lib
from specstream_jax.modeling import params
from specstream_jax.outputs import locks
from specstream_jax.streaming import contents, layer_files, store

CONFIG = tiny.CONFIG


@pytest.fixture(scope='module')
def flat():
  """Weights of a tiny model by path."""
  _, base, _ = tiny.model(CONFIG, None, None)
  return {p: np.asarray(leaf) for p, leaf in params.flatten(base).items()}


def stored(path, flat):
  """The weights in a file, as they are read from it."""
  safetensors.save_file(dict(flat), path)
  read = lambda name: safetensors.load_file(path)[name].astype('float32')
  return weights_lib.LazyParams(CONFIG, read, [str(path)])


def name_of(weights, folder):
  return store.key(contents.sha256(weights, str(folder)), weights, {})


def test_weights_that_differ_anywhere_have_another_folder(flat, tmp_path):
  path = 'layers/1/mlp/up/kernel'
  other = np.array(flat[path])
  other.reshape(-1)[1] += 0.001
  low = {
    p: leaf.astype(ml_dtypes.bfloat16).astype('float32')
    for p, leaf in flat.items()
  }
  variants = [flat, {**flat, path: other}, low]
  names = {
    name_of(stored(tmp_path / f'{i}.safetensors', variant), tmp_path)
    for i, variant in enumerate(variants)
  }
  assert len(names) == 3
  copy = stored(tmp_path / 'copy.safetensors', flat)
  assert name_of(copy, tmp_path) in names
  in_memory = {name_of(variant, tmp_path) for variant in variants}
  assert len(in_memory) == 3


def test_a_file_is_hashed_once_until_it_changes(flat, tmp_path, monkeypatch):
  hashed = []
  whole = files.sha256
  monkeypatch.setattr(
    files, 'sha256', lambda path: hashed.append(path) or whole(path)
  )
  path, folder = tmp_path / 'model.safetensors', tmp_path / 'layers'
  weights = stored(path, flat)
  first = contents.sha256(weights, str(folder))
  assert contents.sha256(weights, str(folder)) == first and len(hashed) == 1
  (place,) = glob.glob(str(folder / '*.sha256'))
  with open(place, 'w') as file:
    file.write('no hash')
  assert contents.sha256(weights, str(folder)) == first and len(hashed) == 2
  os.utime(path, (1, 1))
  assert contents.sha256(weights, str(folder)) == first and len(hashed) == 3
  taken = tmp_path / 'a file'
  taken.touch()
  assert contents.sha256(weights, str(taken)) == first and len(hashed) == 4
  os.remove(path)
  with pytest.raises(ValueError, match=r'weights: .*cannot be read \(No such'):
    contents.sha256(weights, str(folder))


def test_layers_of_another_model_are_refused(flat, tmp_path):
  cfg = config.StreamedWeightsConfig(folder=str(tmp_path))
  folder, rest = store.prepare(flat, 'name', cfg)
  assert rest.keys() == {p for p in flat if not p.startswith('layers/')}
  assert store.prepare(flat, 'name', cfg)[0] == folder
  path = os.path.join(folder, layer_files.MANIFEST)
  with open(path) as file:
    found = json.load(file)
  found['num_layers'] -= 1
  found['sha256'].pop()
  with open(path, 'w') as file:
    json.dump(found, file)
  with pytest.raises(
    ValueError, match=r'is not of the layers of this model; r'
  ):
    store.prepare(flat, 'name', cfg)


def test_a_layer_is_hashed_once_when_it_is_written(flat, tmp_path, monkeypatch):
  hashed, sha256 = [], files.sha256
  monkeypatch.setattr(
    files, 'sha256', lambda path: hashed.append(path) or sha256(path)
  )
  cfg = config.StreamedWeightsConfig(folder=str(tmp_path))
  for _ in range(2):
    store.prepare(flat, 'name', cfg)
    assert len(hashed) == len(set(hashed)) == CONFIG.num_layers


def test_a_layer_that_was_changed_at_its_size_is_refused(flat, tmp_path):
  cfg = config.StreamedWeightsConfig(folder=str(tmp_path))
  folder, _ = store.prepare(flat, 'name', cfg)
  store.prepare(flat, 'name', cfg)
  path = layer_files.path_of(folder, 1)
  with open(path, 'r+b') as file:
    first = file.read(1)
    file.seek(0)
    file.write(bytes([first[0] ^ 1]))
  with pytest.raises(ValueError, match=r'layer_0001\.bin.* was changed since'):
    store.prepare(flat, 'name', cfg)


def test_who_comes_second_waits_and_takes_what_was_written(
  flat, tmp_path, monkeypatch
):
  cfg = config.StreamedWeightsConfig(folder=str(tmp_path))
  written = []
  write = store._write
  monkeypatch.setattr(
    store, '_write', lambda *args: written.append(1) or write(*args)
  )
  monkeypatch.setattr(store, '_POLL', 0.01)
  second = threading.Thread(
    target=store.prepare, args=(flat, 'one', cfg), daemon=True
  )
  with locks.hold(os.path.join(str(tmp_path), 'one'), 'layers'):
    second.start()
    time.sleep(0.2)
    assert second.is_alive() and not written
  second.join(60)
  assert not second.is_alive() and len(written) == 1


def test_what_another_process_has_just_written_is_not_written_again(
  flat, tmp_path, monkeypatch
):
  cfg = config.StreamedWeightsConfig(folder=str(tmp_path))
  written = []
  write = store._write

  def count(*args):
    written.append(1)
    write(*args)

  @contextlib.contextmanager
  def hold(folder, task):
    """The other process ends between a look and the lock."""
    del task
    count(flat, folder, 'one', store._layout(flat), str(tmp_path))
    yield

  monkeypatch.setattr(store, '_write', count)
  monkeypatch.setattr(store.locks, 'hold', hold)
  store.prepare(flat, 'one', cfg)
  assert len(written) == 1
