# SPDX-License-Identifier: Apache-2.0
"""The page at /, on which the server can be tried.

One file without anything from outside. It holds no secret, so that it needs no
key; what it asks of the API does.
"""

import functools
from importlib import resources
from typing import Any

from starlette import requests as web
from starlette.responses import HTMLResponse, Response

from specstream_jax.decoding import interface, topology
from specstream_jax.drafters import mix, streams

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


def tree(drafter: interface.Drafter) -> dict[str, Any]:
  """The draft tree: kind, num_nodes with the root, depth, parents.

  Parents of the nodes, the root first, which is its own; None where every step
  grows a tree of another shape, or every row has its own. Without streams, kind
  is 'none'.
  """
  kind, parents = 'none', None
  if isinstance(drafter, mix.Mix):
    kind = drafter.streams.cfg.kind
  elif isinstance(drafter, streams.Streams):
    kind = drafter.cfg.kind
    if kind != 'best_first' and drafter.room is None:
      parents = topology.arrays(drafter.cfg)[0].tolist()
  return {
    'kind': kind,
    'num_nodes': drafter.size,
    'depth': drafter.max_depth,
    'parents': parents,
  }


async def show(request: web.Request) -> Response:
  """The endpoint."""
  del request
  return HTMLResponse(text(), headers=_HEADERS)
