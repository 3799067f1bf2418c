# SPDX-License-Identifier: Apache-2.0
"""How a row of a task becomes the prompt and the answer the model sees.

One place, so that training, evaluation and demonstrations agree. Prompt and
answer are one text, tokenized together; an answer that follows a word
therefore carries its own leading space. A prompt should not end in a space,
which most tokenizers have as the beginning of the next word.
"""

from collections.abc import Callable
import dataclasses
import re

_ATTRIBUTE = re.compile(r'\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)')


@dataclasses.dataclass(frozen=True)
class Template:
  """Formats one row; `targets` is applied to each reference.

  Attributes:
    inputs: raw source text -> prompt.
    targets: raw reference -> the text after the prompt, without EOS.
  """

  inputs: Callable[[str], str]
  targets: Callable[[str], str]


def e2e_inputs(mr: str) -> str:
  """The prompt of an E2E meaning representation.

  >>> e2e_inputs('name[Aromi], area[riverside]')
  'name[Aromi], area[riverside]\\nDescription:'
  """
  return f'{mr}\nDescription:'


def dialogsum_inputs(dialogue: str) -> str:
  """The prompt of a dialogue to summarise."""
  return f'{dialogue}\nSummary:'


def sql_inputs(source: str) -> str:
  """The prompt of a CREATE TABLE text and, below it, a question."""
  return f'{source}\nSQL:'


def spaced(text: str) -> str:
  """The answer after a colon, parted from it by a space."""
  return f' {text}'


def verbatim(text: str) -> str:
  """The text itself."""
  return text


def parse_mr(mr: str) -> dict[str, str]:
  """The attributes of an E2E meaning representation, in order.

  >>> parse_mr('name[Aromi], area[riverside]')
  {'name': 'Aromi', 'area': 'riverside'}

  Raises:
    ValueError: the text is not a list `attribute[value], …`.
  """
  attributes, position = {}, 0
  while position < len(mr):
    match = _ATTRIBUTE.match(mr, position)
    if match is None:
      raise ValueError(
        f'meaning representation {mr!r} has no attribute at character '
        f'{position}; expected a list such as name[Aromi], area[riverside]'
      )
    attributes[match.group(1).strip()] = match.group(2)
    position = match.end()
  if not attributes:
    raise ValueError(
      'meaning representation is empty; expected a list such as '
      'name[Aromi], area[riverside]'
    )
  return attributes


E2E = Template(inputs=e2e_inputs, targets=spaced)
DIALOGSUM = Template(inputs=dialogsum_inputs, targets=spaced)
SQL = Template(inputs=sql_inputs, targets=spaced)
VERBATIM = Template(inputs=verbatim, targets=verbatim)
