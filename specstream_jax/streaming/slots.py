# SPDX-License-Identifier: Apache-2.0
"""A running batch of a model whose layers pass through memory.

One pass over the layers serves all rows, so they share the reading.
"""

from collections.abc import Callable
import functools
from typing import Any

from specstream_jax import partitioning
from specstream_jax.decoding import (
  batch_sizes,
  interface,
  plain as plain_lib,
  slots,
)
from specstream_jax.modeling import cache as cache_lib
from specstream_jax.streaming import (
  driver as driver_lib,
  weights as weights_lib,
)


class StreamedSlots(slots.SlotDecoder):
  """As `SlotDecoder`, for rows that have no weights of layers in common.

  Attributes:
    driver: what reads prompts and takes steps.
  """

  def __init__(
    self,
    setup: interface.DecodeSetup,
    weights: weights_lib.Source,
    *,
    plain: interface.DecodeSetup | None = None,
    **sizes: Any,
  ):
    """Takes what `SlotDecoder` takes but `solo`, and where layers come from."""
    setup, self._runs = driver_lib.take_apart(setup, weights)
    if plain is not None:
      plain = plain_lib.without_drafts(setup)
    super().__init__(setup, plain=plain, **sizes)

  def _driver(self, setup, part) -> driver_lib.Driver:
    def jit(fun, **named):
      return part.jit(self._counted(fun), **named)

    return driver_lib.Driver(setup, self._runs, jit)

  def _make_programs(self, part: partitioning.Partitioner) -> None:
    super()._make_programs(part)
    self.driver = self._driver(self.setup, part)
    self._read, self._begin = self.driver.read_on, self.driver.begin_row

  def _make_steps(
    self,
    plain: interface.DecodeSetup | None,
    part: partitioning.Partitioner,
  ) -> dict[tuple[bool, bool], Callable[..., Any]]:
    steps: dict[tuple[bool, bool], Callable[..., Any]] = {}
    steps[False, True] = self.driver.run
    if plain is not None:
      driver = self._driver(plain, part)
      steps[False, False] = functools.partial(driver_lib.run_plain, driver)
    return steps

  def _compile_steps(
    self,
    shape: batch_sizes.Shape,
    params: Callable[[batch_sizes.Shape, bool], Any],
  ) -> None:
    """Takes a step of each kind, as none would compile nothing here."""
    for is_greedy in (False, True):
      self._is_greedy[0] = is_greedy
      for way in self._ways(shape):
        self.advance(params(shape, way), 1, kind=shape.kind, has_drafts=way)

  def read_chunk(
    self, params: Any, cache: cache_lib.Cache, tokens: Any, counts: Any
  ) -> interface.Forward:
    """A pass over what comes next of a text, see `chunks.read_chunk`."""
    return self.driver.read_chunk(params, cache, tokens, counts)
