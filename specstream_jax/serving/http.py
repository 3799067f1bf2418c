# SPDX-License-Identifier: Apache-2.0
"""The OpenAI API on an engine.

GET /, a page to try it on; /health, /version, /metrics, /v1/models,
/v1/models/NAME, /tokenizer_info; POST /v1/completions, /v1/chat/completions, /tokenize,
/detokenize, /v1/load_lora_adapter, /v1/unload_lora_adapter. Answers carry
`metrics.speculative_decoding` beside what the API has. An error never holds a
path or a stack trace.
"""

from collections.abc import AsyncIterator
import contextlib
import functools
import time
from typing import Any

from starlette import applications, concurrency, middleware, routing
from starlette.middleware import cors
from starlette.responses import JSONResponse, PlainTextResponse, Response

import specstream_jax
from specstream_jax.serving import (
  bodies,
  ends,
  engine as engine_lib,
  fields,
  guards,
  measures as measures_lib,
  page,
  payloads,
  protocol,
  sending,
  shelf as shelf_lib,
  tokens,
)
from specstream_jax.serving.guards import Options as Options


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
    self._ends, self._deadline = ends.Ends(), 0.0
    self._sender = sending.Sender()
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
    """Takes no more requests; waits for what runs, is scored or sent.

    Up to `shutdown_timeout` after the first call.
    """
    timeout = self.options.shutdown_timeout
    self._deadline = self._deadline or time.monotonic() + timeout
    if self._engine is not None:
      self._engine.close(self.seconds_left)
    self._ends.wait(self._deadline)

  @property
  def seconds_left(self) -> float:
    """Of the time to `drain`."""
    return max(0.0, (self._deadline or 0.0) - time.monotonic())

  def hurry(self) -> None:
    """Has whoever drains wait no longer; what is not sent is given up."""
    if self._engine is not None:
      self._engine.abort()
    self._ends.hurry()

  def app(self) -> applications.Starlette:
    """The ASGI application, which starts and closes the engine."""
    guarded = functools.partial(guards.guarded, self.options)
    get = lambda path, call, is_open=False: routing.Route(
      path, call if is_open else guarded(call), methods=['GET']
    )
    post = lambda path, call: routing.Route(
      path, guarded(call), methods=['POST']
    )
    return applications.Starlette(
      routes=[
        get('/', page.show, is_open=True),
        get('/health', self._health),
        get('/version', self._version),
        get('/metrics', self._metrics),
        get('/v1/models', self._models),
        get('/v1/models/{name:path}', self._model),
        post('/v1/completions', self._completions),
        post('/v1/chat/completions', self._chat),
        get('/tokenizer_info', self._tokenizer_info),
        post('/tokenize', self._tokenize),
        post('/detokenize', self._detokenize),
        post('/v1/load_lora_adapter', self._load),
        post('/v1/unload_lora_adapter', self._unload),
      ],
      lifespan=self._lifespan,
      middleware=self._middleware(),
      exception_handlers={404: guards.not_found, 405: guards.not_allowed},
    )

  def _middleware(self) -> list[middleware.Middleware]:
    """Around all routes."""
    around = [middleware.Middleware(ends.Counted, self._ends)]
    if self.options.allowed_origins:
      allowed = middleware.Middleware(
        cors.CORSMiddleware,
        allow_origins=self.options.allowed_origins,
        allow_methods=['GET', 'POST'],
        allow_headers=['*'],
      )
      around.append(allowed)
    return around

  @contextlib.asynccontextmanager
  async def _lifespan(self, app) -> AsyncIterator[None]:
    del app
    if self._engine is not None:
      self._engine.start()
    yield
    await concurrency.run_in_threadpool(self.drain)

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
    engine = self.engine
    text = self.measures.text(engine.stats(), engine.adapters)
    return Response(text, media_type=measures_lib.CONTENT_TYPE)

  async def _models(self, request) -> Response:
    del request
    data = list(map(self._entry, self._adapters()))
    return JSONResponse({'object': 'list', 'data': data})

  async def _model(self, request) -> Response:
    body = {'model': request.path_params['name']}
    return JSONResponse(
      self._entry(protocol.model_name(body, self._adapters()))
    )

  def _entry(self, name: str) -> dict[str, Any]:
    """What /v1/models says of a model."""
    base = self.options.name
    return {
      'id': name,
      'object': 'model',
      'created': self._started,
      'owned_by': 'specstream',
      'root': base,
      'parent': None if name == base else base,
      'max_model_len': self.engine.cfg.cache_length,
    }

  async def _completions(self, request) -> Response:
    return await self._answer(request, protocol.read_completion, payloads.TEXT)

  async def _chat(self, request) -> Response:
    return await self._answer(request, protocol.read_chat, payloads.CHAT)

  async def _answer(self, request, read, kind) -> Response:
    """A completion of either kind, whole or as a stream."""
    engine = self.engine
    body = await guards.body(request, self.options)
    call = await concurrency.run_in_threadpool(
      read, body, engine.model, self._adapters()
    )
    score = None
    if call.num_top is not None:
      scorer = functools.partial(engine.scorer, call.requests[0].adapter)
      score = fields.naming(body)(scorer)
    number = lambda: engine.check_number(len(call.requests))
    bodies.naming('n')(number)
    submit = functools.partial(
      engine.submit_all, call.requests, functools.partial(self._ended, call)
    )
    handles = await concurrency.run_in_threadpool(fields.naming(body), submit)
    shape = payloads.Shape(kind, call, engine.path_length, engine.model)
    return await self._sender.answer(request, shape, handles, score)

  def _ended(self, call, made) -> None:
    """Counts a request of a call, from the engine's thread."""
    if made is not None and call.is_prompt_only:
      made = made.without_new()
    self.measures.add(call.model, made)

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
    body = await guards.body(request, self.options)
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
    body = await guards.body(request, self.options)
    text = await concurrency.run_in_threadpool(
      change, shelf, body, engine, self.options.name
    )
    return PlainTextResponse(text)
