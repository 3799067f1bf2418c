# SPDX-License-Identifier: Apache-2.0
"""The verifier that a drafter's settings name."""

from specstream_jax import config_drafting
from specstream_jax.decoding import interface, verify


def make(cfg: config_drafting.DrafterConfig) -> interface.Verifier:
  """The rule of `cfg.verifier`, ready for `interface.Setup`."""
  return {'walk': verify.walk}[cfg.verifier]
