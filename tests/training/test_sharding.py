# SPDX-License-Identifier: Apache-2.0
"""Eight virtual devices, and two processes of four, do what one device does."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import training_batches as tb
import xla_flags

from specstream_jax.data import records

SCRIPT = pathlib.Path(__file__).with_name('sharded_process.py')
NUM_STEPS = 6


@pytest.fixture(scope='module')
def record_folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('sharded') / 'records')
  sizes = np.random.default_rng(0).integers((1, 2), (6, 9), (61, 2)).tolist()
  metadata = {'task': 't', 'split': 'train', 'tokenizer_sha256': 'x'}
  records.write(tb.draw(sizes), folder, metadata=metadata)
  return folder


def start(mesh, folder, record_folder, *event, devices=8, job=()):
  """A process with that many devices; `job` is (port, processes, id)."""
  count = f'--xla_force_host_platform_device_count={devices}'
  env = os.environ | {
    'RECORDS': record_folder,
    'XLA_FLAGS': xla_flags.fast(count),
    'JAX_COMPILATION_CACHE_DIR': os.path.join(record_folder, '..', 'xla'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  if job:
    env |= {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{job[0]}',
      'JAX_NUM_PROCESSES': str(job[1]),
      'JAX_PROCESS_ID': str(job[2]),
    }
  return subprocess.Popen(
    [sys.executable, SCRIPT, mesh, str(folder), *event],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """What it printed, as JSON."""
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, err[-3000:]
  found = [line for line in out.splitlines() if line.startswith('{')]
  return json.loads(found[0]) if found else None  # Gloo prints, too


def pair(mesh, folder, record_folder, *event):
  """Two processes of four devices each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  return [
    start(mesh, folder, record_folder, *event, devices=4, job=(port, 2, i))
    for i in range(2)
  ]


def lines(folder):
  text = (pathlib.Path(folder) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def assert_same_losses(found, expected, rtol=1e-5):
  place = lambda line: (line['step'], line['split'])
  assert list(map(place, found)) == list(map(place, expected))
  for a, b in zip(found, expected, strict=True):
    for name in (name for name in b if name.startswith('loss/')):
      np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


def same_weights(found, expected):
  for path, norm in expected['norm'].items():
    np.testing.assert_allclose(found['norm'][path], norm, rtol=1e-5)


@pytest.fixture(scope='module')
def one_device(record_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp('one')
  found = finish(start('1,1,1', folder, record_folder, devices=1))
  return folder, found


@pytest.mark.slow
def test_eight_devices_learn_and_decode_as_one(
  one_device, record_folder, tmp_path
):
  folder, expected = one_device
  found = finish(start('2,2,2', tmp_path, record_folder))
  assert (expected['devices'], found['devices']) == (1, 8)
  assert len(lines(folder)) == NUM_STEPS + 2
  assert_same_losses(lines(tmp_path), lines(folder))
  same_weights(found, expected)
  assert found['tokens'] == expected['tokens']
  for temperature in ('0.0', '1.0'):
    tokens = found['tokens']
    assert tokens[f'streams {temperature}'] == tokens[f'none {temperature}']


@pytest.mark.slow
def test_killed_pair_resumes_on_other_meshes(
  one_device, record_folder, tmp_path
):
  """2 x 4 devices, killed with -9 in step 5; resumed on 2 x 4, 1 x 8, 1 x 1."""
  folder, expected = one_device
  killed = pair('2,2,2', tmp_path / 'run', record_folder, 'kill', '5')
  for process in killed:
    process.wait(timeout=600)
  assert all(process.returncode for process in killed)
  done = [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert '6' not in done and {'2', '4'} & set(done), done
  for name in ('alone', 'eight'):
    shutil.copytree(tmp_path / 'run', tmp_path / name)
  resumed = pair('2,2,2', tmp_path / 'run', record_folder)
  found, _ = [finish(process) for process in resumed]
  assert (found['devices'], found['processes']) == (8, 2)
  same_weights(found, expected)
  last = lambda where: [x for x in lines(where) if x['step'] > 4]
  assert_same_losses(last(tmp_path / 'run'), last(folder))
  for name, mesh, devices in (('alone', '1,1,1', 1), ('eight', '1,8,1', 8)):
    where = tmp_path / name
    other = finish(start(mesh, where, record_folder, devices=devices))
    assert (other['devices'], other['processes']) == (devices, 1)
    same_weights(other, expected)
    assert_same_losses(last(where), last(folder))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('127.0.0.1:9', 2, 1, 1), 'no coordinator at 127.0.0.1:9 within 1 s'),
    (('host', 2), 'wrong: coordinator address, process id'),
  ],
)
def test_a_job_that_cannot_start_says_why(arguments, message):
  code = (
    'from specstream_jax import processes\n'
    f'try: processes.initialize(*{arguments})\n'
    'except (ConnectionError, ValueError) as error: print(error)'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
  )
  assert message in found.stdout, found
