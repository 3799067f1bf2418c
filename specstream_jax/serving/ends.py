# SPDX-License-Identifier: Apache-2.0
"""Answers on their way, and what becomes of them when the server ends."""

import asyncio
from collections.abc import Iterator
import contextlib
import threading
import time
from typing import Any

from specstream_jax.serving import bodies, guards

_LAST_WORD = 1.0  # seconds to say that an answer is given up


class Ends:
  """How many answers are on their way; any thread may wait for the last."""

  def __init__(self):
    self._changed = threading.Condition()
    self._count = 0
    self._is_hurried = False

  def wait(self, deadline: float) -> None:
    """Returns when none is left, at a time of `time.monotonic`, or in a hurry."""
    with self._changed:
      while self._count and not self._is_hurried:
        left = deadline - time.monotonic()
        if left <= 0:
          return
        self._changed.wait(left)

  def hurry(self) -> None:
    """Has nobody wait any longer."""
    with self._changed:
      self._is_hurried = True
      self._changed.notify_all()

  @contextlib.contextmanager
  def counted(self) -> Iterator[None]:
    """One more, for as long as the context lasts."""
    self._add(1)
    try:
      yield
    finally:
      self._add(-1)

  def _add(self, count):
    with self._changed:
      self._count += count
      self._changed.notify_all()


class Counted:
  """ASGI middleware: POST requests are counted until all is handed over.

  One that is broken off before it said anything is told so, with 503. An
  application that is broken off ends as if it had been asked to.
  """

  def __init__(self, app: Any, ends: Ends):
    self._app, self._ends = app, ends

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """As of ASGI."""
    if scope['type'] == 'lifespan':
      receive = _until_broken_off(receive)
    if scope['type'] != 'http' or scope['method'] != 'POST':
      await self._app(scope, receive, send)
      return
    has_begun = False

    async def tell(message):
      nonlocal has_begun
      has_begun = True
      await send(message)

    with self._ends.counted():
      try:
        await self._app(scope, receive, tell)
      except asyncio.CancelledError:
        if not has_begun:
          answer = guards.answer(of_end())(scope, receive, send)
          with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(answer, _LAST_WORD)


def _until_broken_off(receive):
  """As `receive` of a lifespan, but for the traceback of a server in a hurry."""

  async def told():
    try:
      return await receive()
    except asyncio.CancelledError:
      return {'type': 'lifespan.shutdown'}

  return told


def of_end() -> bodies.ApiError:
  """What is said of an answer that the server's end cuts off."""
  return bodies.ApiError(
    503, 'the server has ended before the answer', kind='unavailable_error'
  )
