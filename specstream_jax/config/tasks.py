# SPDX-License-Identifier: Apache-2.0
"""Which task, and how it is evaluated; see `config` for the others."""

import dataclasses

import gin

from specstream_jax.config import bounds, checks


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """A task and its parts; a command's flags come before it.

  Attributes:
    name: of the task table, or `seqio:NAME`; empty leaves it to the command.
    train_split: that is trained on.
    dev_split: that training evaluates on; empty takes `dev` or `validation`,
      whichever the task has.
    test_split: that is measured.
  """

  name: str = ''
  train_split: str = 'train'
  dev_split: str = ''
  test_split: str = 'test'

  def __post_init__(self):
    checks.config_types(self)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What `specstream evaluate` does; its flags come before it.

  Attributes:
    adapter: folder, or one that ships; empty leaves it to --adapter.
    drafter: streams and their settings, see `config.drafting.parse`.
    num_prompts: the first so many; 0 takes all.
    batch: rows per call.
    repeats: timed passes.
  """

  adapter: str = ''
  drafter: str = 'streams'
  num_prompts: int = 64
  batch: int = 1
  repeats: int = 2

  def __post_init__(self):
    checks.config_types(self)
    checks.at_least('EvalConfig.num_prompts', self.num_prompts, 0)
    for name, most in (('batch', bounds.ROWS), ('repeats', bounds.PASSES)):
      checks.count(f'EvalConfig.{name}', getattr(self, name), 1, most)
