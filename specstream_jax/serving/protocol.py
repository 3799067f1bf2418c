# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests as the OpenAI API has them.

Every parameter is used, or refused by its name; none is passed over. Those
beyond the API (top_k, min_p, repetition_penalty, …) are named as in vLLM.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import secrets
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.data import chat
from specstream_jax.serving import bodies, fields, requests, scoring

_ID = re.compile('0|-?[1-9][0-9]{0,499}')
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
  *('stop_token_ids', 'logit_bias', 'timeout', 'drafts', 'prediction'),
  'user',  # names who asks, and asks for nothing
}
COMPLETION = _COMMON | {'prompt', 'echo', 'logprobs'}
CHAT = _COMMON | {'messages', 'max_completion_tokens', 'tools', 'tool_choice'}
CHAT |= {'logprobs', 'top_logprobs'}


@dataclasses.dataclass(frozen=True)
class Call:
  """A body that was read.

  Attributes:
    model: name that was asked for.
    requests: one for each prompt and choice, in the order of the answer.
    num_choices: of each prompt.
    is_stream: whether pieces go out as they come.
    has_usage: whether a stream ends with the usage.
    has_steps: whether a piece of a stream is what one call added, and says so,
      with the draft tree of the call if a request asks for it.
    num_top: rivals to show beside each token with log-probabilities; None
      shows none of those.
    echoes: text of each prompt if answers begin with it, else none.
    is_prompt_only: whether nothing new is wanted; the one new token of each
      request is to be left out.
  """

  model: str
  requests: tuple[requests.Request, ...]
  num_choices: int = 1
  is_stream: bool = False
  has_usage: bool = False
  has_steps: bool = False
  num_top: int | None = None
  echoes: tuple[str, ...] = ()
  is_prompt_only: bool = False

  def echo(self, index: int) -> str:
    """What the answer number `index` begins with."""
    return self.echoes[index // self.num_choices] if self.echoes else ''


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
  bodies.check_names(body, COMPLETION)
  prompts = _prompts(bodies.need(body, 'prompt'), model)
  limit, num_top = body.get('max_tokens'), body.get('logprobs')
  has_echo, is_stream = (
    bodies.flag(body, 'echo', False),
    bodies.flag(body, 'stream', False),
  )
  if limit is None:
    limit = 16
  is_prompt_only = type(limit) is int and not limit
  if is_prompt_only and (is_stream or not has_echo):
    raise bodies.ApiError(
      400,
      'max_tokens is 0; accepted: at least 1, or 0 with echo and no stream',
      param='max_tokens',
    )
  ids = [prompt for prompt, _ in prompts]
  call = _call(body, model, adapters, ids, 1 if is_prompt_only else limit)
  echoes = ()
  if has_echo:
    echo = lambda: tuple(_echo(model, *prompt) for prompt in prompts)
    echoes = bodies.naming('prompt')(echo)
  return dataclasses.replace(
    call,
    num_top=_num_top(num_top, 'logprobs', model),
    echoes=echoes,
    is_prompt_only=is_prompt_only,
  )


def read_chat(
  body: Mapping[str, Any], model: runtime.Model, adapters: Mapping[str, str]
) -> Call:
  """A body of /v1/chat/completions; arguments as of `read_completion`."""
  bodies.check_names(body, CHAT)
  limit, other = body.get('max_completion_tokens'), body.get('max_tokens')
  if None not in (limit, other) and limit != other:
    raise bodies.ApiError(
      400,
      f'max_tokens is {other!r:.80} and max_completion_tokens is {limit!r:.80}; '
      'give one of them',
      param='max_tokens',
    )
  limit = other if limit is None else limit
  text = chat_text(body, model)
  prompt = bodies.naming('messages')(lambda: model.encode_prompt(text))
  call = _call(body, model, adapters, [prompt], limit)
  has_logprobs, num_top = (
    bodies.flag(body, 'logprobs', False),
    body.get('top_logprobs'),
  )
  if num_top is not None and not has_logprobs:
    raise bodies.ApiError(
      400, 'top_logprobs needs logprobs; set it to true', param='top_logprobs'
    )
  if has_logprobs:
    num_top = 0 if num_top is None else num_top
    num_top = _num_top(num_top, 'top_logprobs', model)
    call = dataclasses.replace(call, num_top=num_top)
  return call


def chat_text(
  body: Mapping[str, Any],
  model: runtime.Model,
  *,
  add_generation_prompt: bool = True,
) -> str:
  """`messages` and `tools` of a body, as the model's template writes them.

  With a `tool_choice` of 'none' there are no tools.

  Raises:
    ApiError: they are missing or wrong, or the template refuses them.
  """
  messages = [
    _message(m)
    for m in bodies.listed(bodies.need(body, 'messages'), 'messages')
  ]
  tools = body.get('tools')
  if tools is not None:
    tools = [
      bodies.mapping(tool, 'tools') for tool in bodies.listed(tools, 'tools')
    ]
  choice = body.get('tool_choice')
  if choice not in (None, 'auto', 'none'):
    raise bodies.unsupported('tool_choice')
  if choice == 'none':
    tools = None
  return bodies.naming('messages')(
    lambda: chat.render(
      model.chat_template,
      messages,
      tools=tools,
      add_generation_prompt=add_generation_prompt,
    )
  )


def model_name(body: Mapping[str, Any], adapters: Mapping[str, str]) -> str:
  """The `model` of a body; raises ApiError if there is none of that name."""
  name = bodies.need(body, 'model')
  if not isinstance(name, str) or name not in adapters:
    raise bodies.ApiError(
      404,
      f'there is no model {name!r:.80}; served: '
      f'{", ".join(map(repr, adapters))}',
      kind='not_found_error',
      param='model',
    )
  return name


def _call(body, model, adapters, prompts, limit) -> Call:
  """What both kinds of bodies have in common."""
  name = model_name(body, adapters)
  count = bodies.count(body, 'n', 1)
  if not 1 <= len(prompts) * count <= MAX_CHOICES:
    raise bodies.ApiError(
      400,
      f'{len(prompts)} prompts and n of {count} make {len(prompts) * count} '
      f'choices; accepted: 1 to {MAX_CHOICES}',
      param='n',
    )
  is_stream = bodies.flag(body, 'stream', False)
  options = _stream_options(body, is_stream)
  has_trees = bodies.flag(options, 'include_trees', False)
  has_steps = has_trees or bodies.flag(options, 'include_steps', False)
  seed = body.get('seed')
  seed = secrets.randbits(31) if seed is None else seed
  common = {
    'adapter': adapters[name],
    'max_new_tokens': limit,
    'sampling': _sampling(body, model),
    'stop': bodies.texts(body.get('stop'), 'stop'),
    'stop_ids': tuple(_optional(bodies.listed, body, 'stop_token_ids', [])),
    'timeout': body.get('timeout'),
    'prediction': _prediction(body.get('prediction'), model),
    'has_drafts': bodies.flag(body, 'drafts', True),
    'has_steps': has_steps,
    'has_trees': has_trees,
  }
  if not isinstance(body.get('user'), str | None):
    raise bodies.ApiError(
      400, f'user is {body["user"]!r:.80}; accepted: a text', param='user'
    )
  make = lambda prompt, choice: fields.naming(body)(
    lambda: requests.Request(
      tuple(prompt), seed=_choice_seed(seed, choice), **common
    )
  )
  return Call(
    name,
    tuple(make(prompt, i) for prompt in prompts for i in range(count)),
    count,
    is_stream,
    bodies.flag(options, 'include_usage', False),
    has_steps,
  )


def _optional(read, body, name, default) -> Any:
  """What `read` makes of a parameter that need not be there."""
  value = body.get(name)
  return default if value is None else read(value, name)


def _stream_options(body, is_stream) -> dict[str, Any]:
  """The options of a stream; raises ApiError if there are some and it is none."""
  options = _optional(bodies.mapping, body, 'stream_options', {})
  known = {'include_usage', 'include_steps', 'include_trees'}
  unknown = sorted(set(options) - known)
  if unknown:
    raise bodies.unsupported(f'stream_options.{unknown[0]}')
  if body.get('stream_options') is not None and not is_stream:
    raise bodies.ApiError(
      400, 'stream_options need stream; set it to true', param='stream_options'
    )
  return options


def _prediction(value: Any, model: runtime.Model) -> tuple[int, ...]:
  """Tokens of what a client guesses the answer to be; () without."""
  if value is None:
    return ()
  guess = bodies.mapping(value, 'prediction')
  content = _joined(guess.get('content'), 'prediction')
  if set(guess) - {'type', 'content'} or guess.get('type') != 'content':
    content = None
  if not isinstance(content, str):
    raise bodies.ApiError(
      400,
      f'prediction is {str(value)[:80]}; accepted: {{"type": "content", '
      '"content": a text, or a list of parts}',
      param='prediction',
    )
  return tuple(bodies.naming('prediction')(lambda: model.encode(content)))


def _num_top(value: Any, name: str, model: runtime.Model):
  """How many rivals of each token are asked for; None for no probabilities."""
  if value is None:
    return None
  count, most = bodies.count({name: value}, name, 0), scoring.MOST_CANDIDATES
  if not 0 <= count <= most:
    raise bodies.ApiError(
      400, f'{name} is {count}; accepted: 0 to {most}', param=name
    )
  bodies.naming('logprobs')(lambda: model.pieces)
  return count


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
  if body.get('logit_bias') is not None:
    values['logit_bias'] = _biases(body['logit_bias'], 'logit_bias')
  return fields.naming(body)(lambda: config.SamplingConfig(**values))


def _biases(value: Any, name: str) -> dict[int, Any]:
  """Biases by token id, which JSON has as texts; one spelling of each."""
  pairs = bodies.mapping(value, name)
  if not all(map(_ID.fullmatch, pairs)):
    raise bodies.ApiError(
      400,
      f'{name} is {str(value)[:80]}; accepted: an object of token ids and '
      'numbers',
      param=name,
    )
  return {int(token): bias for token, bias in pairs.items()}


def _prompts(
  value: Any, model: runtime.Model
) -> list[tuple[Sequence[int], str | None]]:
  """The prompts of a text, token ids, or a list of either; with their texts."""
  is_id = lambda x: isinstance(x, int) and not isinstance(x, bool)
  many = value if isinstance(value, list) else [value]
  if all(map(is_id, many)):
    many = [many]
  found = []
  for prompt in many:
    if isinstance(prompt, str):
      ids = bodies.naming('prompt')(lambda p=prompt: model.encode_prompt(p))
      found.append((ids, prompt))
    elif isinstance(prompt, list) and prompt and all(map(is_id, prompt)):
      found.append((prompt, None))
    else:
      raise bodies.ApiError(
        400,
        f'prompt is {str(value)[:80]!r}; accepted: a text, token ids, or a list '
        'of either, none of them empty',
        param='prompt',
      )
  return found


def _echo(model: runtime.Model, ids: Sequence[int], text: str | None) -> str:
  """The text of a prompt that was given as text or ids."""
  if text is not None:
    return text
  model.check_ids(ids, 'the prompt')
  return model.decode_text(ids, ignore_eos=True)


def _message(value: Any) -> dict[str, Any]:
  """A message; parts of text are joined."""
  message = dict(bodies.mapping(value, 'messages'))
  if not isinstance(message.get('role'), str):
    raise bodies.ApiError(
      400, 'a message has no role; name one', param='messages'
    )
  if (content := _joined(message.get('content'), 'messages')) is not None:
    message['content'] = content
  return message


def _is_text(part: Mapping[str, Any]) -> bool:
  return isinstance(part.get('text'), str)


def _joined(content: Any, param: str) -> str | None:
  """A content as one text; parts of text are joined."""
  if isinstance(content, list):
    parts = [bodies.mapping(part, param) for part in content]
    if any(part.get('type') != 'text' for part in parts):
      kinds = sorted({str(part.get('type')) for part in parts} - {'text'})
      raise bodies.ApiError(
        400,
        f'content of type {kinds[0]!r:.80} is not supported; use text',
        param=param,
      )
    said = [part['text'] for part in parts if _is_text(part)]
    if len(said) < len(parts):
      raise bodies.ApiError(
        400,
        f'content is {str(content)[:80]}; accepted: parts that have a text each',
        param=param,
      )
    return ''.join(said)
  if not isinstance(content, str | None):
    raise bodies.ApiError(
      400,
      f'content is {content!r:.80}; accepted: a text, or a list of parts',
      param=param,
    )
  return content
