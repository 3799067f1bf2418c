# SPDX-License-Identifier: Apache-2.0
"""A server of an engine in a thread, for clients that want an address."""

import contextlib
import threading

import uvicorn

from specstream_jax.serving import http, listening


@contextlib.contextmanager
def served(engine):
  """The address of the server, whose base is called tiny."""
  app = http.Server(engine, http.Options('tiny')).app()
  server = uvicorn.Server(uvicorn.Config(app, log_level='error'))
  with listening.listen('127.0.0.1', 0) as port:
    thread = threading.Thread(target=server.run, kwargs={'sockets': [port]})
    thread.start()
    try:
      yield f'http://127.0.0.1:{port.getsockname()[1]}'
    finally:
      server.should_exit = True
      thread.join(30)
