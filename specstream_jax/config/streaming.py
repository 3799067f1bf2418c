# SPDX-License-Identifier: Apache-2.0
"""Weights that pass through memory layer by layer."""

import dataclasses

import gin

from specstream_jax.config import bounds, checks

_MOST_BYTES = 1 << 50
SOURCES = ('disk', 'host')
READS = ('direct', 'drop', 'cache')


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class StreamedWeightsConfig:
  """What of a model stays in memory, and how the rest is read.

  Attributes:
    memory_budget: bytes for weights: those that stay, and the buffers that the
      others pass through; as many layers stay as fit. 0 takes
      `resident_layers`.
    resident_layers: layers that stay, where no budget is named.
    source: where other layers lie: on `disk`, or in the `host`'s memory, for a
      device that has less.
    buffers: layers that are read ahead, or are in use; with 1, reading and
      computing take turns.
    reads: `direct` reads past the page cache, `drop` through it and empties it
      behind the reader, `cache` leaves what was read to the system.
    folder: where the layers' files lie, and are written if they are not there;
      '' takes the cache folder.
  """

  memory_budget: int = 0
  resident_layers: int = 0
  source: str = 'disk'
  buffers: int = 2
  reads: str = 'direct'
  folder: str = ''

  def __post_init__(self):
    checks.config_types(self)
    for name, least, most in (
      ('memory_budget', 0, _MOST_BYTES),
      ('resident_layers', 0, bounds.COUNT),
      ('buffers', 1, 64),
    ):
      value = getattr(self, name)
      checks.count(f'StreamedWeightsConfig.{name}', value, least, most)
    checks.one_of('StreamedWeightsConfig.source', self.source, SOURCES)
    checks.one_of('StreamedWeightsConfig.reads', self.reads, READS)
    checks.check(
      not (self.memory_budget and self.resident_layers),
      'StreamedWeightsConfig has memory_budget and resident_layers; a budget '
      'says how many layers stay, so name one of them',
    )
