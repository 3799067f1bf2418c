# SPDX-License-Identifier: Apache-2.0
"""The verifier that a drafter's settings name."""

import functools

from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  interface,
  rejection,
  synthetic,
  typical,
  verify,
)


def make(cfg: config_drafting.DrafterConfig) -> interface.Verifier:
  """The rule of `cfg.verifier`, ready for a decoder."""
  if cfg.synthetic_acceptance:
    return functools.partial(
      synthetic.synthetic, acceptance=cfg.synthetic_acceptance
    )
  return {
    'walk': verify.walk,
    'recursive_rejection': rejection.recursive_rejection,
    'multi_step': rejection.multi_step,
    'typical': functools.partial(
      typical.typical,
      epsilon=cfg.typical_epsilon,
      delta=cfg.typical_delta,
    ),
  }[cfg.verifier]
