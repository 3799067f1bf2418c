# SPDX-License-Identifier: Apache-2.0
"""What a process that trains on a CPU asks of the C library's malloc.

XLA gives a step's buffers back and takes them again in the next step. As glibc
is set, they go to the system in between, and each comes back page by page; see
docs/LOG.md for what that costs.
"""

from collections.abc import Mapping
import importlib.metadata
import importlib.util
import os
import sys

_TUNABLES = 'GLIBC_TUNABLES'
SETTINGS = {
  'hugetlb': 1,  # ask for huge pages
  'mmap_threshold': 8 << 30,
  'trim_threshold': 16 << 30,
  'arena_max': 1,  # or freed memory of one thread is of no use to another
}


def settle() -> None:
  """Starts the process anew with `SETTINGS`, where they help.

  The same process id, arguments and files. Nothing is done if the environment
  says anything about malloc, even nothing: GLIBC_TUNABLES= keeps this away.
  """
  if not _helps(os.environ):
    return
  words = (f'glibc.malloc.{name}={value}' for name, value in SETTINGS.items())
  environment = {**os.environ, _TUNABLES: ':'.join(words)}
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _helps(environment: Mapping[str, str]) -> bool:
  """Whether this is glibc, on its defaults, and JAX computes on the CPU."""
  is_set = _TUNABLES in environment or any(
    name.startswith('MALLOC_') for name in environment
  )
  if is_set or not sys.executable or not _is_glibc():
    return False
  platforms = environment.get('JAX_PLATFORMS', '')
  return platforms == 'cpu' if platforms else not _has_accelerator()


def _is_glibc() -> bool:
  try:
    return bool(os.confstr('CS_GNU_LIBC_VERSION'))
  except (AttributeError, OSError, ValueError):
    return False


def _has_accelerator() -> bool:
  """Whether JAX may find another device, told without asking it."""
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return bool(plugins) or importlib.util.find_spec('libtpu') is not None
