# SPDX-License-Identifier: Apache-2.0
"""Errors name the parameter that a client sent, not what it is called inside."""

from collections.abc import Callable, Mapping
import re
from typing import Any

from specstream_jax.serving import bodies, requests

# What begins a message, and the parameter that it is about; the first that fits.
_ABOUT = (
  (r'min_new_tokens\b', 'min_tokens'),
  (r'stop_ids\b|\d+ token ids would end', 'stop_token_ids'),
  (r'\d+ tokens are biased|an entry of logit_bias\b', 'logit_bias'),
  (r'an entry of stop\b|stop texts?\b', 'stop'),
)
_PROMPT = re.compile(r'the prompt\b|prompt\b')
_LIMIT = re.compile(r'max_new_tokens\b')
_NAME = re.compile(r'[a-z]+(?:_[a-z]+)*')
# How Python or gin would say it.
_HINT = re.compile(
  r' \((?:write|in gin:) (?:[^()]|\([^()]*\))*\)|SamplingConfig\.'
)


def as_sent(error: ValueError, body: Mapping[str, Any]) -> bodies.ApiError:
  """An error of a request, in the words of the body that it was read from.

  Args:
    error: its message begins with a field of `requests.Request` or of
      `SamplingConfig`, or with what it is about.
    body: JSON.
  """
  if isinstance(error, requests.NoAdapterError):
    kind = 'not_found_error'
    return bodies.ApiError(404, str(error), kind=kind, param='model')
  text = _HINT.sub('', bodies.public(error))
  limit, prompt = _limit(body), 'messages' if 'messages' in body else 'prompt'
  found = next((name for start, name in _ABOUT if re.match(start, text)), None)
  if _LIMIT.match(text):
    found = limit
  elif _PROMPT.match(text):
    found = prompt
  elif found is None and (name := _NAME.match(text)) and name[0] in body:
    found = name[0]
  for inside, sent in (
    ('max_new_tokens', limit),
    ('min_new_tokens', 'min_tokens'),
    ('stop_ids', 'stop_token_ids'),
    ('a tuple', 'a list'),
  ):
    text = re.sub(rf'\b{inside}\b', sent, text)
  return bodies.ApiError(400, text, param=found)


def naming(
  body: Mapping[str, Any],
) -> Callable[[Callable[[], Any]], Any]:
  """Calls a function whose ValueErrors become answers; see `as_sent`."""

  def call(function):
    try:
      return function()
    except ValueError as error:
      raise as_sent(error, body) from error

  return call


def _limit(body: Mapping[str, Any]) -> str:
  """What the body calls the most new tokens."""
  name = 'max_completion_tokens'
  return name if body.get(name) is not None else 'max_tokens'
