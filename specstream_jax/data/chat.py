# SPDX-License-Identifier: Apache-2.0
"""Chat messages as the prompt text a model was tuned on."""

from collections.abc import Mapping, Sequence

import jinja2
from jinja2 import sandbox


def render(
  template: str | None,
  messages: Sequence[Mapping[str, str]],
  **tokens: str,
) -> str:
  """The messages as text that ends where the assistant is to answer.

  Args:
    template: the model's Jinja chat template, or None.
    messages: {role, content}, the last one from the user.
    **tokens: names the template may use, such as bos_token.

  Raises:
    ValueError: the model has no template, or refuses these messages.
  """
  if not template:
    raise ValueError(
      'the model has no chat template; use a task of plain prompts, or a model '
      'tuned for chat'
    )
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True
  )

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment.globals['raise_exception'] = refuse
  try:
    return environment.from_string(template).render(
      messages=list(messages), add_generation_prompt=True, **tokens
    )
  except jinja2.TemplateError as error:
    raise ValueError(f'chat template: {error}') from error


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
