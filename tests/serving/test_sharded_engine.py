# SPDX-License-Identifier: Apache-2.0
"""An engine whose model is split over eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import xla_flags

SCRIPT = pathlib.Path(__file__).with_name('sharded_engine.py')


@pytest.mark.slow
def test_it_says_what_one_device_says_and_compiles_nothing():
  tests = SCRIPT.parents[1]
  count = '--xla_force_host_platform_device_count=8'
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(tests.parent), str(tests)]),
    'XLA_FLAGS': xla_flags.fast(count),
  }
  done = subprocess.run(
    [sys.executable, SCRIPT], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  eight, one = found['eight'], found['one']
  assert (eight['devices'], one['devices']) == (8, 1)
  assert (eight['heads'], one['heads']) == (1, 8)  # of the cache, on a device
  assert eight['tokens'] == one['tokens']
  assert eight['scores'] == pytest.approx(one['scores'], rel=1e-5)
  for side in (eight, one):
    assert side['heard'] > 0
    assert not side['compiled']
