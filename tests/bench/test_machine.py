# SPDX-License-Identifier: Apache-2.0
"""The machine by its name."""

import types

import jax

from specstream_jax.bench import machine, results

XEON = """processor\t: 0
model name\t: Fast(R) Processor @ 2.50GHz
flags\t\t: fpu sse avx avx2 avx512f amx_tile

processor\t: 1
model name\t: another
"""


def test_a_processor_and_what_it_can(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, '_num_cores', lambda: 7)
  path = tmp_path / 'cpuinfo'
  path.write_text(XEON)
  name = '7 cores of Fast(R) Processor @ 2.50GHz'
  assert machine.describe(str(path)) == f'{name} (AVX512F, AMX)'
  path.write_text(XEON.replace(' avx512f amx_tile', ''))
  assert machine.describe(str(path)) == f'{name} (AVX2, no AMX)'
  path.write_text(XEON.replace('flags', 'words'))
  assert machine.describe(str(path)) == name


def test_without_the_file_there_is_the_architecture(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, '_num_cores', lambda: 3)
  monkeypatch.setattr(machine.platform, 'processor', lambda: '')
  monkeypatch.setattr(machine.platform, 'machine', lambda: 'x86_64')
  assert machine.describe(str(tmp_path / 'none')) == '3 cores of x86_64'


def test_an_accelerator(monkeypatch):
  chip = types.SimpleNamespace(platform='tpu', device_kind='TPU v5e')
  monkeypatch.setattr(jax, 'devices', lambda: [chip] * 8)
  assert machine.describe() == '8 × TPU v5e'


def test_results_say_it():
  assert results.environment()['processor'] == machine.describe()
