# SPDX-License-Identifier: Apache-2.0
"""The port is open before the engine is there, and until it has drained.

/health says 503 at both ends. The first SIGTERM or Ctrl-C lets what runs come
to its end, the second does not wait.
"""

from collections.abc import Callable
import contextlib
import os
import signal
import socket
import sys
import threading

import uvicorn

from specstream_jax.serving import engine as engine_lib, http

_LAST_BYTES = 5  # seconds for clients to read the end of an answer


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
    timeout_graceful_shutdown=_LAST_BYTES,
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
  with contextlib.suppress(KeyboardInterrupt):
    loop.run(sockets=[port])
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
  """

  def __init__(self, cfg: uvicorn.Config, server: http.Server):
    super().__init__(cfg)
    self.signal: int | None = None
    self._server = server

  def handle_exit(self, sig, frame) -> None:
    """Uvicorn's hook for SIGTERM and SIGINT."""
    del frame
    if self.signal is not None:
      self.should_exit = self.force_exit = True
      return
    self.signal = sig
    # A thread, as a signal may interrupt whatever holds a lock.
    threading.Thread(target=self._drain, daemon=True).start()

  def _drain(self) -> None:
    self._server.drain()
    self.should_exit = True


def _leave(sig: int | None) -> None:
  """Ends the process at once: a compilation cannot be told to stop."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(128 + signal.SIGINT if sig == signal.SIGINT else 0)
