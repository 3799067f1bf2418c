# SPDX-License-Identifier: Apache-2.0
"""Training as a job of two processes, started by the launcher, end to end."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import byte_model
import numpy as np
import pytest
import xla_flags

from specstream_jax.checkpoints import adapters

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local_pod.sh'
SETTINGS = {
  'StreamConfig.num_streams': 2,
  'StreamConfig.num_msa_layers': 2,
  'StreamConfig.pruning_rank': 0,
  'LoraConfig.rank': 2,
  'ObjectiveConfig.anchors_per_sequence': 16,
  'ObjectiveConfig.chunk_size': 64,
  'TreeConfig.depth': 2,
  'TreeConfig.num_nodes': 4,
  'TrainConfig.batch_size': 4,
  'TrainConfig.log_every': 1,
  'TrainConfig.save_every': 2,
  'DataConfig.sequence_length': 32,
  'DataConfig.eval_batch_size': 4,
  'MeshConfig.data': 2,
  'MeshConfig.fsdp': 2,
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pod')
  cfg = byte_model.model_config()
  byte_model.write_model(folder / 'model', cfg)
  rows = [('sky', ' the sky is blue'), ('colour', ' of the sky')] * 12
  byte_model.write_records(folder / 'records', rows)
  # The launcher calls `specstream` by its name, installed or not.
  program = folder / 'bin' / 'specstream'
  program.parent.mkdir()
  program.write_text(
    f'#!/bin/sh\nexec {sys.executable} -m specstream_jax.cli.main "$@"\n'
  )
  program.chmod(0o755)
  return folder


def start(root, *arguments, **settings):
  """The launcher with two processes of two devices."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  gin = {**SETTINGS, **settings}
  env = os.environ | {
    'PATH': f'{root}/bin:{os.environ["PATH"]}',
    'XLA_FLAGS': xla_flags.fast(),
    'SPECSTREAM_COMPILATION_CACHE': str(root / 'xla'),
    'PYTHONPATH': str(LAUNCHER.parents[1]),
  }
  return subprocess.Popen(
    [
      LAUNCHER,
      *('--processes=2', '--devices=2', f'--port={port}', 'train'),
      f'--model={root}/model',
      f'--data_dir={root}/records',
      f'--output_dir={root}/run',
      *arguments,
      *(f'--gin.{name}={value}' for name, value in gin.items()),
    ],
    cwd=root,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def steps(root):
  path = root / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  found = [json.loads(line) for line in lines]
  return [line['step'] for line in found if line['split'] == 'train']


@pytest.mark.slow
def test_stopped_job_resumes_and_exports(root):
  long_run = {'TrainConfig.num_steps': 100_000}
  first = start(root, **long_run)
  end = time.monotonic() + 300
  while len(steps(root)) < 4 and time.monotonic() < end:
    assert first.poll() is None, first.communicate()[0][-3000:]
    time.sleep(0.1)
  first.send_signal(signal.SIGTERM)  # reaches all, who agree on a step
  out, _ = first.communicate(timeout=300)
  other = (root / 'local_pod.1.log').read_text()
  assert 'run the same command to resume' in out, (out[-3000:], other[-3000:])
  saved = [int(p.name) for p in (root / 'run' / 'checkpoints').iterdir()]
  num_steps = max(saved) + 3
  refused = start(root, **long_run, **{'LoraConfig.rank': 4})
  out, _ = refused.communicate(timeout=300)
  assert refused.returncode and 'lora.rank' in out, out[-3000:]
  last = {'TrainConfig.num_steps': num_steps}
  other_way = ('--scan_layers', '--remat=full')  # of the same computation
  again = start(root, f'--eval_data_dir={root}/records', *other_way, **last)
  out, _ = again.communicate(timeout=300)
  assert again.returncode == 0, out[-3000:]
  assert f'after {num_steps} steps' in out
  assert steps(root) == list(range(1, num_steps + 1))
  flat, cfg = adapters.load_adapter(str(root / 'run' / 'adapter'))
  assert cfg.stream.num_streams == 2
  assert all(np.isfinite(leaf).all() for leaf in flat.values())
  assert flat['streams/embedding'].shape == (2, 24)
