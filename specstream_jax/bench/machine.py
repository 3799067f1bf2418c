# SPDX-License-Identifier: Apache-2.0
"""What computed, in words: a time means nothing without it."""

import os
import platform

import jax

# Widest first; the first one that is there is named.
_VECTORS = ('avx512f', 'avx2', 'avx', 'asimd')


def describe(cpu_info: str = '/proc/cpuinfo') -> str:
  """The devices that jax computes on, such as '2 cores of …' or '8 × TPU v5e'.

  Of a CPU also the instructions that decide how fast a product of matrices is.

  Args:
    cpu_info: file in which Linux describes processors; where there is none,
      only the name of the architecture is known.
  """
  devices = jax.devices()
  if devices[0].platform != 'cpu':
    return f'{len(devices)} × {devices[0].device_kind}'
  facts = _facts(cpu_info)
  name = facts.get('model name') or platform.processor() or platform.machine()
  text = f'{_num_cores()} cores of {name}'
  flags = facts.get('flags', facts.get('Features', '')).split()
  vectors = next((flag for flag in _VECTORS if flag in flags), None)
  if vectors is None:
    return text
  amx = 'AMX' if 'amx_tile' in flags else 'no AMX'
  return f'{text} ({vectors.upper()}, {amx})'


def _num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _facts(path: str) -> dict[str, str]:
  """Name -> value of the first processor; none without the file."""
  try:
    with open(path) as file:
      first = file.read().strip().partition('\n\n')[0]
  except OSError:
    return {}
  pairs = (line.partition(':') for line in first.splitlines())
  return {name.strip(): value.strip() for name, _, value in pairs}
