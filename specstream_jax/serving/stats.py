# SPDX-License-Identifier: Apache-2.0
"""What an engine is doing, in numbers."""

from collections.abc import Mapping
import dataclasses

from specstream_jax.decoding import prefixes


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
