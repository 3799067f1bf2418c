# SPDX-License-Identifier: Apache-2.0
"""What was measured as rows of results: ratios, scores, texts."""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.bench import (
  grid,
  results,
  runners as runners_lib,
  sides as sides_lib,
)
from specstream_jax.data import questions as questions_lib, registry
from specstream_jax.metrics import scores


def summarize(
  model: runtime.Model,
  made: grid.Bench,
  *,
  schedule: str,
  sampling: config.SamplingConfig,
  num_samples: int = 2,
) -> list[results.RunResult]:
  """One result per cell and rival that has measurements.

  Args:
    model: that decoded.
    made: the measurements.
    schedule: of streams.
    sampling: how tokens were drawn, but for the temperature.
    num_samples: texts kept for the report.
  """
  runs = []
  for cell in made.plan.cells:
    plain = made.collect(cell, grid.BASELINE)
    rivals = made.runners(cell)
    if plain is None or not plain[1].calls.sum():
      continue
    for runner in rivals[1:] or rivals:
      found = made.collect(cell, runner.label)
      if found is None or not found[1].calls.sum():
        continue
      rows, fast = found
      hot = dataclasses.replace(sampling, temperature=cell.temperature)
      runs.append(
        sides_lib.summarize(
          plain[1],
          fast,
          **_facts(cell, runner),
          **_groups(rows, fast),
          schedule=schedule,
          dtype=model.config.numbers,
          sampling=hot.changes(),
          quality={
            'autoregressive': _score(made, cell, rows, plain[1]),
            'speculative': _score(made, cell, rows, fast),
          },
          samples=samples(model, made, rows[:num_samples], fast),
        )
      )
  return runs


def _facts(cell: grid.Cell, runner: runners_lib.Runner) -> dict[str, Any]:
  """What was measured, by the names of `RunResult`."""
  tree = runner.settings.get('tree') or {}
  return {
    'task': cell.task,
    'batch': cell.batch,
    'temperature': cell.temperature,
    'drafter': runner.settings['name'],
    'name': runner.label,
    'settings': runner.settings,
    'tree': tree | {'size': getattr(runner, 'size', 0)},
    'max_depth': runner.max_depth,
    'lossy': runner.is_lossy,
    'external': runner.is_external,
    'synthetic': runner.output == 'synthetic',
    'extra_parameters': runner.extra_parameters,
  }


def _groups(rows: Sequence[grid.Row], fast: sides_lib.Side) -> dict[str, Any]:
  """Tokens per call by category and by length of prompt."""
  lengths = [_length_group(len(row.prompt)) for row in rows]
  categories = [row.question.category for row in rows]
  return {
    'by_category': _tokens_per_call_by(categories, fast),
    'by_prompt_length': _tokens_per_call_by(lengths, fast),
    'prompts_by_length': {
      str(n): count for n, count in sorted(collections.Counter(lengths).items())
    },
    'num_truncated': sum(row.is_truncated for row in rows),
  }


def _tokens_per_call_by(groups: Sequence[Any], side) -> dict[str, float]:
  """Group -> tokens per call of its rows, micro; `groups` has one per row."""
  found = {}
  for group in sorted(set(groups)):
    where = [i for i, other in enumerate(groups) if other == group]
    tokens = [side.tokens[i] for i in where]
    rates = sides_lib.tokens_per_call(tokens, side.calls[where])
    found[str(group)] = rates['micro']
  return found


def _length_group(length: int) -> int:
  """Prompt lengths in steps of 128 tokens: 128, 256, 384, …"""
  return -(-length // 128) * 128


def _score(made, cell, rows, side) -> dict[str, float]:
  """The task's metrics of a side's texts; none if a row lacks an answer."""
  questions = [row.question for row in rows]
  if not all(question.references for question in questions):
    return {}
  texts = [
    made.text(tokens, row)
    for tokens, row in zip(side.tokens, rows, strict=True)
  ]
  return score(cell.task, questions, texts)


def score(
  task: str, asked: Sequence[questions_lib.Question], answers: Sequence[str]
) -> dict[str, float]:
  """Scores of answers by the metrics of their task.

  Args:
    task: `name/split`, perhaps with `@` and more behind it.
    asked: questions that have references.
    answers: one text for each.
  """
  name, _, split = task.partition('@')[0].partition('/')
  spec = registry.get(name)
  if spec.score is not None:
    numbers = [question.question_id for question in asked]
    return spec.score(split, numbers, answers)
  references = [list(question.references) for question in asked]
  stripped = [answer.strip() for answer in answers]
  return scores.compute(spec.metrics, references, stripped)


def samples(
  model: runtime.Model,
  made: grid.Bench,
  rows: Sequence[grid.Row],
  side: sides_lib.Side,
) -> list[dict[str, Any]]:
  """The texts of the first rows, token by token, for the report."""
  return [
    {
      'prompt': row.question.turns[row.turn],
      'text': made.text(side.tokens[i], row).strip(),
      'references': list(row.question.references),
      'accept_lengths': side.accept_lengths[i],
      'tokens': model.token_texts(side.tokens[i], row.prompt),
    }
    for i, row in enumerate(rows)
    if side.accept_lengths[i]
  ]
