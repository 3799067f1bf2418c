# SPDX-License-Identifier: Apache-2.0
"""Running means of (sum, weight) metrics, and where they are written."""

import json
import math
import os
import time
from typing import Any

import jax
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from specstream_jax.outputs import ordering, writing

_EVENTS: Any = event_pb2  # its classes are made when it is imported


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
    names = sorted(total, key=ordering.natural)
    pairs = {name: tuple(map(float, total[name])) for name in names}
    return {name: pair[0] / max(pair[1], 1e-9) for name, pair in pairs.items()}


class Writer:
  """JSONL and TensorBoard files under a run's folder; appends on resume.

  Attributes:
    path: of the JSONL file.
    profile: folder for traces.

  Raises:
    WriteError: of every method, where the disk is full, for example.
  """

  def __init__(self, folder: str, *, enabled: bool = True):
    self._enabled = enabled
    self._board: event_file_writer.EventsWriter | None = None
    self._board_folder = os.path.join(folder, 'tensorboard')
    self.path = os.path.join(folder, 'metrics.jsonl')
    self.profile = os.path.join(folder, 'profile')

  def forget_after(self, step: int) -> None:
    """Drops what was written past `step`: a resumed run writes it again."""
    if self._enabled:
      forget_after(self.path, step)
      self._open(step + 1)

  def _open(self, first_step=0):
    """A new TensorBoard file; earlier ones end before `first_step`."""
    with writing.readable(self._board_folder):
      os.makedirs(self._board_folder, exist_ok=True)
      # Not SummaryWriter, whose thread would die of a full disk without a word
      # and leave the run waiting for it.
      self._board = event_file_writer.EventsWriter(
        os.path.join(self._board_folder, 'events'), f'.{os.getpid()}'
      )
      log = _EVENTS.SessionLog
      self._event(first_step, session_log=log(status=log.START))

  def _event(self, step, **content):
    event = _EVENTS.Event(step=step, wall_time=time.time(), **content)
    assert self._board is not None
    self._board.write_event(event)

  def write(self, step: int, metrics: dict[str, float], split: str) -> None:
    """One line {step, split, metrics…}; names get a prefix on TensorBoard."""
    if not self._enabled:
      return
    if self._board is None:
      self._open()
    board: Any = self._board
    line = {'step': step, 'split': split}
    line |= {k: round(v, 6) for k, v in metrics.items() if math.isfinite(v)}
    with writing.readable(self.path), open(self.path, 'a') as file:
      file.write(json.dumps(line) + '\n')
    with writing.readable(self._board_folder):
      for name, value in metrics.items():
        scalar = summary.scalar(f'{split}/{name}', value)
        self._event(step, summary=scalar)
      board.flush()

  def close(self) -> None:
    if self._board is not None:
      with writing.readable(self._board_folder):
        self._board.close()


def forget_after(path: str, step: int) -> None:
  """Drops lines past `step`: a resumed run writes those steps again."""
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8', errors='replace') as file:
    lines = [line.rstrip('\n') for line in file if _step_of(line) <= step]
  writing.write_text(path, ''.join(f'{line}\n' for line in lines))


def _step_of(line: str) -> float:
  """The line's step; a line cut short by a kill counts as past the end."""
  try:
    step = json.loads(line)['step']
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf
  return step if isinstance(step, int | float) else math.inf
