# SPDX-License-Identifier: Apache-2.0
"""XLA's flags for tiny models, whose time is the compiler's."""

import jaxlib.version

_FAST = [
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
# Fusions through LLVM alone compile in half the time; later XLA has no choice
# and ends the process at a flag that it does not know.
if jaxlib.version.__version_info__ < (0, 11):
  _FAST.append('--xla_cpu_use_fusion_emitters=false')


def fast(*more):
  """The value of XLA_FLAGS: little time in the compiler, and `more`."""
  return ' '.join([*_FAST, *more])
