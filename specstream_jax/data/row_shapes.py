# SPDX-License-Identifier: Apache-2.0
"""What the columns of a row mean: a prompt and its answer, or a chat.

Known shapes, by the names of columns (case does not matter): `messages` (and
`conversations`), `instruction` with `input` and `output`, `question` with
`context` and `answer`, `prompt` with `completion`. Other names are given.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from specstream_jax.checkpoints import chat_format
from specstream_jax.config import checks
from specstream_jax.data import chat_rows, prompts, readers

CHAT = ('auto', 'always', 'never')
_PROMPTS = ('prompt', 'inputs')
_ANSWERS = ('completion', 'targets', 'response', 'answer', 'output')
_CHATS = ('messages', 'conversations')
_ROLES = {'human': 'user', 'gpt': 'assistant'}
# Columns that are read where they are, beside those of the shapes.
_BESIDE = ('tools', 'finished', 'chat')


@dataclasses.dataclass(frozen=True)
class Shape:
  """How rows are read.

  Attributes:
    prompt_column: name of the column with the prompt, or with messages; ''
      goes by the known names.
    answer_column: the same of the answer.
    chat: whether prompts go through the chat template as what a user says:
      `auto` does so for questions, instructions and named columns if the model
      has one, `always` for all, `never` for none. Messages always do.
    template: of the model, or None.
    ends: texts of the tokens at which the model ends an answer.
  """

  prompt_column: str = ''
  answer_column: str = ''
  chat: str = 'auto'
  template: chat_format.Template | None = None
  ends: tuple[str, ...] = ()

  def __post_init__(self):
    checks.one_of('chat', self.chat, CHAT)
    if self.answer_column and not self.prompt_column:
      raise ValueError(
        f'--answer_column={self.answer_column} goes with --prompt_column; name '
        'both'
      )

  def turns(self, row: Mapping[str, Any]) -> list[chat_rows.Turn]:
    """The examples of a row.

    Raises:
      ValueError: what is wrong with the row.
    """
    names = {name.lower(): name for name in reversed(list(row))}

    def get(name: str | None) -> Any:
      return row.get(names.get(name.lower(), name)) if name else None

    if not self.prompt_column:
      return self._by_name(get, set(names))
    for name in filter(None, (self.prompt_column, self.answer_column)):
      if name.lower() not in names:
        raise ValueError(f'has no column {name!r}, only {_listed(row)}')
    prompt, answer = (
      get(self.prompt_column),
      self._answer(get, self.answer_column),
    )
    if isinstance(prompt, list):
      said = [{'role': 'assistant', 'content': answer}] if answer else []
      return self._chat([*prompt, *said], get('tools'))
    is_question = self.template is not None and self.chat != 'never'
    return self._pair(prompt, answer, get, is_question=is_question)

  def used(self, row: Mapping[str, Any]) -> set[str]:
    """Names of the columns that are read of a row."""
    if self.prompt_column:
      known = {self.prompt_column, self.answer_column, *_BESIDE}
    else:
      known = {
        *_CHATS,
        *_PROMPTS,
        *_ANSWERS,
        *_BESIDE,
        *('instruction', 'input', 'question', 'context'),
      }
    wanted = {name.lower() for name in known}
    return {name for name in row if name.lower() in wanted}

  def _by_name(self, get, names):
    """The examples of a row whose shape its names tell."""
    for name in _CHATS:
      if get(name) is not None:
        return self._chat(get(name), get('tools'))
    answer = next(
      (self._answer(get, n) for n in _ANSWERS if get(n) is not None), None
    )
    if 'instruction' in names:
      text = _joined('instruction', get('instruction'), get('input'))
      return self._pair(text, answer, get, is_question=True)
    if 'question' in names:
      text = get('question')
      if get('context'):
        text = _joined('question', get('context'), text)
      return self._pair(text, answer, get, is_question=True)
    name = next((n for n in _PROMPTS if n in names), None)
    if name is None:
      raise ValueError(
        f'has columns {_listed(names)}; accepted: messages, instruction and '
        'output, question and answer, or prompt and completion; name others '
        'with --prompt_column and --answer_column'
      )
    if isinstance(get(name), list):
      return self._chat(get(name), get('tools'))
    return self._pair(get(name), answer, get, is_question=False)

  def _answer(self, get, name):
    """The text of an answer column; of a list of answers the first."""
    value = get(name) if name else None
    if isinstance(value, list) and value and isinstance(value[0], str):
      return value[0]
    return value

  def _pair(self, prompt, answer, get, *, is_question) -> list[chat_rows.Turn]:
    texts = {'the prompt': prompt}
    if answer is not None:
      texts['the answer'] = answer
    if problem := readers.text_problem(texts):
      raise ValueError(problem)
    is_finished = get('finished')
    is_cut = is_finished is False or str(is_finished).lower() == 'false'
    if get('chat') is True:  # a template has written it
      return [chat_rows.Turn(chat_format.Text(prompt), answer, is_cut=is_cut)]
    is_chat = self.chat == 'always' or (
      self.chat == 'auto' and is_question and self.template is not None
    )
    if is_chat:
      said = [{'role': 'user', 'content': prompt}]
      if answer is not None:
        said.append({'role': 'assistant', 'content': answer})
      return self._chat(said, None)
    if is_question:
      prompt = f'{prompt}\nAnswer:'
      answer = answer and prompts.spaced(answer.strip())
    return [chat_rows.Turn(prompt, answer, is_cut=is_cut)]

  def _chat(self, messages: Any, tools: Any) -> list[chat_rows.Turn]:
    found, listed = _messages(messages), tools
    if isinstance(tools, str) and tools.strip():
      listed = _parsed('tools', tools)
    if listed and not _are_objects(listed):
      raise ValueError(f'tools is {str(listed)[:60]!r}, not a list of objects')
    listed = listed or None
    return chat_rows.turns(self.template, found, self.ends, tools=listed)


def _joined(name: str, first: Any, second: Any) -> Any:
  """Two texts with a blank line between, the second perhaps not there."""
  for text in (first, second):
    if text is not None and not isinstance(text, str):
      raise ValueError(f'{name} is {type(text).__name__}, not text')
  return '\n\n'.join(t for t in (first, second) if t and t.strip())


def _messages(value: Any) -> list[dict[str, Any]]:
  """Checked messages; JSON in a CSV cell is read."""
  if isinstance(value, str):
    value = _parsed('messages', value)
  if not _are_objects(value) or not value:
    raise ValueError(
      f'messages is {str(value)[:60]!r}, not a list of {{role, content}}'
    )
  messages = []
  for number, message in enumerate(value, start=1):
    message = {
      k: v for k, v in message.items() if v is not None or k == 'content'
    }
    if 'from' in message and 'value' in message:
      role = message['from']
      message = {
        'role': _ROLES.get(str(role), role),
        'content': message['value'],
      }
    if not isinstance(message.get('role'), str):
      raise ValueError(f'message {number} has no role, only {_listed(message)}')
    if any(_is_bad(text) for text in _texts(message)):
      raise ValueError(f'message {number} is not valid UTF-8')
    messages.append(message)
  return messages


def _parsed(name: str, text: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{name} is not JSON: {error}') from error


def _are_objects(value: Any) -> bool:
  return isinstance(value, Sequence) and all(
    isinstance(item, Mapping) for item in value
  )


def _texts(value: Any) -> list[str]:
  """All texts in a value of JSON types."""
  if isinstance(value, str):
    return [value]
  if isinstance(value, Mapping):
    value = list(value.values())
  if isinstance(value, list):
    return [text for item in value for text in _texts(item)]
  return []


def _is_bad(text: str) -> bool:
  return '\ufffd' in text or not readers.is_encodable(text)


def _listed(names: Any) -> str:
  return ', '.join(map(repr, sorted(names)))
