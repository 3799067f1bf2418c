# SPDX-License-Identifier: Apache-2.0
"""The decoder of a model whose layers pass through memory.

The tokens are those of resident weights.
"""

import functools
from typing import Any

from specstream_jax import config
from specstream_jax.decoding import (
  decoder as decoder_lib,
  interface,
  verify,
)
from specstream_jax.streaming import (
  driver as driver_lib,
  weights as weights_lib,
)


class StreamedDecoder(decoder_lib.Decoder):
  """As `Decoder`; `params` hold no layers but those of the adapter.

  Attributes:
    driver: what runs prompts and steps.
  """

  def __init__(
    self,
    model: interface.ModelFns,
    drafter: interface.Drafter,
    cfg: config.DecodeConfig,
    weights: weights_lib.Source,
    sampling_cfg: config.SamplingConfig = config.SamplingConfig(),
    *,
    prompt_model: interface.ModelFns,
    verifier: interface.Verifier = verify.walk,
    params: Any = None,
    most_positions: int = 0,
  ):
    """Takes what `Decoder` takes, and where the layers come from."""
    whole = interface.DecodeSetup(model, prompt_model, drafter, cfg, verifier)
    setup, runs = driver_lib.take_apart(whole, weights)
    super().__init__(
      setup.model,
      drafter,
      cfg,
      sampling_cfg,
      prompt_model=setup.prompt_model,
      verifier=verifier,
      params=params,
      most_positions=most_positions,
    )
    self.weights = weights
    self.driver = driver_lib.Driver(setup, runs, self._jit)
    self._prefill, self._run = self.driver.prefill, self.driver.run

  def _jit(self, fun, **named):
    """Every trace counts as a compilation."""

    @functools.wraps(fun)
    def traced(*args, **kwargs):
      self.num_compilations += 1
      return fun(*args, **kwargs)

    return self._partitioner.jit(traced, **named)
