# SPDX-License-Identifier: Apache-2.0
"""The adapters that `measure_accelerator` trains and measures."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Task:
  """What becomes an adapter.

  Attributes:
    task: name, folder and split that measure it, as `bench --tasks` has them.
    recipe: of configs/RECIPE_deep_lora.gin and configs/RECIPE_deep_streams.gin.
    prompts: to answer, a file of prompts/.
    dev_prompts: likewise, for the evaluation.
    length: most tokens of a training row.
    bucket: of the prompts' lengths when they are answered.
    references: to tune LoRA on, a file of prompts/ with answers; empty for
      streams of the base itself.
    temperatures: of the answers.
    max_new_tokens: of an answer.
    nodes: of the trees that are timed.
  """

  task: str
  recipe: str
  prompts: str
  dev_prompts: str
  length: int
  bucket: int
  references: str = ''
  temperatures: tuple[float, ...] = (0.0,)
  max_new_tokens: int = 64
  nodes: tuple[int, ...] = (8, 16, 32)


TASKS = {
  'e2e_nlg': Task(
    'e2e_nlg/test@{data}/tasks/e2e', 'e2e', 'e2e.jsonl', 'e2e_dev.jsonl',
    256, 128, 'e2e_references.jsonl', temperatures=(0.0, 0.8),
  ),
  'sql_create_context': Task(
    'sql_create_context/test@{data}/tasks/sql', 'sql', 'sql.jsonl',
    'sql_dev.jsonl', 256, 256, 'sql_references.jsonl',
  ),
  'dialogsum': Task(
    'dialogsum/test@{data}/tasks/dialogsum', 'dialogsum', 'dialogsum.jsonl',
    'dialogsum_dev.jsonl', 512, 512, 'dialogsum_references.jsonl', nodes=(16,),
  ),
  'instruct_lossless': Task(
    'spec_bench/test@{data}/tasks/spec_bench', 'any', 'own.jsonl',
    'own_dev.jsonl', 512, 512, max_new_tokens=128, nodes=(16,),
  ),
}  # fmt: skip
