# SPDX-License-Identifier: Apache-2.0
"""Answers are not worked at for who has gone."""

import asyncio
import types
from typing import Any

import pytest

from specstream_jax.serving import bodies, sending


class _Handle:
  """What a request came to."""

  is_done = True

  def listen(self, tell):
    del tell

  def cancel(self):
    pass

  def result(self, timeout):
    del timeout
    return types.SimpleNamespace(tokens=(3,))


@pytest.mark.parametrize('leaves_after', [0, 1])
def test_scoring_ends_with_the_client(leaves_after):
  scored: list[Any] = []

  async def is_disconnected():
    return len(scored) >= leaves_after

  request: Any = types.SimpleNamespace(is_disconnected=is_disconnected)
  call = types.SimpleNamespace(
    is_stream=False,
    is_prompt_only=False,
    requests=[types.SimpleNamespace(prompt=(1, i)) for i in range(3)],
  )
  shape: Any = types.SimpleNamespace(call=call, whole=None)
  handles: Any = [_Handle() for _ in call.requests]

  async def answer():
    score: Any = scored.append
    await sending.Sender().answer(request, shape, handles, score)

  with pytest.raises(bodies.ApiError, match='the client is gone'):
    asyncio.run(answer())
  assert scored == [(1, 0, 3)][:leaves_after]
