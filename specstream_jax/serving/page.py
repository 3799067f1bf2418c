# SPDX-License-Identifier: Apache-2.0
"""The page at /, on which the server can be tried.

One file without anything from outside. It holds no secret, so that it needs no
key; what it asks of the API does.
"""

import functools
from importlib import resources

from starlette import requests as web
from starlette.responses import HTMLResponse, Response

_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'self'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
  ),
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
}


@functools.cache
def text() -> str:
  """The page."""
  file = resources.files('specstream_jax.serving') / 'page.html'
  return file.read_text(encoding='utf-8')


async def show(request: web.Request) -> Response:
  """The endpoint."""
  del request
  return HTMLResponse(text(), headers=_HEADERS)
