# SPDX-License-Identifier: Apache-2.0
"""Meshes and rules as data; no more than one device is needed here."""

import dataclasses
import types

import gin
import jax
import numpy as np
import pytest
import tiny

from specstream_jax import mesh as mesh_lib, partitioning, sampling
from specstream_jax.data import batches
from specstream_jax.modeling import heads as heads_lib, params


def abstract_partitioner(data=2, fsdp=2, tensor=2, rules=None):
  """A partitioner of a mesh without devices: enough for names and sizes."""
  made = partitioning.Partitioner(
    mesh_lib.make_mesh(mesh_lib.MeshConfig()), rules
  )
  mesh = jax.sharding.AbstractMesh((data, fsdp, tensor), mesh_lib.MESH_AXES)
  made.mesh = mesh
  return made


@pytest.mark.parametrize(
  'sizes, num_devices, expected',
  [
    ({'data': -1}, 8, (8, 1, 1)),
    ({'data': 2, 'fsdp': -1, 'tensor': 2}, 8, (2, 2, 2)),
    ({'fsdp': 4, 'tensor': -1, 'dcn_data': 2}, 16, (1, 4, 2)),
    ({}, 1, (1, 1, 1)),
  ],
)
def test_mesh_sizes(sizes, num_devices, expected):
  assert mesh_lib.MeshConfig(**sizes).sizes(num_devices) == expected


@pytest.mark.parametrize(
  'bound, asked', [(None, (1, 1)), (-1, (8, 8)), (8, (8, 8))]
)
def test_a_mesh_that_gin_names_takes_all_devices(monkeypatch, bound, asked):
  seen = []

  def create(sizes, devices, **_):
    seen.append((max(sizes), len(devices)))
    return np.array(jax.devices()[:1]).reshape(1, 1, 1)

  monkeypatch.setattr(mesh_lib.mesh_utils, 'create_device_mesh', create)
  device = types.SimpleNamespace(process_index=0)
  try:
    if bound is not None:
      gin.bind_parameter('MeshConfig.tensor', bound)
    mesh_lib.make_mesh(mesh_lib.MeshConfig(), [device] * 8)
  finally:
    gin.clear_config()
  assert seen == [asked]


@pytest.mark.parametrize(
  'sizes', [{'data': 3}, {'tensor': 16}, {'data': -1, 'tensor': 5}]
)
def test_mesh_that_does_not_divide_the_devices(sizes):
  cfg = mesh_lib.MeshConfig(**sizes)
  with pytest.raises(ValueError, match='does not divide the 8 devices'):
    cfg.sizes(8)


@pytest.mark.parametrize(
  'sizes, message',
  [
    ({'data': -1, 'fsdp': -1}, 'one may be -1'),
    ({'tensor': 0}, 'MeshConfig.tensor is 0; it must be an integer >= 1'),
    ({'dcn_data': -1}, 'MeshConfig.dcn_data is -1; it must be'),
  ],
)
def test_bad_mesh_settings(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.MeshConfig(**sizes)


def test_one_device_is_the_default():
  assert partitioning.default().is_single


def test_unknown_logical_axis_lists_the_rules():
  with pytest.raises(ValueError, match=r"no axis rule for \['head'\].*'heads'"):
    partitioning.AxisRules().spec(('head',))


def test_rule_for_an_axis_that_no_mesh_has():
  with pytest.raises(ValueError, match=r"maps 'mlp' to .*'model'"):
    partitioning.AxisRules(rules=(('mlp', 'model'),))


def test_unknown_parameter_is_named():
  with pytest.raises(
    ValueError, match="no logical axes for parameter 'layers/0/x'"
  ):
    partitioning.logical_axes('layers/0/x')


def test_every_parameter_has_axes():
  _, base, adapter = tiny.model(
    dataclasses.replace(tiny.CONFIG, tie_word_embeddings=False),
    dataclasses.replace(tiny.STREAMS, coupling_rank=2),
  )
  heads = heads_lib.build(tiny.CONFIG, 2).shapes
  for tree in (base, adapter, heads):
    for path, leaf in params.flatten(tree).items():
      assert len(partitioning.logical_axes(path)) == leaf.ndim, path


def test_heads_that_do_not_divide_name_both():
  part = abstract_partitioner(1, 1, 4)
  part.check_fits(8, 4)
  with pytest.raises(ValueError, match=r'9 heads.*not divisible by the 4 ways'):
    part.check_fits(9, 4)
  with pytest.raises(ValueError, match=r"2 kv_heads.*\('kv_heads', None\)"):
    part.check_fits(8, 2)


def test_a_size_that_does_not_divide_names_the_weight():
  part = abstract_partitioner(1, 1, 2)
  shape = jax.ShapeDtypeStruct((53, 22), np.float32)
  with pytest.raises(ValueError, match=r'embed/embedding \(53, 22\): vocab'):
    part.shardings({'embed/embedding': shape})


def test_batch_that_does_not_split_is_refused():
  with pytest.raises(ValueError, match='6 rows cannot be split into 4 equal'):
    batches.GlobalBatches(None, 6, 1, (0, 1), 4)


def test_rows_that_do_not_divide_name_both():
  part = abstract_partitioner(2, 2, 3)
  part.check_rows(8)
  with pytest.raises(ValueError, match=r'of 6 rows: .*divisible by the 4 ways'):
    part.check_rows(6)


@pytest.mark.parametrize('ways', [2, 4])
def test_top_k_of_a_split_vocabulary(monkeypatch, ways):
  """Values and ids of the plain one; among equals, the smaller id first."""
  scores = np.random.default_rng(0).integers(0, 9, (3, 5, 64)).astype('float32')
  expected = jax.lax.top_k(scores, 7)
  monkeypatch.setattr(partitioning, 'num_shards', lambda axis, size: ways)
  found = sampling.top_k(scores, 7)
  jax.tree.map(np.testing.assert_array_equal, found, tuple(expected))
