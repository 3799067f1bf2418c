# SPDX-License-Identifier: Apache-2.0
"""/tokenize, /detokenize and /tokenizer_info, with vLLM's fields."""

from collections.abc import Mapping
from typing import Any

from specstream_jax import runtime
from specstream_jax.serving import bodies, protocol

_TEXT = {'model', 'prompt', 'add_special_tokens', 'return_token_strs'}
_CHAT = {'model', 'messages', 'tools', 'add_generation_prompt'}
_CHAT |= {'add_special_tokens', 'return_token_strs'}
FIELDS = frozenset(_TEXT | _CHAT | {'tokens'})


def tokenize(
  body: Mapping[str, Any],
  model: runtime.Model,
  adapters: Mapping[str, str],
  most: int,
) -> dict[str, Any]:
  """Token ids of a text, or of a chat as its template writes it.

  Args:
    body: JSON of the request.
    model: whose tokenizer encodes.
    adapters: names that `model` of the body may have.
    most: positions of a request.

  Raises:
    ApiError: a parameter is missing, wrong or not supported.
  """
  is_chat = body.get('messages') is not None
  bodies.check_names(body, _CHAT if is_chat else _TEXT)
  _check_model(body, adapters)
  has_special = bodies.flag(body, 'add_special_tokens', not is_chat)
  if is_chat:
    text = protocol.chat_text(
      body,
      model,
      add_generation_prompt=bodies.flag(body, 'add_generation_prompt', True),
    )
    # A template writes BOS itself; who wants another one, asks for it.
    text, param = (str(text) if has_special else text), 'messages'
  else:
    text, param = bodies.need(body, 'prompt'), 'prompt'
    if not isinstance(text, str):
      raise bodies.ApiError(
        400, f'prompt is {text!r:.80}; accepted: a text', param='prompt'
      )
  encode = model.encode_prompt if has_special else model.encode
  ids = bodies.naming(param)(lambda: encode(text))
  answer = {'count': len(ids), 'max_model_len': most, 'tokens': ids}
  if bodies.flag(body, 'return_token_strs', False):
    answer['token_strs'] = [model.tokenizer.id_to_token(i) for i in ids]
  return answer


def detokenize(
  body: Mapping[str, Any],
  model: runtime.Model,
  adapters: Mapping[str, str],
  most: int,
) -> dict[str, Any]:
  """The text of token ids, special tokens by name; see `tokenize`."""
  bodies.check_names(body, {'model', 'tokens'})
  _check_model(body, adapters)
  ids = bodies.need(body, 'tokens')
  is_id = lambda x: isinstance(x, int) and not isinstance(x, bool)
  if not isinstance(ids, list) or not all(map(is_id, ids)):
    raise bodies.ApiError(
      400, f'tokens is {ids!r:.80}; accepted: token ids', param='tokens'
    )
  if len(ids) > most:
    raise bodies.ApiError(
      400,
      f'tokens has {len(ids)} entries; accepted: at most {most}',
      param='tokens',
    )
  bodies.naming('tokens')(lambda: model.check_ids(ids, 'tokens'))
  decode = model.tokenizer.decode
  text = bodies.naming(None)(lambda: decode(ids, skip_special_tokens=False))
  return {'prompt': text}


def info(model: runtime.Model) -> dict[str, Any]:
  """What a client needs to prepare texts itself, lm-eval for one."""
  name = lambda i: None if i is None else model.tokenizer.id_to_token(i)
  template = model.chat_template
  return {
    'bos_token': name(model.bos_id),
    'eos_token': name(next(iter(model.eos_ids), None)),
    'pad_token': None,
    'chat_template': None if template is None else str(template),
  }


def _check_model(body, adapters) -> None:
  if body.get('model') is not None:
    protocol.model_name(body, adapters)
