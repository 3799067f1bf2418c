# SPDX-License-Identifier: Apache-2.0
"""Append and commit, row by row."""

import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.modeling import cache as cache_lib

BATCH, SLOTS, NODES = 3, 13, 5
MODEL = config.ModelConfig(
  vocab_size=11,
  hidden_size=10,
  intermediate_size=17,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
)


def _random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_append_writes_at_each_rows_own_start():
  layer = _random(BATCH, 2, SLOTS, 6)
  new, start = _random(BATCH, NODES, 2, 6), [0, 3, 7]
  got = cache_lib.append(jnp.asarray(layer), jnp.asarray(new), jnp.array(start))
  want = layer.copy()
  for row in range(BATCH):
    for i in range(NODES):
      want[row, :, start[row] + i] = new[row, i]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('write', ['_write_at_once', '_write_in_turn'])
def test_both_ways_to_append(write):
  """One is of TPUs alone. A start beyond the end is moved down."""
  layer, new = _random(BATCH, 2, SLOTS, 6), _random(BATCH, 2, NODES, 6)
  start = jnp.array([4, 0, SLOTS - 1])
  got = getattr(cache_lib, write)(jnp.asarray(layer), jnp.asarray(new), start)
  want = layer.copy()
  for row, slot in enumerate((4, 0, SLOTS - NODES)):
    want[row, :, slot : slot + NODES] = new[row]
  np.testing.assert_array_equal(got, want)


def test_layers_before_pruning_number_nodes_their_own_way():
  layers = [_random(1, 2, SLOTS, 6) + i for i in range(4)]
  cache = cache_lib.Cache(
    tuple(map(jnp.asarray, layers[:2])),
    tuple(map(jnp.asarray, layers[2:])),
    jnp.array([3]),
  )
  early = 1, jnp.array([[0, 2, 4]])
  got = cache_lib.commit(cache, jnp.array([[0, 1, 2]]), jnp.array([2]), early)
  assert got.length.tolist() == [6]
  slots = {0: [3, 5, 7], 1: [3, 4, 5]}
  for name in ('keys', 'values'):
    for i in range(2):
      before, after = getattr(cache, name)[i], getattr(got, name)[i]
      np.testing.assert_array_equal(after[:, :, 3:6], before[:, :, slots[i]])


def test_one_node_lies_where_it_belongs():
  cache = cache_lib.init(MODEL, BATCH, SLOTS, 'float32')
  path, accept_length = jnp.zeros((BATCH, 1), int), jnp.array([0, -1, 0])
  got = cache_lib.commit(cache, path, accept_length)
  assert got.length.tolist() == [1, 0, 1]


def test_commit_keeps_the_accepted_path():
  start, accept = np.array([2, 0, 7]), np.array([2, -1, 0])
  path = np.array([[0, 2, 4], [0, 1, 3], [0, 0, 0]])
  shape = (BATCH, 2, SLOTS, 6)
  layers = [_random(*shape) + i for i in range(4)]
  cache = cache_lib.Cache(
    tuple(map(jnp.asarray, layers[:2])),
    tuple(map(jnp.asarray, layers[2:])),
    jnp.asarray(start),
  )
  got = cache_lib.commit(cache, jnp.asarray(path), jnp.asarray(accept))
  assert got.length.tolist() == [5, 0, 8]
  for before, after in zip(layers, got.keys + got.values, strict=True):
    for row in range(BATCH):
      want = before[row, :, : got.length[row]].copy()
      for i in range(accept[row] + 1):
        want[:, start[row] + i] = before[row, :, start[row] + path[row, i]]
      np.testing.assert_array_equal(after[row, :, : got.length[row]], want)


def test_init_is_empty():
  cache = cache_lib.init(MODEL, BATCH, SLOTS, 'bfloat16')
  assert len(cache.keys) == len(cache.values) == 2
  assert cache.keys[0].shape == (BATCH, 2, SLOTS, 6)
  assert cache.values[1].dtype == jnp.bfloat16
  assert cache.num_slots == SLOTS
  assert cache.length.tolist() == [0, 0, 0]
