# SPDX-License-Identifier: Apache-2.0
"""The OpenAI API on an engine.

GET /, a page to try it on; /health, /version, /metrics, /v1/models,
/tokenizer_info; POST /v1/completions, /v1/chat/completions, /tokenize,
/detokenize, /v1/load_lora_adapter, /v1/unload_lora_adapter. Answers carry
`metrics.speculative_decoding` beside what the API has. An error never holds a
path or a stack trace.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
import contextlib
import dataclasses
import hmac
import json
import time
from typing import Any

from absl import logging
from starlette import applications, concurrency, requests as web, routing
from starlette.responses import (
  JSONResponse,
  PlainTextResponse,
  Response,
  StreamingResponse,
)

import specstream_jax
from specstream_jax.serving import (
  bodies,
  engine as engine_lib,
  measures as measures_lib,
  page,
  payloads,
  protocol,
  requests,
  scoring,
  shelf as shelf_lib,
  tokens,
)

_POLL = 0.5  # seconds between two looks at whether a client is still there


@dataclasses.dataclass(frozen=True)
class Options:
  """How the engine is shown.

  Attributes:
    name: of the base model.
    api_key: that every request but /health must have; '' is none.
    max_body_bytes: of a request.
    shutdown_timeout: seconds for what runs when the server is to end.
  """

  name: str = 'model'
  api_key: str = dataclasses.field(default='', repr=False)
  max_body_bytes: int = 4 * 2**20
  shutdown_timeout: float = 30.0


class Server:
  """The routes of one engine."""

  def __init__(
    self,
    engine: engine_lib.Engine | None,
    options: Options,
    shelf: shelf_lib.Shelf | None = None,
  ):
    """Is closed to requests for as long as there is no engine.

    Args:
      engine: started and closed with the application; None to `open` it later.
      options: how it is shown.
      shelf: adapters that requests may load; None lets them load none.
    """
    self.options = options
    self.measures = measures_lib.Measures(options.name)
    self._engine, self._shelf = engine, shelf
    self._scoring = asyncio.Lock()
    self._started = int(time.time())
    self.warming_up: dict[str, Any] = {}

  @property
  def engine(self) -> engine_lib.Engine:
    """What decodes; raises ApiError while there is none."""
    if self._engine is None:
      raise bodies.ApiError(
        503,
        'the model is being loaded and compiled; ask /health when it is there',
        kind='unavailable_error',
        retry_after=5,
      )
    return self._engine

  def open(self, engine: engine_lib.Engine) -> None:
    """Takes requests from now on; from any thread."""
    engine.start()
    self._engine = engine

  def drain(self) -> None:
    """Takes no more requests; waits for what runs, up to `shutdown_timeout`."""
    if self._engine is not None:
      self._engine.close(self.options.shutdown_timeout)

  def app(self) -> applications.Starlette:
    """The ASGI application, which starts and closes the engine."""
    get = lambda path, call, is_open=False: routing.Route(
      path, call if is_open else self._guarded(call), methods=['GET']
    )
    post = lambda path, call: routing.Route(
      path, self._guarded(call), methods=['POST']
    )
    return applications.Starlette(
      routes=[
        get('/', page.show, is_open=True),
        get('/health', self._health),
        get('/version', self._version),
        get('/metrics', self._metrics),
        get('/v1/models', self._models),
        post('/v1/completions', self._completions),
        post('/v1/chat/completions', self._chat),
        get('/tokenizer_info', self._tokenizer_info),
        post('/tokenize', self._tokenize),
        post('/detokenize', self._detokenize),
        post('/v1/load_lora_adapter', self._load),
        post('/v1/unload_lora_adapter', self._unload),
      ],
      lifespan=self._lifespan,
      exception_handlers={404: _not_found, 405: _not_allowed},
    )

  @contextlib.asynccontextmanager
  async def _lifespan(self, app) -> AsyncIterator[None]:
    del app
    if self._engine is not None:
      self._engine.start()
    yield
    await concurrency.run_in_threadpool(self.drain)

  def _guarded(self, call):
    """An endpoint whose errors are answers."""

    async def endpoint(request: web.Request) -> Response:
      """What `call` answers, or the error that it ends in."""
      try:
        self._check_key(request)
        return await call(request)
      except bodies.ApiError as error:
        return _error(error)
      except requests.RefusedError as error:
        return _error(_of_refusal(error))
      except web.ClientDisconnect:
        return _error(bodies.ApiError(499, 'the client is gone'))
      except ValueError as error:
        return _error(bodies.ApiError(400, bodies.public(error)))
      except Exception:
        logging.exception('a request failed')
        kind = 'internal_error'
        return _error(bodies.ApiError(500, 'internal error', kind=kind))

    return endpoint

  def _check_key(self, request) -> None:
    """Raises ApiError unless the request has the key."""
    # Of the route, as the URL is put together from the client's Host header too.
    if not self.options.api_key or request.scope['path'] == '/health':
      return
    # Headers are read as Latin-1, whatever bytes they are.
    given = request.headers.get('authorization', '').encode('latin-1')
    wanted = f'Bearer {self.options.api_key}'.encode()
    if not hmac.compare_digest(given, wanted):
      raise bodies.ApiError(
        401,
        'the API key is missing or wrong; send it as Authorization: Bearer KEY',
        kind='authentication_error',
      )

  async def _health(self, request) -> Response:
    """200 where requests are taken."""
    del request
    engine = self._engine
    if engine is None:
      return JSONResponse({'status': 'warming up', **self.warming_up}, 503)
    if engine.is_open:
      return JSONResponse({'status': 'ok'})
    if engine.error is None:
      return JSONResponse({'status': 'closing'}, 503)
    kind = type(engine.error).__name__
    return JSONResponse({'status': 'failed', 'error': kind}, 503)

  async def _version(self, request) -> Response:
    del request
    return JSONResponse({'version': specstream_jax.__version__})

  async def _metrics(self, request) -> Response:
    del request
    text = self.measures.text(self.engine.stats())
    return Response(text, media_type=measures_lib.CONTENT_TYPE)

  async def _models(self, request) -> Response:
    del request
    entry = lambda name, parent: {
      'id': name,
      'object': 'model',
      'created': self._started,
      'owned_by': 'specstream',
      'root': self.options.name,
      'parent': parent,
      'max_model_len': self.engine.cfg.cache_length,
    }
    base = self.options.name
    data = [entry(base, None), *(entry(n, base) for n in self.engine.adapters)]
    return JSONResponse({'object': 'list', 'data': data})

  async def _completions(self, request) -> Response:
    return await self._answer(request, protocol.read_completion, payloads.TEXT)

  async def _chat(self, request) -> Response:
    return await self._answer(request, protocol.read_chat, payloads.CHAT)

  async def _answer(self, request, read, kind) -> Response:
    """A completion of either kind, whole or as a stream."""
    engine = self.engine
    body = await self._body(request)
    call = await concurrency.run_in_threadpool(
      read, body, engine.model, self._adapters()
    )
    score = None
    if call.num_top is not None:
      score = engine.scorer(call.requests[0].adapter)
    handles = await concurrency.run_in_threadpool(self._submit, call)
    shape = payloads.Shape(kind, call, engine.path_length, engine.model)
    if call.is_stream:
      stream = self._stream(shape, handles, score)
      return StreamingResponse(stream, media_type='text/event-stream')
    made = await self._whole(request, handles)
    if call.is_prompt_only:
      made = [one.without_new() for one in made]
    self._count(call, made)
    scores = [] if score is None else await self._scores(call, made, score)
    return JSONResponse(shape.whole(made, scores))

  def _adapters(self) -> dict[str, str]:
    """Name of a model in the API -> name of its adapter."""
    return {self.options.name: ''} | {n: n for n in self.engine.adapters}

  async def _tokenizer_info(self, request) -> Response:
    del request
    return JSONResponse(tokens.info(self.engine.model))

  async def _tokenize(self, request) -> Response:
    return await self._about_text(request, tokens.tokenize)

  async def _detokenize(self, request) -> Response:
    return await self._about_text(request, tokens.detokenize)

  async def _about_text(self, request, make) -> Response:
    """An answer that takes the tokenizer alone."""
    engine = self.engine
    body = await self._body(request)
    made = await concurrency.run_in_threadpool(
      make, body, engine.model, self._adapters(), engine.cfg.cache_length
    )
    return JSONResponse(made)

  async def _load(self, request) -> Response:
    return await self._about_adapter(request, shelf_lib.Shelf.load)

  async def _unload(self, request) -> Response:
    return await self._about_adapter(request, shelf_lib.Shelf.unload)

  async def _about_adapter(self, request, change) -> Response:
    """Changes what is served, if that is allowed."""
    engine, shelf = self.engine, self._shelf
    if shelf is None:
      raise bodies.ApiError(
        403,
        'adapters stay as they are; the server has to be started with '
        '--allow_runtime_adapters',
        kind='permission_error',
      )
    body = await self._body(request)
    text = await concurrency.run_in_threadpool(
      change, shelf, body, engine, self.options.name
    )
    return PlainTextResponse(text)

  def _submit(self, call) -> list[requests.Handle]:
    """All requests of a call, or none of them."""
    handles = []
    try:
      for request in call.requests:
        handles.append(self.engine.submit(request))
    except (ValueError, requests.RefusedError):
      for handle in handles:
        handle.cancel()
      raise
    return handles

  def _count(self, call, made) -> None:
    for one in made:
      self.measures.add(call.model, one)

  async def _body(self, request) -> Mapping[str, Any]:
    """The JSON object of a request."""
    most, data = self.options.max_body_bytes, b''
    async for part in request.stream():
      data += part
      if len(data) > most:
        raise bodies.ApiError(
          413, f'the body is larger than {most} bytes; send less'
        )
    return bodies.parse(data)

  async def _whole(self, request, handles) -> list[requests.Completion]:
    """All completions; given up when the client is gone."""
    event = _listening(handles)
    try:
      while not all(handle.is_done for handle in handles):
        with contextlib.suppress(TimeoutError):
          await asyncio.wait_for(event.wait(), _POLL)
        event.clear()
        if await request.is_disconnected():
          break
      else:
        return [handle.result(0) for handle in handles]
    finally:
      for handle in handles:
        handle.cancel()
    raise bodies.ApiError(499, 'the client is gone')

  async def _scores(self, call, made, score) -> list[scoring.Scores]:
    """What `score` says of each prompt and completion, one after the other."""
    return [
      await self._score(call, index, one, score)
      for index, one in enumerate(made)
    ]

  async def _score(self, call, index, made, score) -> Any:
    """What `score` says of a prompt and its completion; None without it."""
    if score is None:
      return None
    text = (*call.requests[index].prompt, *made.tokens)
    # In line here, as each that waits elsewhere would hold a thread.
    async with self._scoring:
      return await concurrency.run_in_threadpool(score, text)

  async def _stream(self, shape, handles, score) -> AsyncIterator[str]:
    """Server-sent events; the engine is told when nobody reads any more."""
    event, ended = _listening(handles), set()
    try:
      for chunk in shape.first():
        yield _event(chunk)
      while len(ended) < len(handles):
        await event.wait()
        event.clear()
        for index, handle in enumerate(handles):
          if index in ended:
            continue
          is_done = handle.is_done
          for piece in handle.take():
            if piece.text or shape.call.has_steps:
              yield _event(shape.piece(index, piece))
          if is_done:
            ended.add(index)
            one = handle.result(0)
            found = await self._score(shape.call, index, one, score)
            yield _event(shape.end(index, one, found))
      made = [handle.result(0) for handle in handles]
      self._count(shape.call, made)
      if shape.call.has_usage:
        yield _event(shape.usage(made))
    except RuntimeError as error:
      logging.error('a stream failed: %s', error)
      kind = 'internal_error'
      yield _event(bodies.ApiError(500, 'internal error', kind=kind).body())
    finally:
      for handle in handles:
        handle.cancel()
    yield 'data: [DONE]\n\n'


def _listening(handles) -> asyncio.Event:
  """An event that is set whenever more has come of a handle."""
  event, loop = asyncio.Event(), asyncio.get_running_loop()

  def tell():
    # The loop may be over before the engine is.
    with contextlib.suppress(RuntimeError):
      loop.call_soon_threadsafe(event.set)

  for handle in handles:
    handle.listen(tell)
  return event


def _event(data: Mapping[str, Any]) -> str:
  return f'data: {json.dumps(data, ensure_ascii=False)}\n\n'


def _of_refusal(error: requests.RefusedError) -> bodies.ApiError:
  """429 where it is worth while to come back, else 503."""
  is_full = error.retry_after is not None
  return bodies.ApiError(
    429 if is_full else 503,
    bodies.public(error),
    kind='rate_limit_error' if is_full else 'unavailable_error',
    retry_after=error.retry_after,
  )


def _error(error: bodies.ApiError) -> Response:
  headers = {}
  if error.retry_after is not None:
    headers['Retry-After'] = str(int(error.retry_after))
  # In ASCII, as names and values of the client may be no Unicode.
  text = json.dumps(error.body())
  return Response(text, error.status, headers, media_type='application/json')


async def _not_found(request, error) -> Response:
  del error
  path = request.url.path[:80]
  return _error(
    bodies.ApiError(404, f'there is no {path!r}', kind='not_found_error')
  )


async def _not_allowed(request, error) -> Response:
  del error
  return _error(
    bodies.ApiError(405, f'{request.url.path!r:.80} takes no {request.method}')
  )
