# SPDX-License-Identifier: Apache-2.0
"""Chats as training examples: each answer of the assistant is one.

An answer follows what the model's own template writes when it is asked for it,
tools and earlier turns included, and is what the template makes of the answer
as the last message. So an example is what the model sees when it decodes, also
where a template rewrites earlier turns (thoughts that it drops, for example):
nothing but an answer carries loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specstream_jax.checkpoints import chat_format
from specstream_jax.data import chat


class Turn(NamedTuple):
  """One example.

  Attributes:
    prompt: text; a `chat_format.Text` if a template wrote it.
    answer: that follows it, None if there is none.
    end: text of the token that ends the answer; '' leaves it to the tokenizer.
    is_cut: the answer stopped before its end.
  """

  prompt: str
  answer: str | None
  end: str = ''
  is_cut: bool = False


def turns(
  template: str | None,
  messages: Sequence[Mapping[str, Any]],
  ends: Sequence[str],
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[Turn]:
  """The examples of a chat: one for each answer of the assistant.

  A chat without an answer is a prompt alone.

  Args:
    template: of the model, see `chat.render`.
    messages: {role, content, …}.
    ends: texts of the tokens that end an answer.
    tools: JSON schemas of functions that the model may call.

  Raises:
    ValueError: the template refuses the messages, or writes an answer in
      another way than it asks for one.
  """
  places = [i for i, m in enumerate(messages) if m.get('role') == 'assistant']
  if not places:
    return [Turn(chat.render(template, messages, tools=tools), None)]
  found = []
  for place in places:
    if not place:
      raise ValueError('the first message is an answer; put a question before')
    prompt = chat.render(template, messages[:place], tools=tools)
    whole = chat.render(
      template,
      messages[: place + 1],
      tools=tools,
      add_generation_prompt=False,
    )
    if not whole.startswith(prompt):
      raise ValueError(
        f'message {place + 1}: the chat template writes an answer otherwise '
        f'than it asks for one ({_end(prompt)!r} does not precede it); give '
        'rows of prompt and completion instead'
      )
    answer, end = _until_end(whole[len(prompt) :], ends)
    if not answer.strip():
      raise ValueError(f'message {place + 1}: the answer is empty')
    found.append(Turn(chat_format.Text(prompt), answer, end))
  return found


def _end(prompt: str) -> str:
  return prompt[-30:]


def _until_end(text: str, ends: Sequence[str]) -> tuple[str, str]:
  """An answer up to the first token that ends it, and that token's text."""
  found = [(text.find(end), end) for end in ends if end and end in text]
  if not found:
    return text.rstrip(), ''
  place, end = min(found)
  return text[:place], end
