# SPDX-License-Identifier: Apache-2.0
"""Do evaluations still get better? What ends a run before its last step."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

# What a run is judged by, and whether less of it is better.
_METRICS = {'tokens_per_call': False, 'loss/main': True}
_LEAST = 0.002  # of a value, that counts as better


def has_stalled(
  evaluations: Sequence[Mapping[str, float]], patience: int
) -> bool:
  """Whether the last `patience` evaluations bettered nothing.

  Tokens per call and the loss of the model's own tokens count, where they are
  measured: as long as either gets better, a run goes on.

  Args:
    evaluations: metrics by name, oldest first.
    patience: 0 never stalls.
  """
  if not 0 < patience < len(evaluations):
    return False
  before, recent = evaluations[:-patience], evaluations[-patience:]
  return not any(
    _is_better(name, is_loss, before, recent)
    for name, is_loss in _METRICS.items()
  )


def _is_better(name, is_loss, before, recent) -> bool:
  """Whether the best of the recent values beats all before them."""
  sign = -1 if is_loss else 1
  old, new = (
    [sign * line[name] for line in lines if name in line]
    for lines in (before, recent)
  )
  return bool(old and new) and max(new) > max(old) + _LEAST * abs(max(old))


def read(path: str, until: int) -> list[dict[str, Any]]:
  """The evaluations in metrics.jsonl up to a step, oldest first."""
  if not os.path.exists(path):
    return []
  found = []
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        values = json.loads(line)
        is_one = values['split'] == 'eval' and values['step'] <= until
      except (ValueError, KeyError, TypeError, RecursionError):
        continue  # cut short by a kill
      if is_one:
        found.append(values)
  return found
