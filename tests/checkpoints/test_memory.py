# SPDX-License-Identifier: Apache-2.0
"""Loading onto several devices holds a tensor at a time, not a second model."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.smollm]

CODE = """
import re, threading, time
import jax
from specstream_jax import mesh, partitioning
from specstream_jax.checkpoints import loading

part = partitioning.Partitioner(mesh.make_mesh(mesh.MeshConfig(fsdp=8)))
jax.numpy.zeros(3).block_until_ready()

def anonymous():
  status = open('/proc/self/status').read()
  return int(re.search(r'RssAnon:\\s+(\\d+)', status)[1]) * 1024

before, peak = anonymous(), [0]

def watch():
  while True:
    peak[0] = max(peak[0], anonymous())
    time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
loaded = loading.load_model('smollm2-135m-instruct', lazy=True)
flat = part.put(loaded.params)
for leaf in flat.values():
  assert len(leaf.sharding.device_set) == 8
size = sum(leaf.nbytes for leaf in flat.values())
print(size, peak[0] - before)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='Linux')
def test_loading_onto_eight_devices_takes_little_more_than_the_model():
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  done = subprocess.run(
    [sys.executable, '-c', CODE], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  size, peak = map(int, done.stdout.split())
  assert size > 400e6  # 135 M parameters, float32, the whole model
  assert peak < 1.3 * size, (size, peak)
