# SPDX-License-Identifier: Apache-2.0
"""Who may ask, how much, and what an error looks like as an answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
import dataclasses
import hmac
import ipaddress
import json
import re
from typing import Any
from urllib import parse

from absl import logging
from starlette import requests as web
from starlette.responses import Response

from specstream_jax.config import checks
from specstream_jax.serving import bodies, requests

_ORIGIN = re.compile(r'https?://[a-z0-9.\[\]:-]+')


@dataclasses.dataclass(frozen=True)
class Options:
  """How the engine is shown.

  Attributes:
    name: of the base model.
    api_key: that every request but /health must have; '' is none.
    max_body_bytes: of a request.
    shutdown_timeout: seconds for what runs when the server is to end.
    allowed_origins: of pages elsewhere that may ask, as browsers name them:
      https://chat.example.org.
    is_local: whether it listens to this machine only. Then, without a key, it is
      asked by no other name than an address or localhost: a page elsewhere can
      give this machine a name of its own.
  """

  name: str = 'model'
  api_key: str = dataclasses.field(default='', repr=False)
  max_body_bytes: int = 4 * 2**20
  shutdown_timeout: float = 30.0
  allowed_origins: tuple[str, ...] = ()
  is_local: bool = False

  def __post_init__(self):
    for origin in self.allowed_origins:
      checks.check(
        bool(_ORIGIN.fullmatch(origin)),
        f'allowed_origin is {origin!r}; accepted: a scheme and a host as browsers '
        'name them, such as https://chat.example.org or http://localhost:3000',
      )


def guarded(
  options: Options, call: Callable[[web.Request], Awaitable[Response]]
) -> Callable[[web.Request], Awaitable[Response]]:
  """An endpoint for who may ask, whose errors are answers."""

  async def endpoint(request: web.Request) -> Response:
    """What `call` answers, or the error that it ends in."""
    try:
      _check_source(options, request)
      _check_key(options, request)
      return await call(request)
    except bodies.ApiError as error:
      return answer(error)
    except requests.RefusedError as error:
      return answer(of_refusal(error))
    except web.ClientDisconnect:
      return answer(bodies.ApiError(499, 'the client is gone'))
    except ValueError as error:
      return answer(bodies.ApiError(400, bodies.public(error)))
    except Exception:
      logging.exception('a request failed')
      return answer(internal())

  return endpoint


def _check_source(options, request) -> None:
  """Raises ApiError if a page elsewhere has a browser ask for it."""
  origin, host = (request.headers.get(n) for n in ('origin', 'host'))
  allowed = options.allowed_origins
  if origin and origin not in allowed and not _is_at(origin, host or ''):
    raise bodies.ApiError(
      403,
      f'pages of {origin[:80]!r} may not ask this server; start it with '
      f'--allowed_origin={origin[:80]} if they may',
      kind='permission_error',
    )
  if not options.is_local or options.api_key or host is None:
    return  # every browser names a host; HTTP/1.0 without one is no page
  if not _is_local(host, allowed):
    raise bodies.ApiError(
      403,
      f'the host is {host[:80]!r}; accepted: localhost or an address, as '
      'this server listens to this machine only; set a key, or start it with '
      '--allowed_origin=https://HOST',
      kind='permission_error',
    )


def is_loopback(host: str) -> bool:
  """Whether an address to listen at is for this machine only."""
  try:
    return host == 'localhost' or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _is_at(origin: str, host: str) -> bool:
  """Whether an origin is that of a server with such a Host header."""
  try:
    page, own = parse.urlsplit(origin), parse.urlsplit(f'//{host}')
    usual = {'http': 80, 'https': 443}.get(page.scheme)
    where = page.hostname, page.port or usual
    return bool(page.hostname) and where == (own.hostname, own.port or usual)
  except ValueError:
    return False


def _is_local(host: str, allowed: Sequence[str]) -> bool:
  """Whether only somebody here can have given a host its name."""
  try:
    name = parse.urlsplit(f'//{host}').hostname or ''
    if name in {parse.urlsplit(origin).hostname for origin in allowed}:
      return True
    if name == 'localhost' or name.endswith('.localhost'):
      return True
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def _check_key(options, request) -> None:
  """Raises ApiError unless the request has the key."""
  # Of the route, as the URL is put together from the client's Host header too.
  if not options.api_key or request.scope['path'] == '/health':
    return
  # Headers are read as Latin-1, whatever bytes they are.
  given = request.headers.get('authorization', '').encode('latin-1')
  wanted = f'Bearer {options.api_key}'.encode()
  if not hmac.compare_digest(given, wanted):
    raise bodies.ApiError(
      401,
      'the API key is missing or wrong; send it as Authorization: Bearer KEY',
      kind='authentication_error',
    )


async def body(request: web.Request, options: Options) -> Mapping[str, Any]:
  """The JSON object of a request.

  Raises:
    ApiError: there is none, it is too large, or it is not said to be one. What
      pages elsewhere can send unasked is said to be something else.
  """
  given = request.headers.get('content-type', '')
  if given.partition(';')[0].strip().lower() != 'application/json':
    raise bodies.ApiError(
      415,
      f'Content-Type is {given[:80]!r}; accepted: application/json (curl: '
      "-H 'Content-Type: application/json')",
    )
  most, data = options.max_body_bytes, b''
  async for part in request.stream():
    data += part
    if len(data) > most:
      raise bodies.ApiError(
        413, f'the body is larger than {most} bytes; send less'
      )
  return bodies.parse(data)


def of_refusal(error: requests.RefusedError) -> bodies.ApiError:
  """429 where it is worth while to come back, else 503."""
  is_full = error.retry_after is not None
  return bodies.ApiError(
    429 if is_full else 503,
    bodies.public(error),
    kind='rate_limit_error' if is_full else 'unavailable_error',
    retry_after=error.retry_after,
  )


def internal() -> bodies.ApiError:
  """What is said of an error of ours."""
  return bodies.ApiError(500, 'internal error', kind='internal_error')


def answer(error: bodies.ApiError) -> Response:
  """An error as the API has it."""
  headers = {}
  if error.retry_after is not None:
    headers['Retry-After'] = str(int(error.retry_after))
  # In ASCII, as names and values of the client may be no Unicode.
  text = json.dumps(error.body())
  return Response(text, error.status, headers, media_type='application/json')


async def not_found(request: web.Request, error: Exception) -> Response:
  """For paths that no route has."""
  del error
  path = request.url.path[:80]
  return answer(
    bodies.ApiError(404, f'there is no {path!r}', kind='not_found_error')
  )


async def not_allowed(request: web.Request, error: Exception) -> Response:
  """For methods that a route has not."""
  del error
  return answer(
    bodies.ApiError(405, f'{request.url.path!r:.80} takes no {request.method}')
  )
