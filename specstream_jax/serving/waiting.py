# SPDX-License-Identifier: Apache-2.0
"""The queue of an engine, and how many requests there may be at all.

What is asked for at once is taken at once, or not at all: nobody's half of a
call stands in the way of others. So there is room for as many as decode and
wait together, whoever of them has got to a slot yet.
"""

from collections import deque
from collections.abc import Iterator, Sequence
import math
import threading

from specstream_jax.config import checks, serving
from specstream_jax.serving import requests, rows

_PAST = 0.9  # its weight in the mean time of a request


class Waiting:
  """Rows that wait; any thread may add some.

  Attributes:
    changed: is told when there is more to do, or an end to come.
  """

  def __init__(self, cfg: serving.EngineConfig):
    """Nobody waits."""
    self._num_slots = cfg.num_slots
    self._most = cfg.num_slots + cfg.max_waiting
    self._rows: deque[rows.Row] = deque()
    self._num_taken = 0  # that wait, are read or decode
    self._mean_seconds = 1.0
    self._why_closed = ''
    self.changed = threading.Condition()

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[rows.Row]:
    with self.changed:
      return iter(list(self._rows))

  @property
  def is_closed(self) -> bool:
    """Whether it takes nobody any more."""
    return bool(self._why_closed)

  def check_number(self, count: int) -> None:
    """Raises ValueError if so many can never be taken at once."""
    checks.check(
      count <= self._most,
      f'{count} texts are asked for at once; accepted: at most {self._most}, as '
      f'{self._num_slots} decode together and {self._most - self._num_slots} '
      'may wait; ask for fewer, in several requests',
    )

  def add(self, new: Sequence[rows.Row]) -> None:
    """Takes all of them, or none.

    Raises:
      ValueError: there are more than it can ever take.
      RefusedError: it is full, or closed.
    """
    self.check_number(len(new))
    with self.changed:
      if self._why_closed:
        raise requests.RefusedError(self._why_closed)
      if len(new) > self._most - self._num_taken:
        seconds = self._seconds()
        raise requests.RefusedError(
          f'{len(self._rows)} requests wait already, and there is no room for '
          f'{len(new)} more; try again in {seconds} seconds',
          seconds,
        )
      self._rows.extend(new)
      self._num_taken += len(new)
      self.changed.notify_all()

  def take(self) -> rows.Row | None:
    """The next one, which waits no longer."""
    with self.changed:
      return self._rows.popleft() if self._rows else None

  def drop(self, now: float) -> list[rows.Row]:
    """Those that were given up while they waited, which wait no longer."""
    with self.changed:
      given_up = [row for row in self._rows if row.why_ends(now)]
      for row in given_up:
        self._rows.remove(row)
    return given_up

  def end(self, seconds: float) -> None:
    """One that was taken has come to its end, so long after it came."""
    with self.changed:
      self._num_taken -= 1
      self._mean_seconds *= _PAST
      self._mean_seconds += (1 - _PAST) * seconds

  def close(self, why: str) -> None:
    """Takes nobody any more; the first reason stays."""
    with self.changed:
      self._why_closed = self._why_closed or why
      self.changed.notify_all()

  def clear(self) -> list[rows.Row]:
    """Those that waited, who are nobody's any more, as all that were taken."""
    with self.changed:
      left, self._num_taken = list(self._rows), 0
      self._rows.clear()
    return left

  def _seconds(self) -> int:
    """About how long it takes until somebody leaves the queue."""
    turns = len(self._rows) / self._num_slots
    return max(1, math.ceil(self._mean_seconds * turns))
