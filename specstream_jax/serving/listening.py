# SPDX-License-Identifier: Apache-2.0
"""The port is open before the engine is there, and until it has drained.

/health says 503 at both ends. The first SIGTERM or Ctrl-C lets what runs come
to its end, the second gives it up and says so, the third says nothing.
"""

from collections.abc import Callable
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time

import uvicorn

from specstream_jax.serving import engine as engine_lib, http

_LAST_BYTES = 5  # seconds at least for clients to read the end of an answer
_LAST_WORDS = 1  # seconds for answers that are given up to say so


def listen(host: str, port: int) -> socket.socket:
  """An open port.

  Args:
    host: address of this machine.
    port: 0 takes a free one.

  Raises:
    ValueError: it cannot be had.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise ValueError(
      f'--host={host} --port={port} cannot be listened on ({reason}); take '
      'another port, or 0 for a free one, and an address of this machine'
    ) from None


def serve(
  server: http.Server,
  port: socket.socket,
  make_engine: Callable[[], engine_lib.Engine],
) -> None:
  """Answers until a signal comes.

  Args:
    server: without an engine yet.
    port: that is open.
    make_engine: loads and compiles, in a thread of its own.

  Raises:
    KeyboardInterrupt: Ctrl-C was the signal.
    Exception: what `make_engine` raises.
  """
  cfg = uvicorn.Config(
    server.app(),
    log_level='warning',
  )
  loop, errors = _Loop(cfg, server), []

  def make():
    try:
      server.open(make_engine())
    except BaseException as error:
      errors.append(error)
      loop.should_exit = True

  maker = threading.Thread(target=make, name='specstream-start', daemon=True)
  maker.start()
  if threading.current_thread() is threading.main_thread():
    # It stays, as the process may be told to end once more while it does.
    signal.signal(signal.SIGTERM, loop.handle_exit)
  try:
    with contextlib.suppress(KeyboardInterrupt):
      loop.run(sockets=[port])
  finally:
    loop.is_over = True
  if errors:
    raise errors[0]
  if maker.is_alive():
    _leave(loop.signal)
  if loop.signal == signal.SIGINT:
    raise KeyboardInterrupt


class _Loop(uvicorn.Server):
  """Goes on listening while the engine drains.

  Attributes:
    signal: that is to end it, or None.
    is_over: whether signals change nothing any more.
  """

  def __init__(self, cfg: uvicorn.Config, server: http.Server):
    super().__init__(cfg)
    self.signal: int | None = None
    self.is_over = self._is_hurried = False
    self._server = server

  def handle_exit(self, sig, frame) -> None:
    """Uvicorn's hook for SIGTERM and SIGINT."""
    del frame
    if self.is_over:
      return
    # Threads, as a signal may interrupt whatever holds a lock.
    if self.signal is None:
      self.signal = sig
      threading.Thread(target=self._drain, daemon=True).start()
    elif not self._is_hurried:
      self._is_hurried = True
      threading.Thread(target=self._hurry, daemon=True).start()
    else:
      self.should_exit = self.force_exit = True

  def _drain(self) -> None:
    self._server.drain()
    left = max(_LAST_BYTES, math.ceil(self._server.seconds_left))
    self.config.timeout_graceful_shutdown = left
    self.should_exit = True

  def _hurry(self) -> None:
    self._server.hurry()
    time.sleep(_LAST_WORDS)
    self.should_exit = self.force_exit = True


def _leave(sig: int | None) -> None:
  """Ends the process at once: a compilation cannot be told to stop."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(128 + signal.SIGINT if sig == signal.SIGINT else 0)
