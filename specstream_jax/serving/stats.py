# SPDX-License-Identifier: Apache-2.0
"""What an engine is doing, in numbers."""

import collections
from collections.abc import Iterable, Mapping
import dataclasses

from specstream_jax.decoding import prefixes
from specstream_jax.serving import rows


@dataclasses.dataclass(frozen=True)
class Stats:
  """What an engine is doing.

  Attributes:
    running: rows that decode.
    reading: prompts that are being read, at most one.
    waiting: requests in the queue.
    num_slots: rows that there is room for.
    finished: requests that are done, by finish reason.
    num_compilations: programs compiled so far.
    prefixes: how much reading of prompts was saved.
    batch_size: slots of the batch that runs.
    is_drafting: whether it drafted in its last quantum.
    running_by: of those that decode, how many each adapter has.
    waiting_by: of those that wait or are read.
  """

  running: int
  reading: int
  waiting: int
  num_slots: int
  finished: Mapping[str, int]
  num_compilations: int
  prefixes: prefixes.Counts
  batch_size: int
  is_drafting: bool
  running_by: Mapping[str, int] = dataclasses.field(default_factory=dict)
  waiting_by: Mapping[str, int] = dataclasses.field(default_factory=dict)


def by_adapter(*found: Iterable[rows.Row]) -> dict[str, int]:
  """How many rows each adapter has, in all that is given."""
  # Listed first, as the engine's thread goes on.
  names = [row.served.name for some in found for row in list(some)]
  return dict(collections.Counter(names))
