# SPDX-License-Identifier: Apache-2.0
"""What a benchmark asks: Spec-Bench questions, or the prompts of a task."""

from collections.abc import Iterable, Sequence
import dataclasses
import os
from typing import Any

from specstream_jax.checkpoints import chat_format, fields, files
from specstream_jax.data import readers, registry
from specstream_jax.outputs import names

SPEC_BENCH = 'spec_bench'
_FILE = 'question.jsonl'
_NO_CHARACTER = '\N{REPLACEMENT CHARACTER}'
_TURNS = fields.Kind(
  'a list of texts, none of them empty',
  lambda value: (
    fields.TEXTS.fits(value) and value and all(map(str.strip, value))
  ),
)


@dataclasses.dataclass(frozen=True)
class Question:
  """One item of a benchmark.

  Attributes:
    question_id: unique within its task.
    category: what it is reported under.
    turns: what the user says, in order; a plain prompt is one turn.
    references: answers to score against; none for Spec-Bench.
    is_chat: whether turns go through the model's chat template.
  """

  question_id: int
  category: str
  turns: tuple[str, ...]
  references: tuple[str, ...] = ()
  is_chat: bool = False


def load(
  task: str, split: str, data_dir: str | None, num_questions: int = 0
) -> list[Question]:
  """Questions of a task, evenly spread over its rows if only some are asked.

  Args:
    task: `spec_bench`, or a name of the task table.
    split: split of a task; Spec-Bench has one only.
    data_dir: folder of its files; for Spec-Bench the one of question.jsonl.
    num_questions: how many; 0 takes all.

  Raises:
    ValueError: unknown task or split, no file, or a malformed row.
  """
  if task == SPEC_BENCH:
    questions = read_spec_bench(data_dir)
  else:
    read = _jsonl_examples if task == 'jsonl' else _task_examples
    questions = of_examples(task, read(task, split, data_dir))
  return _spread(questions, num_questions)


def of_examples(
  task: str, examples: Iterable[readers.Example]
) -> list[Question]:
  """The rows of a task as questions of one turn."""
  return [
    Question(i, task, (example.inputs,), tuple(example.references))
    for i, example in enumerate(examples)
  ]


def _task_examples(task, split, data_dir):
  return registry.get(task).load_split(split, data_dir)


def _jsonl_examples(task, split, data_dir):
  """Rows of a JSONL file; unlike training, a benchmark needs no completions."""
  names.check(f'the split of task {task!r}', split)
  if data_dir is None:
    raise ValueError(
      f'task {task!r} needs a folder with {split}.jsonl, as in '
      f'{task}/{split}@FOLDER'
    )

  def pair(row):
    found = readers.json_pair(row)
    prompt = row.get('prompt', row.get('inputs'))
    is_prompt = isinstance(prompt, str) and prompt.strip()
    has_answer = row.get('completion', row.get('targets')) is not None
    if is_prompt and not has_answer:
      is_chat = row.get('chat') is True
      return (chat_format.Text(prompt) if is_chat else prompt), ''
    return found

  path = readers.find_file(data_dir, (f'{split}.jsonl',))
  rows = readers.read_jsonl(path, pair=pair)
  return [
    readers.Example(source, (answer,) if answer else ())
    for source, answer in rows.pairs
  ]


def read_spec_bench(data_dir: str | None) -> list[Question]:
  """The rows {question_id, category, turns} of question.jsonl in a folder.

  Raises:
    ValueError: no such file, or a malformed row (file, line, problem).
  """
  if data_dir is None:
    raise ValueError(
      f'task {SPEC_BENCH!r} needs --data_dir, the folder of Spec-Bench’s {_FILE}'
    )
  path = readers.find_file(data_dir, (_FILE,))
  with readers.open_text(path) as file:
    questions = [
      _question(line, f'{os.path.abspath(path)}:{number}')
      for number, line in enumerate(file, start=1)
      if line.strip()
    ]
  if not questions:
    raise ValueError(f'{path} has no questions')
  return questions


def _question(line: str, place: str) -> Question:
  expected = 'expected {"question_id": 1, "category": "math", "turns": ["…"]}'
  if _NO_CHARACTER in line:
    raise ValueError(f'{place}: not valid UTF-8; {expected}')
  try:
    row = files.loads(line)
  except ValueError as error:
    raise ValueError(f'{place}: not JSON ({error}); {expected}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{place}: a JSON {type(row).__name__}; {expected}')
  read = lambda name, kind: fields.get(row, name, kind, place)
  return Question(
    read('question_id', fields.COUNT),
    read('category', fields.TEXT),
    tuple(read('turns', _TURNS)),
    is_chat=True,
  )


def _spread(items: Sequence[Any], count: int) -> list[Any]:
  """`count` of the items at even distances, in order; all for 0."""
  if not 0 < count < len(items):
    return list(items)
  return [items[i * len(items) // count] for i in range(count)]
