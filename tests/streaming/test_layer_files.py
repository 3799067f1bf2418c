# SPDX-License-Identifier: Apache-2.0
"""Files of layers: what is read is what was written, or one line says why not."""

import json
import os
import threading

import jax
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.config import streaming
from specstream_jax.streaming import (
  host,
  layer_files,
  ring,
  weights as weights_lib,
)

LAYERS = 5


def leaf(layer, path):
  shape = {'a/kernel': (7, 11), 'b': (1031,)}[path]
  return np.full(shape, layer + 1, np.float32) * (2 if path == 'b' else 1)


@pytest.fixture
def folder(tmp_path):
  first = {path: leaf(0, path) for path in ('a/kernel', 'b')}
  layout = layer_files.lay_out(first, LAYERS)
  layer_files.write(str(tmp_path), layout, leaf, {'weights': 'some'})
  return str(tmp_path)


def opened(folder, **settings):
  return weights_lib.LayerWeights(
    folder, config.StreamedWeightsConfig(**settings)
  )


@pytest.mark.parametrize(
  ('source', 'reads'),
  [('host', 'direct'), *(('disk', reads) for reads in streaming.READS)],
)
def test_what_is_taken_is_what_was_written(folder, source, reads):
  weights = opened(folder, resident_layers=2, source=source, reads=reads)
  order = [*range(LAYERS), 3, 4, *range(LAYERS)]
  weights.expect(order)
  for layer in order:
    taken = weights.take(layer)
    np.testing.assert_array_equal(
      taken.params['a']['kernel'], leaf(layer, 'a/kernel')
    )
    np.testing.assert_array_equal(taken.params['b'], leaf(layer, 'b'))
    weights.give_back(taken, taken.params['b'] + 0)
  assert weights.resident == (1, 3)
  assert weights.counts.taken == 7  # 0 2 4, 4, 0 2 4
  weights.close()


@pytest.mark.parametrize('source', streaming.SOURCES)
def test_another_order_drops_what_was_read_ahead(folder, source):
  weights = opened(folder, source=source)
  weights.expect([0, 1, 2])
  first = weights.take(0)
  weights.expect([3, 0])
  for layer in (3, 0):
    taken = weights.take(layer)
    assert float(taken.params['b'][0]) == 2 * (layer + 1)
    weights.give_back(taken, taken.params['b'])
    if layer == 3:
      weights.give_back(first, first.params['b'])
  weights.close()


def test_a_file_of_another_size_is_refused(folder):
  path = layer_files.path_of(folder, 3)
  os.truncate(path, 100)
  with pytest.raises(
    ValueError, match=r'layer_0003.* has 100 bytes, not 8,192'
  ):
    opened(folder)
  os.remove(path)
  with pytest.raises(ValueError, match=r'layer_0003.*cannot be read \(No such'):
    opened(folder)


@pytest.mark.parametrize('reads', streaming.READS)
def test_a_file_that_ends_early_ends_in_one_line(folder, reads):
  weights = opened(folder, buffers=1, reads=reads)
  os.truncate(layer_files.path_of(folder, 1), 4096)
  weights.expect([0, 1, 2])
  weights.give_back(weights.take(0), 0)
  with pytest.raises(
    ValueError, match=r'^weights of layer 1: .* ends at byte 4,096 of'
  ):
    weights.take(1)
  weights.expect([2])  # others can still be read
  assert float(weights.take(2).params['b'][0]) == 6
  weights.close()


def test_a_device_without_pinned_memory_is_told_so(folder, monkeypatch):
  monkeypatch.setattr(host.place, '__defaults__', ('none',))
  with pytest.raises(ValueError, match=r"has no memory 'none'.*--weights=str"):
    opened(folder, source='host')


def test_the_host_holds_what_does_not_stay(folder):
  weights = opened(folder, resident_layers=2, source='host')
  kinds = {
    leaf.sharding.memory_kind for leaf in jax.tree.leaves(weights._ring._layers)
  }
  assert kinds == {'pinned_host'} and sorted(weights._ring._layers) == [0, 2, 4]
  weights.expect([2])
  taken = weights.take(2)
  assert taken.params['b'].sharding.memory_kind != 'pinned_host'
  assert weights.counts.bytes_read == weights.layout.num_bytes


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('version', 1),
    ('sha256', ['00']),
    ('sha256', [0] * 5),
    ('num_layers', 0),
    ('num_bytes', 5000),
    ('places', []),
    ('notes', None),
    ('places', {'b': [0, [1031]]}),
    ('places', {'b': [8, [1031], 'float32']}),
    ('places', {'b': [0, [9999], 'float32']}),
    ('places', {'b': [0, [3], 'object']}),
    ('places', {'b': [0, ['3'], 'float32']}),
  ],
)
def test_a_damaged_manifest_is_refused(folder, name, value):
  path = os.path.join(folder, layer_files.MANIFEST)
  with open(path) as file:
    found = json.load(file)
  found[name] = value
  with open(path, 'w') as file:
    json.dump(found, file)
  with pytest.raises(ValueError, match=r'layers\.json.*written again'):
    layer_files.read_manifest(folder)


@pytest.mark.parametrize('text', ['', '{', '[]'])
def test_a_manifest_that_is_none_is_refused(folder, text):
  with open(os.path.join(folder, layer_files.MANIFEST), 'w') as file:
    file.write(text)
  with pytest.raises(ValueError, match=r'layers\.json.*remove the folder'):
    layer_files.read_manifest(folder)


def test_any_error_of_the_reader_reaches_who_waits():
  def read(layer, buffer):
    raise IndexError(f'no layer {layer}')

  heard = []

  def take():
    with pytest.raises(IndexError, match='no layer 7'):
      made.take(7)
    heard.append(True)

  made = ring.Ring(read, 4096, 1)
  made.expect([7])
  waits = threading.Thread(target=take, daemon=True)
  waits.start()
  waits.join(20)  # it would wait for ever
  assert heard
  made.close()


def test_a_budget_says_how_many_layers_stay():
  layout = layer_files.Layout({}, 4096, 10)
  ask = lambda budget, buffers=2: weights_lib.split(
    config.StreamedWeightsConfig(memory_budget=budget, buffers=buffers),
    layout,
    10_000,
  )
  assert ask(10_000 + 10 * 4096) == (10, 0)
  assert ask(10_000 + 10 * 4096 - 1) == (7, 2)
  assert ask(10_000 + 4096) == (0, 1)
  with pytest.raises(ValueError, match=r'accepted: 14,096 or more, 18,192 to'):
    ask(10_000 + 4095)


def test_layers_that_are_used_twice_stay_first():
  assert weights_lib.resident(6, 2, 3) == (4, 5)
  assert weights_lib.resident(6, 5, 3) == (0, 2, 3, 4, 5)
  assert weights_lib.resident(6, 6, 0) == tuple(range(6))
  assert weights_lib.resident(30, 3, 0) == (5, 15, 25)
