# SPDX-License-Identifier: Apache-2.0
"""Of what TensorFlow writes on import only what is of concern comes through."""

import os
import sys

import pytest

from specstream_jax.data import quiet

NOISE = (
  'WARNING: All log messages before absl::InitializeLog() is called are …',
  'I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on. You may …',
  'I0000 00:00:1.2 3 cudart_stub.cc:31] Could not find cuda drivers on your …',
  'E0000 00:00:1.2 3 cuda_platform.cc:52] failed call to cuInit: INTERNAL: …',
)


def test_known_lines_go_and_others_stay(capfd):
  with quiet.filtered():
    for line in NOISE:
      os.write(2, f'{line}\n'.encode())
    print('of Python', file=sys.stderr)
    os.write(2, b'E0000 disk is on fire\n')
  print('after', file=sys.stderr)
  assert capfd.readouterr().err == 'of Python\nE0000 disk is on fire\nafter\n'


def test_an_error_inside_is_raised_and_nothing_is_lost(capfd):
  with pytest.raises(ImportError), quiet.filtered():
    os.write(2, b'why\n')
    raise ImportError
  assert capfd.readouterr().err == 'why\n'
