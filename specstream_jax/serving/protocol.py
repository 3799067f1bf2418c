# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests as the OpenAI API has them.

Every parameter is used, or refused by its name; none is passed over. Those
beyond the API (top_k, min_p, repetition_penalty, …) are named as in vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import secrets
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.config import checks
from specstream_jax.data import chat
from specstream_jax.serving import requests

MAX_CHOICES = 128  # of one request, prompts times n
_SAMPLING = {
  'temperature': 'temperature',
  'top_p': 'top_p',
  'top_k': 'top_k',
  'min_p': 'min_p',
  'repetition_penalty': 'repetition_penalty',
  'presence_penalty': 'presence_penalty',
  'frequency_penalty': 'frequency_penalty',
  'ignore_eos': 'ignore_eos',
  'min_tokens': 'min_new_tokens',
}
_COMMON = {
  *_SAMPLING,
  *('model', 'n', 'stream', 'stream_options', 'max_tokens', 'seed', 'stop'),
  *('stop_token_ids', 'logit_bias', 'timeout', 'drafts'),
  'user',  # names who asks, and asks for nothing
}
COMPLETION = _COMMON | {'prompt'}
CHAT = _COMMON | {'messages', 'max_completion_tokens', 'tools'}
# Values that ask for nothing, of parameters that are not supported.
_NOTHING: dict[str, tuple[Any, ...]] = {
  'echo': (False,),
  'best_of': (1,),
  'suffix': ('',),
  'logprobs': (False,),
  'top_logprobs': (0,),
  'tool_choice': ('none', 'auto'),
  'response_format': ({'type': 'text'},),
  'parallel_tool_calls': (True, False),
  'store': (False,),
}


class ApiError(Exception):
  """An answer that is no completion.

  Attributes:
    status: of HTTP.
    kind: as the API names it.
    param: the parameter that is wrong, or None.
    retry_after: seconds after which it may be worth while, or None.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    kind: str = 'invalid_request_error',
    param: str | None = None,
    retry_after: float | None = None,
  ):
    super().__init__(message)
    self.status, self.kind, self.param = status, kind, param
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    """In the API's shape."""
    error = {
      'message': str(self),
      'type': self.kind,
      'param': self.param,
      'code': self.status,
    }
    return {'error': error}


@dataclasses.dataclass(frozen=True)
class Call:
  """A body that was read.

  Attributes:
    model: name that was asked for.
    requests: one for each prompt and choice, in the order of the answer.
    num_choices: of each prompt.
    is_stream: whether pieces go out as they come.
    has_usage: whether a stream ends with the usage.
    has_steps: whether a piece of a stream is what one call added, and says so.
  """

  model: str
  requests: tuple[requests.Request, ...]
  num_choices: int = 1
  is_stream: bool = False
  has_usage: bool = False
  has_steps: bool = False


def read_completion(
  body: Mapping[str, Any], model: runtime.Model, adapters: Mapping[str, str]
) -> Call:
  """A body of /v1/completions.

  Args:
    body: JSON.
    model: what decodes, whose tokenizer encodes.
    adapters: name of a model in the API -> name of its adapter.

  Raises:
    ApiError: a parameter is missing, wrong or not supported.
  """
  _check_names(body, COMPLETION)
  prompts = _prompts(_need(body, 'prompt'), model)
  limit = body.get('max_tokens')
  return _call(body, model, adapters, prompts, 16 if limit is None else limit)


def read_chat(
  body: Mapping[str, Any], model: runtime.Model, adapters: Mapping[str, str]
) -> Call:
  """A body of /v1/chat/completions; arguments as of `read_completion`."""
  _check_names(body, CHAT)
  limits = [body.get(n) for n in ('max_completion_tokens', 'max_tokens')]
  limit = next((value for value in limits if value is not None), None)
  messages = [_message(m) for m in _list(_need(body, 'messages'), 'messages')]
  tools = body.get('tools')
  if tools is not None:
    tools = [_dict(tool, 'tools') for tool in _list(tools, 'tools')]
  with_param = _naming('messages')
  text = with_param(
    lambda: chat.render(model.chat_template, messages, tools=tools)
  )
  prompt = with_param(lambda: model.encode_prompt(text))
  return _call(body, model, adapters, [prompt], limit)


def _call(body, model, adapters, prompts, limit) -> Call:
  """What both kinds of bodies have in common."""
  name = _need(body, 'model')
  if not isinstance(name, str) or name not in adapters:
    raise ApiError(
      404,
      f'there is no model {name!r:.80}; served: '
      f'{", ".join(map(repr, adapters))}',
      kind='not_found_error',
      param='model',
    )
  count = _count(body, 'n', 1)
  if not 1 <= len(prompts) * count <= MAX_CHOICES:
    raise ApiError(
      400,
      f'{len(prompts)} prompts and n of {count} make {len(prompts) * count} '
      f'choices; accepted: 1 to {MAX_CHOICES}',
      param='n',
    )
  options = _dict(body.get('stream_options') or {}, 'stream_options')
  unknown = sorted(set(options) - {'include_usage', 'include_steps'})
  if unknown:
    raise _unsupported(f'stream_options.{unknown[0]}')
  is_stream = _bool(body, 'stream', False)
  has_steps = is_stream and _bool(options, 'include_steps', False)
  seed = body.get('seed')
  seed = secrets.randbits(31) if seed is None else seed
  common = {
    'adapter': adapters[name],
    'max_new_tokens': limit,
    'sampling': _sampling(body, model),
    'stop': _texts(body.get('stop'), 'stop'),
    'stop_ids': tuple(
      _list(body.get('stop_token_ids') or [], 'stop_token_ids')
    ),
    'timeout': body.get('timeout'),
    'has_drafts': _bool(body, 'drafts', True),
    'has_steps': has_steps,
  }
  make = lambda prompt, choice: _naming(None)(
    lambda: requests.Request(
      tuple(prompt), seed=_choice_seed(seed, choice), **common
    )
  )
  return Call(
    name,
    tuple(make(prompt, i) for prompt in prompts for i in range(count)),
    count,
    is_stream,
    _bool(options, 'include_usage', False),
    has_steps,
  )


def _choice_seed(seed: Any, choice: int) -> Any:
  """The seed of choice number `choice`; the first has the one asked for."""
  is_number = isinstance(seed, int) and not isinstance(seed, bool)
  return (seed + choice) % 2**32 if choice and is_number else seed


def _sampling(body, model) -> config.SamplingConfig:
  """The API's defaults, then the checkpoint's wishes, then the body."""
  wishes = model.wishes().sampling
  values = {'temperature': 1.0} | wishes.changes()
  for name, field in _SAMPLING.items():
    if body.get(name) is not None:
      values[field] = body[name]
  if values.get('top_k') == -1:  # as vLLM spells off
    values['top_k'] = 0
  if body.get('logit_bias'):
    values['logit_bias'] = _biases(body['logit_bias'])
  return _naming(None)(lambda: config.SamplingConfig(**values))


def _biases(value: Any) -> dict[int, Any]:
  """Biases by token id, which JSON has as texts."""
  pairs = _dict(value, 'logit_bias')
  try:
    return {int(token): bias for token, bias in pairs.items()}
  except ValueError:
    raise ApiError(
      400,
      f'logit_bias is {str(value)[:80]}; accepted: an object of token ids and '
      'numbers',
      param='logit_bias',
    ) from None


def _prompts(value: Any, model: runtime.Model) -> list[Sequence[int]]:
  """The prompts of a text, token ids, or a list of either."""
  is_id = lambda x: isinstance(x, int) and not isinstance(x, bool)
  many = value if isinstance(value, list) else [value]
  if all(map(is_id, many)):
    many = [many]
  found = []
  for prompt in many:
    if isinstance(prompt, str):
      found.append(_naming('prompt')(lambda p=prompt: model.encode_prompt(p)))
    elif isinstance(prompt, list) and prompt and all(map(is_id, prompt)):
      found.append(prompt)
    else:
      raise ApiError(
        400,
        f'prompt is {str(value)[:80]!r}; accepted: a text, token ids, or a list '
        'of either, none of them empty',
        param='prompt',
      )
  return found


def _message(value: Any) -> dict[str, Any]:
  """A message; parts of text are joined."""
  message = dict(_dict(value, 'messages'))
  if not isinstance(message.get('role'), str):
    raise ApiError(400, 'a message has no role; name one', param='messages')
  content = message.get('content')
  if isinstance(content, list):
    parts = [_dict(part, 'messages') for part in content]
    if any(part.get('type') != 'text' for part in parts):
      kinds = sorted({str(part.get('type')) for part in parts} - {'text'})
      raise ApiError(
        400,
        f'content of type {kinds[0]!r:.80} is not supported; use text',
        param='messages',
      )
    message['content'] = ''.join(str(part.get('text', '')) for part in parts)
  elif not isinstance(content, str | None):
    raise ApiError(
      400,
      f'content is {content!r:.80}; accepted: a text, or a list of parts',
      param='messages',
    )
  return message


def _check_names(body: Mapping[str, Any], known: set[str]) -> None:
  """Refuses parameters that would be passed over."""
  for name, value in body.items():
    asks_nothing = any(
      type(value) is type(nothing) and value == nothing
      for nothing in _NOTHING.get(name, ())
    )
    if name not in known and value is not None and not asks_nothing:
      raise _unsupported(name)


def _unsupported(name: str) -> ApiError:
  return ApiError(
    400, f'{name[:80]!r} is not supported here; leave it out', param=name[:80]
  )


def _naming(param: str | None) -> Callable[..., Any]:
  """Calls a function whose ValueErrors become answers."""

  def call(function):
    try:
      return function()
    except ValueError as error:
      raise ApiError(400, checks.message(error), param=param) from error

  return call


def _need(body: Mapping[str, Any], name: str) -> Any:
  if body.get(name) is None:
    raise ApiError(400, f'{name!r} is missing; it is needed', param=name)
  return body[name]


def _list(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: a list', param=name
    )
  return value


def _dict(value: Any, name: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: an object', param=name
    )
  return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
  """A text or a list of them."""
  if value is None:
    return ()
  return (value,) if isinstance(value, str) else tuple(_list(value, name))


def _bool(body: Mapping[str, Any], name: str, default: bool) -> bool:
  value = body.get(name)
  if not isinstance(value, bool | None):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: true or false', param=name
    )
  return default if value is None else value


def _count(body: Mapping[str, Any], name: str, default: int) -> int:
  value = body.get(name)
  if value is None:
    return default
  if not isinstance(value, int) or isinstance(value, bool):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: a whole number', param=name
    )
  return value
