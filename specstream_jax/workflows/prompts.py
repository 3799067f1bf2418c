# SPDX-License-Identifier: Apache-2.0
"""What a caller may give as a prompt, as the token ids that a model reads."""

from collections.abc import Mapping, Sequence
import numbers
from typing import Any, NamedTuple

from specstream_jax import runtime
from specstream_jax.checkpoints import chat_format
from specstream_jax.config import checks
from specstream_jax.data import chat


class Chat(NamedTuple):
  """A chat to answer.

  Attributes:
    messages: {role, content, …}, the last one to be answered.
    tools: JSON schemas of functions that the model may call.
  """

  messages: Sequence[Mapping[str, Any]]
  tools: Sequence[Mapping[str, Any]] | None = None


_ACCEPTED = 'a text, a list of token ids, or a list of chat messages'


def encode(
  model: runtime.Model, prompts: Sequence[Any], *, is_chat: bool = False
) -> list[list[int]]:
  """Token ids of every prompt.

  Args:
    model: whose tokenizer and chat template are used.
    prompts: each a text, token ids (a list, or an array of integers), or a chat
      (a list of messages {role, content}, or a `Chat`).
    is_chat: a text is what a user says, and goes through the chat template.

  Raises:
    ValueError: a prompt is none of these (its number, and what it is), holds an
      id that the model does not have, or the chat template refuses it.
  """
  try:
    is_one = isinstance(prompts, str | bytes | Mapping | set)
    rows = None if is_one else list(prompts)
  except TypeError:
    rows = None
  if rows is None:
    raise ValueError(
      f'prompts is {_described(prompts)}; pass a list of texts, of lists of token '
      'ids, or of chats'
    )
  return [
    _ids(model, row, f'prompt {i}', is_chat) for i, row in enumerate(rows)
  ]


def _described(value: Any) -> str:
  """Kind and beginning of a value."""
  noun = 'the text' if isinstance(value, str) else type(value).__name__
  return f'{noun} {value!r:.60}'


def _ids(model, prompt, name: str, is_chat: bool) -> list[int]:
  if isinstance(prompt, str):
    checks.text(name, prompt)
    if is_chat and not isinstance(prompt, chat_format.Text):
      prompt = chat.prompt(model.chat_template, [prompt])
    return model.encode_prompt(prompt)
  if isinstance(prompt, Chat):
    text = chat.render(model.chat_template, prompt.messages, tools=prompt.tools)
    return model.encode_prompt(text)
  # Arrays of numpy, JAX and others.
  row: Any = prompt.tolist() if hasattr(prompt, 'tolist') else prompt
  if not _is_a(row, list | tuple | range):
    raise ValueError(f'{name} is {_described(prompt)}; accepted: {_ACCEPTED}')
  if row and all(isinstance(message, Mapping) for message in row):
    return model.encode_prompt(chat.render(model.chat_template, row))
  return _checked(row, name, model.config.vocab_size)


def _is_a(value: Any, kind: Any) -> bool:
  return isinstance(value, kind)


def _checked(row: Any, name: str, vocab_size: int) -> list[int]:
  """The row, if all of it are ids of the vocabulary."""
  for token in row:
    if not _is_a(token, numbers.Integral) or isinstance(token, bool):
      raise ValueError(
        f'{name} holds {token!r:.60}, which is no token id; accepted: '
        f'{_ACCEPTED}'
      )
    if not 0 <= token < vocab_size:
      raise ValueError(
        f'{name} holds token id {token}; accepted: 0 to {vocab_size - 1}'
      )
  return [int(token) for token in row]
