# SPDX-License-Identifier: Apache-2.0
"""Chat messages as the prompt text a model was tuned on.

What a template finds is what the Transformers library gives it: the special
tokens by name, `tools` and `documents` (None unless given), `strftime_now`,
`raise_exception`, loop controls and `{% generation %}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specstream_jax.checkpoints import chat_format
from specstream_jax.data import render_process


def prompt(
  template: str | None, turns: Sequence[str], answers: Sequence[str] = ()
) -> chat_format.Text:
  """What a user's turn number len(answers) + 1 looks like to the model.

  Args:
    template: see `render`.
    turns: of the user, perhaps more than are asked yet.
    answers: of the model, to the earlier turns.

  Raises:
    ValueError: see `render`.
  """
  return render(template, conversation(turns, answers))


def render(
  template: str | None,
  messages: Sequence[Mapping[str, Any]],
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
  documents: Sequence[Mapping[str, Any]] | None = None,
  add_generation_prompt: bool = True,
) -> chat_format.Text:
  """The messages as text, which ends where the assistant is to answer.

  The text is whole: where the model wants BOS, the template writes it, and
  `Model.encode_prompt` adds none.

  Args:
    template: the model's `chat_format.Template`, or Jinja source that uses no
      special token; None if the model has none.
    messages: {role, content, …}, JSON types; a None among them is left out, and
      content that is None is empty. A list of parts {type: text, text} is their
      text, as most templates know no other.
    tools: JSON schemas of functions that the model may call.
    documents: {title, text} to answer from.
    add_generation_prompt: ask for an answer; without, the text ends as the
      template ends the last message.

  Raises:
    ValueError: the model has no template, or it refuses these messages, fails,
      or takes more time or memory than a template may.
  """
  template = chat_format.of(template or '')
  source = template.tool_source if tools else ''
  if not (source or template):
    raise ValueError(
      'the model has no chat template; use plain prompts, or a model tuned for '
      'chat'
    )
  names = {
    **template.tokens,
    'messages': [
      _plain(number, message) for number, message in enumerate(messages, 1)
    ],
    'tools': tools,
    'documents': documents,
    'add_generation_prompt': add_generation_prompt,
  }
  try:
    text = render_process.RENDERER.render(source or str(template), names)
  except (TypeError, ValueError) as error:
    place = f' of {template.origin!r}' if template.origin else ''
    raise ValueError(
      f'chat template{place}: {error}{_hint(str(error), template)}'
    ) from error
  return chat_format.Text(text)


def _plain(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
  """A message as templates know it."""
  found = {name: value for name, value in message.items() if value is not None}
  content = message.get('content')
  if isinstance(content, list):
    for part in content:
      kind = part.get('type') if isinstance(part, Mapping) else None
      if kind != 'text' or not isinstance(part.get('text'), str):
        raise ValueError(
          f'message {number} has content of type {kind!r:.40}; accepted: text, '
          'or a list of {"type": "text", "text": …}'
        )
    found['content'] = ''.join(part['text'] for part in content)
  elif content is None and 'content' in message:
    found['content'] = ''
  return found


def _hint(problem: str, template: chat_format.Template) -> str:
  """What helps where a special token is missing."""
  for name in set(chat_format.TOKEN_NAMES) - set(template.tokens):
    if problem == f'{name!r} is undefined':
      return f'; name {name} in tokenizer_config.json'
  return ''


def conversation(
  turns: Sequence[str], answers: Sequence[str]
) -> list[dict[str, str]]:
  """Messages of the first len(answers) + 1 turns of a user."""
  messages = []
  for i, turn in enumerate(turns[: len(answers) + 1]):
    messages.append({'role': 'user', 'content': turn})
    if i < len(answers):
      messages.append({'role': 'assistant', 'content': answers[i]})
  return messages
