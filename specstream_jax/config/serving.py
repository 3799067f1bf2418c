# SPDX-License-Identifier: Apache-2.0
"""Sizes and limits of a serving engine."""

import dataclasses
import itertools

import gin

from specstream_jax import config
from specstream_jax.config import bounds, checks

_MEGABYTES = 10**7  # ten terabytes, beyond any device


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Static sizes of a running batch, and what waits for it.

  Attributes:
    num_slots: B, rows that decode together.
    cache_length: S, positions per slot for prompt, new tokens and draft tree; a
      multiple of `chunk`.
    max_new_tokens: most new tokens of a request.
    chunk: tokens of a prompt that one pass reads.
    chunks_per_quantum: passes over prompts between two quanta while rows
      decode; with `chunk` the bound on how long a prompt holds others up.
    quantum: most steps between two looks at the queue; what a row that ends, is
      cancelled or comes to a stop text may take too many.
    max_waiting: requests that may wait for a slot; others are refused.
    max_end_ids: token ids that may end one request, EOS among them.
    max_lora_rank: room for LoRA of adapters that are loaded later; 0 takes
      what those at the start need.
    schedule: see `DecodeConfig`.
    prefix_cache_mb: most memory, in 10⁶ bytes, for the keys and values of how
      prompts began, which those that begin alike then share; 0 is off. The
      default holds about 5,500 tokens of a model of 135M parameters in float32,
      that is a few system prompts, for less than the slots themselves take.
    batch_sizes: ascending numbers of slots, the last of them `num_slots`, that
      there are programs for; the batch has the smallest that holds its rows. Of
      () come 1, 8, 64, … and `num_slots`. Each takes time to compile.
    max_drafting_rows: if more rows run, they decode without drafts; None weighs
      what drafts bring against what they cost, which is measured at the start.
    max_folded: adapters whose LoRA is folded into a copy of the model, for times
      when all rows have the same one; 0 never does it, and compiles half as
      much. Adapters that leave the text as it is need no copy.
  """

  num_slots: int = 8
  cache_length: int = 1024
  max_new_tokens: int = 512
  chunk: int = 64
  chunks_per_quantum: int = 1
  quantum: int = 8
  max_waiting: int = 256
  max_end_ids: int = 16
  max_lora_rank: int = 0
  schedule: str = 'deferred'
  prefix_cache_mb: int = 256
  batch_sizes: tuple[int, ...] = ()
  max_drafting_rows: int | None = None
  max_folded: int = 2

  def __post_init__(self):
    checks.config_types(self)
    for name, most in (
      ('num_slots', bounds.ROWS),
      ('cache_length', bounds.TOKENS),
      ('max_new_tokens', bounds.TOKENS),
      ('chunk', bounds.TOKENS),
      ('chunks_per_quantum', bounds.COUNT),
      ('quantum', bounds.COUNT),
      ('max_waiting', bounds.COUNT),
      ('max_end_ids', 1024),
    ):
      checks.count(f'EngineConfig.{name}', getattr(self, name), 1, most)
    checks.count(
      'EngineConfig.max_lora_rank', self.max_lora_rank, 0, bounds.RANK
    )
    checks.count(
      'EngineConfig.prefix_cache_mb', self.prefix_cache_mb, 0, _MEGABYTES
    )
    checks.count('EngineConfig.max_folded', self.max_folded, 0, bounds.COUNT)
    if self.max_drafting_rows is not None:
      most = bounds.ROWS
      checks.count(
        'EngineConfig.max_drafting_rows', self.max_drafting_rows, 0, most
      )
    self._check_batch_sizes()
    checks.check(
      self.cache_length % self.chunk == 0,
      f'EngineConfig.cache_length is {self.cache_length}; it must be a multiple '
      f'of EngineConfig.chunk, which is {self.chunk}',
    )
    checks.check(
      self.max_new_tokens < self.cache_length,
      f'EngineConfig.max_new_tokens is {self.max_new_tokens}; it must be less '
      f'than EngineConfig.cache_length, which is {self.cache_length}',
    )
    checks.one_of('EngineConfig.schedule', self.schedule, config.SCHEDULES)

  def _check_batch_sizes(self) -> None:
    sizes = self.batch_sizes
    is_ascending = all(one < other for one, other in itertools.pairwise(sizes))
    checks.check(
      not sizes
      or (is_ascending and sizes[0] >= 1 and sizes[-1] == self.num_slots),
      f'EngineConfig.batch_sizes is {sizes}; accepted: ascending numbers from 1 '
      f'up that end with EngineConfig.num_slots, which is {self.num_slots}',
    )
