# SPDX-License-Identifier: Apache-2.0
"""Settings of every test: CPU, no silent broadcasting between ranks."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest


@pytest.fixture(autouse=True)
def rank_promotion():
  """Own code broadcasts explicitly where it matters; warn about the rest."""
  with jax.numpy_rank_promotion('allow'):
    yield
