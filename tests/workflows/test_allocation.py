# SPDX-License-Identifier: Apache-2.0
"""A command that trains asks for memory that is kept, and nothing else does."""

import json
import os
import subprocess
import sys

import pytest

from specstream_jax.cli import allocation

SHOW = """
import json, os, sys
from specstream_jax.cli import allocation
allocation._has_accelerator = lambda: sys.argv[1] == 'yes'
print('before', flush=True)
allocation.settle()
print(json.dumps([os.getpid(), sys.argv[2], dict(os.environ)]))
"""


def settled(has_accelerator='no', **environment):
  """(process id of the start, what the process says at its end, lines)."""
  clean = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  clean.pop('JAX_PLATFORMS', None)
  clean = {k: v for k, v in clean.items() if not k.startswith('MALLOC_')}
  started = subprocess.Popen(
    [sys.executable, '-c', SHOW, has_accelerator, 'a b'],
    stdout=subprocess.PIPE,
    text=True,
    env={**clean, **environment},
  )
  *before, last = started.communicate(timeout=120)[0].splitlines()
  return started.pid, json.loads(last), len(before)


@pytest.mark.skipif(not allocation._is_glibc(), reason='of glibc')
def test_a_process_starts_again_once_with_the_settings():
  pid, (found, word, environment), lines = settled()
  assert (found, word, lines) == (pid, 'a b', 2)
  assert 'glibc.malloc.arena_max=1' in environment['GLIBC_TUNABLES'].split(':')
  assert settled('yes', JAX_PLATFORMS='cpu')[2] == 2


@pytest.mark.parametrize(
  ('has_accelerator', 'environment'),
  [
    ('yes', {}),
    ('no', {'JAX_PLATFORMS': 'tpu'}),
    ('no', {'GLIBC_TUNABLES': ''}),
    ('no', {'MALLOC_ARENA_MAX': '2'}),
  ],
)
def test_it_goes_on_as_it_is(has_accelerator, environment):
  _, (_, _, found), lines = settled(has_accelerator, **environment)
  assert lines == 1
  assert found.get('GLIBC_TUNABLES') == environment.get('GLIBC_TUNABLES')
