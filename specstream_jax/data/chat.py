# SPDX-License-Identifier: Apache-2.0
"""Chat messages as the prompt text a model was tuned on."""

from collections.abc import Mapping, Sequence

import jinja2
from jinja2 import sandbox


def prompt(
  template: str | None, turns: Sequence[str], answers: Sequence[str] = ()
) -> str:
  """What a user's turn number len(answers) + 1 looks like to the model.

  Without BOS, which encoding puts in front.

  Args:
    template: the model's Jinja chat template, or None.
    turns: of the user, perhaps more than are asked yet.
    answers: of the model, to the earlier turns.

  Raises:
    ValueError: see `render`.
  """
  messages = conversation(turns, answers)
  return render(template, messages, bos_token='', eos_token='')


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
