# SPDX-License-Identifier: Apache-2.0
"""How completions get to who asked: whole, or as a stream of events.

Who is gone is noticed here, and the engine is told.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
import contextlib
import json
from typing import Any

from absl import logging
from starlette import concurrency, requests as web
from starlette.responses import JSONResponse, Response, StreamingResponse

from specstream_jax.serving import (
  bodies,
  guards,
  payloads,
  requests,
  scoring,
)

_POLL = 0.5  # seconds between two looks at whether a client is still there
Score = Callable[[Sequence[int]], scoring.Scores]


class Sender:
  """Answers, one text of all of them scored at a time."""

  def __init__(self):
    self._scoring = asyncio.Lock()

  async def answer(
    self,
    request: web.Request,
    shape: payloads.Shape,
    handles: Sequence[requests.Handle],
    score: Score | None,
  ) -> Response:
    """The answer to one call.

    Args:
      request: of the client.
      shape: of the answer.
      handles: of the call's requests, in its order.
      score: for log-probabilities; None where nobody asked.
    """
    if shape.call.is_stream:
      stream = self._stream(shape, handles, score)
      return StreamingResponse(stream, media_type='text/event-stream')
    made = await _whole(request, handles)
    if shape.call.is_prompt_only:
      made = [one.without_new() for one in made]
    scores = []
    if score is not None:
      for index, one in enumerate(made):
        if await request.is_disconnected():
          raise _gone()
        scores.append(await self._score(shape.call, index, one, score))
    # Log-probabilities can be megabytes; others are answered meanwhile.
    return await concurrency.run_in_threadpool(
      lambda: JSONResponse(shape.whole(made, scores))
    )

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
            yield await concurrency.run_in_threadpool(
              lambda: _event(shape.end(index, one, found))  # noqa: B023
            )
      made = [handle.result(0) for handle in handles]
      if shape.call.has_usage:
        yield _event(shape.usage(made))
    except requests.RefusedError as error:
      yield _event(guards.of_refusal(error).body())
    except RuntimeError as error:
      logging.error('a stream failed: %s', error)
      yield _event(guards.internal().body())
    finally:
      for handle in handles:
        handle.cancel()
    yield 'data: [DONE]\n\n'


async def _whole(request, handles) -> list[requests.Completion]:
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
  raise _gone()


def _gone() -> bodies.ApiError:
  return bodies.ApiError(499, 'the client is gone')


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
