# SPDX-License-Identifier: Apache-2.0
"""Running means of (sum, weight) metrics, and where they are written."""

import json
import math
import os
from typing import Any

import jax
import tensorboardX


class Means:
  """Adds (sum, weight) pairs over steps; reads the device only in `result`."""

  def __init__(self):
    self._total: dict[str, Any] | None = None

  def add(self, metrics: dict[str, tuple[Any, Any]]) -> None:
    if self._total is None:
      self._total = metrics
    else:
      self._total = jax.tree.map(lambda a, b: a + b, self._total, metrics)

  def result(self) -> dict[str, float]:
    """sum / weight per metric as floats, and forgets them."""
    total, self._total = jax.device_get(self._total or {}), None
    return {
      name: float(value) / max(float(weight), 1e-9)
      for name, (value, weight) in sorted(total.items())
    }


class Writer:
  """JSONL and TensorBoard files under a run's folder; appends on resume.

  Attributes:
    path: of the JSONL file.
    profile: folder for traces.
  """

  def __init__(self, folder: str, *, enabled: bool = True):
    self._enabled, self._folder, self._board = enabled, folder, None
    self.path = os.path.join(folder, 'metrics.jsonl')
    self.profile = os.path.join(folder, 'profile')

  def forget_after(self, step: int) -> None:
    """Drops what was written past `step`: a resumed run writes it again."""
    if self._enabled:
      forget_after(self.path, step)
      self._open(step + 1)

  def _open(self, first_step=0):
    os.makedirs(self._folder, exist_ok=True)
    self._board = tensorboardX.SummaryWriter(
      os.path.join(self._folder, 'tensorboard'), purge_step=first_step
    )

  def write(self, step: int, metrics: dict[str, float], split: str) -> None:
    """One line {step, split, metrics…}; names get a prefix on TensorBoard."""
    if not self._enabled:
      return
    if self._board is None:
      self._open()
    line = {'step': step, 'split': split}
    line |= {k: round(v, 6) for k, v in metrics.items() if math.isfinite(v)}
    with open(self.path, 'a') as file:
      file.write(json.dumps(line) + '\n')
    for name, value in metrics.items():
      self._board.add_scalar(f'{split}/{name}', value, step)

  def close(self) -> None:
    if self._board is not None:
      self._board.close()


def forget_after(path: str, step: int) -> None:
  """Drops lines past `step`: a resumed run writes those steps again."""
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8', errors='replace') as file:
    lines = [line.rstrip('\n') for line in file if _step_of(line) <= step]
  with open(path + '.tmp', 'w') as file:
    file.writelines(f'{line}\n' for line in lines)
  os.replace(path + '.tmp', path)


def _step_of(line: str) -> float:
  """The line's step; a line cut short by a kill counts as past the end."""
  try:
    step = json.loads(line)['step']
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf
  return step if isinstance(step, int | float) else math.inf
