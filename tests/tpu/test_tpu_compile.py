# SPDX-License-Identifier: Apache-2.0
"""The compile command: meshes, tables, and, with libtpu, the TPU compiler."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from specstream_jax import config
from specstream_jax.tpu import compiling, programs

HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def compiled(**fields):
  return programs.Compiled('train step', 2.0, **fields)


def test_fits_compares_the_peak_with_the_chip():
  assert compiled(peak=5, capacity=5).fits
  assert not compiled(peak=6, capacity=5).fits
  assert not compiled(capacity=5, error='RESOURCE_EXHAUSTED').fits


def test_table_says_what_is_wrong():
  text = compiling.table(
    [
      compiled(
        peak=2**30,
        capacity=2**34,
        traffic=110,
        ideal=100,
        collectives={'all-gather': 3_000_000},
        copies=('%copy.1 = bf16[8] copy(%x)',),
      ),
      compiled(capacity=2**34, error='RESOURCE_EXHAUSTED: too much'),
    ]
  )
  assert '| 1.10 | all-gather 3 |' in text
  assert '| 6% |' in text
  assert '1 copies of weights or cache inside the loop' in text
  assert 'does not compile: RESOURCE_EXHAUSTED: too much' in text


@pytest.mark.parametrize('count', [1, 8, 12])
def test_every_mesh_covers_the_devices(count):
  meshes = compiling._meshes(count)
  assert len(set(meshes)) == len(meshes)
  for mesh in meshes:
    assert mesh.data * mesh.fsdp * mesh.tensor == count
  ways = [mesh.tensor for mesh in meshes]
  assert ways == sorted(ways)


def search(monkeypatch, job, fits):
  """Meshes that are tried when `fits(mesh)` says what the compiler would."""

  def compile_all(job, topology, programs, mesh):
    if job.model.num_kv_heads % mesh.tensor:
      raise ValueError('heads do not divide')
    yield compiled(peak=1 if fits(mesh) else 3, capacity=2)

  monkeypatch.setattr(compiling, 'devices', lambda _: range(8))
  monkeypatch.setattr(compiling, 'compile_all', compile_all)
  found = compiling.search_mesh(job, 'v5e:2x4', ['train'])
  return [(mesh.data, mesh.fsdp, mesh.tensor) for mesh, _ in found]


def llama13b(**fields):
  sizes = dict(
    vocab_size=32000,
    hidden_size=5120,
    intermediate_size=13824,
    num_layers=40,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
  )
  recipe = types.SimpleNamespace(train=config.TrainConfig(batch_size=8))
  model = config.ModelConfig(**(sizes | fields))
  return programs.Job(model, recipe)


def test_search_goes_from_few_splits_to_many_and_stops_where_it_fits(
  monkeypatch,
):
  # 26 GB of weights leave 16 GiB only when split.
  tried = search(monkeypatch, llama13b(), lambda mesh: mesh.fsdp == 8)
  assert tried == [(4, 2, 1), (2, 4, 1), (1, 8, 1)]
  tried = search(monkeypatch, llama13b(), lambda mesh: mesh.tensor == 4)
  assert tried[-1] == (2, 1, 4)


def test_search_passes_over_meshes_that_do_not_divide(monkeypatch):
  tried = search(monkeypatch, llama13b(num_kv_heads=2), lambda _: False)
  assert {tensor for _, _, tensor in tried} == {1, 2}
  job = llama13b()
  job.recipe.train = config.TrainConfig(batch_size=2)
  tried = search(monkeypatch, job, lambda _: False)
  assert {data * fsdp for data, fsdp, _ in tried} == {1, 2}


def test_search_refuses_an_unknown_program(monkeypatch):
  with pytest.raises(ValueError, match='unknown'):
    list(compiling.search_mesh(llama13b(), 'v5e:2x4', ['trian']))


def test_hbm_of_an_unknown_chip_is_refused():
  with pytest.raises(ValueError, match="no HBM size for 'v9'; known:"):
    compiling.capacity('v9:2x2')


def specstream(*args):
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}
  env.pop('XLA_FLAGS', None)
  return subprocess.run(
    [sys.executable, '-m', 'specstream_jax.cli.main', 'compile', *args],
    env=env,
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_without_sizes_it_says_what_to_give():
  done = specstream('--topology=v5e:2x4')
  assert done.returncode == 1
  assert 'give --recipe=llama2_7b' in done.stderr


@pytest.mark.skipif(HAS_LIBTPU, reason='libtpu is here')
def test_without_libtpu_it_says_what_to_install():
  done = specstream('--topology=v5e:2x4', f'--gin_file={CONFIGS}/llama2_7b.gin')
  assert done.returncode == 1
  assert 'specstream_jax[tpu_aot]' in done.stderr


@pytest.mark.skipif(not HAS_LIBTPU, reason='needs libtpu')
def test_a_small_model_compiles_for_a_slice(tmp_path):
  sizes = dict(
    hidden_size=512,
    intermediate_size=1024,
    vocab_size=4096,
    num_layers=4,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
  )
  path = tmp_path / 'found.json'
  done = specstream(
    '--topology=v5e:2x4',
    f'--gin_file={CONFIGS}/llama.gin',
    '--prompt_length=128',
    '--max_new_tokens=32',
    '--gin.StreamConfig.num_msa_layers=2',
    '--gin.DataConfig.sequence_length=256',
    f'--output={path}',
    *(f'--gin.ModelConfig.{name}={value}' for name, value in sizes.items()),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  names = [one['name'] for one in json.loads(path.read_text())]
  assert names == ['train step', 'prefill', 'decode step, 16 nodes']
  fields = {field.name for field in dataclasses.fields(programs.Compiled)}
  assert set(json.loads(path.read_text())[0]) == fields


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason='needs libtpu')
def test_int8_weights_are_read_as_they_are_stored(tmp_path):
  """A step reads half of bfloat16's weights, and none is written wide."""
  found = {}
  for name in ('', 'int8'):
    path = tmp_path / f'found{name}.json'
    done = specstream(
      '--topology=v5e:2x4',
      f'--gin_file={CONFIGS}/llama2_7b.gin',
      '--gin.ModelConfig.num_layers=2',
      '--gin.StreamConfig.num_msa_layers=1',
      '--prompt_length=64',
      '--max_new_tokens=64',
      '--rows=1',
      '--gin.MeshConfig.fsdp=1',
      '--gin.MeshConfig.tensor=8',
      '--programs=plain',
      f'--weights_dtype={name}',
      f'--output={path}',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found[name] = json.loads(path.read_text())
  for wide, narrow in zip(found[''], found['int8'], strict=True):
    assert narrow['ideal'] < 0.55 * wide['ideal']
    assert narrow['traffic'] < 1.1 * narrow['ideal']
    assert narrow['temporaries'] < 0.1 * wide['arguments']
    assert not narrow['copies'] and not narrow['copies_before']
