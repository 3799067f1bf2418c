# SPDX-License-Identifier: Apache-2.0
"""Settings of every test: CPU, and little time in the compiler."""

import contextlib
import os

# torch's CUDA build brings triton, which ends the process if it is loaded after
# TensorFlow.
with contextlib.suppress(ImportError):
  import triton  # noqa: F401

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest
import xla_flags


def pytest_configure(config):
  # Tiny models spend their time in LLVM; unoptimised code halves a run. The
  # slow tests decode with a real model, which wants the opposite. XLA reads
  # this with its first computation.
  if config.option.markexpr == 'not slow':
    os.environ.setdefault('XLA_FLAGS', xla_flags.fast())


# Files of one or a few long tests. Workers take files in order, so these come
# first: at the end, others would wait for them.
_LONG = (
  'test_sharding',
  'test_local_pod',
  'test_colab_runs',
  'test_smollm',
  'test_readme',
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in _LONG)


@pytest.fixture(autouse=True)
def rank_promotion():
  """Own code broadcasts explicitly where it matters; warn about the rest."""
  with jax.numpy_rank_promotion('raise'):
    yield
