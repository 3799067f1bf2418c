# SPDX-License-Identifier: Apache-2.0
"""What a call costs where weights are streamed: timed in parts, then added up.

A call is timed without reading, reading without calls (`streaming.gauge`), and
`streaming.cost` says what both cost together. So tuning reads a few layers, not
every layer for every call that it times.
"""

from collections.abc import Sequence
from typing import Any

from specstream_jax import config, drafters, runtime
from specstream_jax.config import checks, drafting as config_drafting
from specstream_jax.streaming import cost, decoder, gauge, loading

SCHEDULES = ('parallel', 'deferred')


def check(schedules: Sequence[str]) -> None:
  """Raises ValueError if the cost of a schedule cannot be told beforehand."""
  checks.check(
    'likely' not in schedules,
    "schedules names 'likely', of which nobody knows beforehand how often it reads "
    f'layers twice; accepted with streamed weights: {", ".join(SCHEDULES)}; '
    'measure it with specstream bench',
  )


class Costs:
  """What calls of a model with streamed weights cost."""

  def __init__(self, model: runtime.Model):
    """Times the reading of a few layers."""
    weights = model.streamed
    assert weights is not None
    self._model, self._one = model, gauge.OneLayer(weights)
    self._read_seconds = gauge.read_seconds(weights)
    self._made: dict[Any, decoder.StreamedDecoder] = {}

  def seconds(
    self,
    drafter: str,
    decode: config.DecodeConfig,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int,
    sampling: config.SamplingConfig,
  ) -> float:
    """Seconds of a call.

    Args:
      drafter: as `Model.decoder` takes it.
      decode: sizes, and the schedule.
      prompts: token ids of each row.
      seed: of the noise.
      sampling: how tokens are drawn.
    """
    key = drafter, decode
    if key not in self._made:
      self._made[key] = self._decoder(drafter, decode)
    made, weights = self._made[key], self._model.streamed
    assert weights is not None
    found = gauge.compute(
      made, self._one, prompts, seed=seed, sampling=sampling
    )
    step = made.driver.runs.step
    layers = cost.Layers(
      step.num_layers,
      step.first_msa,
      weights.resident,
      self._read_seconds,
      weights.num_buffers,
    )
    return cost.call_seconds(found, layers)

  def _decoder(self, drafter, decode):
    model = self._model
    cfg = config_drafting.parse(drafter, model.tree)
    made = drafters.load(model, cfg, decode)
    return loading.make_decoder(
      made, cfg, decode, self._one, model.config.most_positions
    )


def in_words(model: runtime.Model) -> str:
  """How the weights of a model are streamed, as a place of what was tuned."""
  weights = model.streamed
  if weights is None:
    return ''
  return (
    f', {len(weights.resident)} of {weights.layout.num_layers} layers stay, '
    f'{weights.num_buffers} buffers, others on {weights.cfg.source}'
  )
