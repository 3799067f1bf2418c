# SPDX-License-Identifier: Apache-2.0
"""The table of tasks: name -> splits, rows and prompt template.

The one description of a task. Evaluation reads it directly, without
TensorFlow; `tasks.py` builds the seqio tasks from it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import importlib
import types

from specstream_jax.data import (
  prompts,
  quiet,
  readers,
  sources,
  task_modules,
)

SPLITS = ('train', 'dev', 'test')
ReadFn = Callable[[str, str | None, bool], readers.Rows]
FilesFn = Callable[[str, str | None], tuple[str, ...]]
ReadFileFn = Callable[[str, bool], readers.Rows]
ScoreFn = Callable[[str, Sequence[int], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples of a split and the number of malformed rows left out."""

  examples: tuple[readers.Example, ...]
  num_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """A task.

  Attributes:
    name: how it is asked for.
    read: (split, data_dir, skip_bad_rows) -> raw rows.
    template: raw row -> prompt and answer.
    splits: names `read` accepts.
    multi_reference_splits: splits in which rows of equal source are one
      example with several references.
    metrics: names in `metrics.scores.METRICS` that score its answers.
    files: (split, data_dir) -> the files `read` reads, where workers may share
      them; with `read_file`.
    read_file: (path, skip_bad_rows) -> raw rows of one of them.
    score: (split, numbers, answers) -> scores, in place of `metrics`; numbers
      are those of the answered examples in their split.
  """

  name: str
  read: ReadFn
  template: prompts.Template
  splits: tuple[str, ...] = SPLITS
  multi_reference_splits: tuple[str, ...] = ()
  metrics: tuple[str, ...] = ('rouge', 'bleu')
  files: FilesFn | None = None
  read_file: ReadFileFn | None = None
  score: ScoreFn | None = None

  def load(
    self,
    split: str,
    data_dir: str | None = None,
    *,
    skip_bad_rows: bool = False,
  ) -> Split:
    """Reads a split.

    Raises:
      ValueError: no such split, no such file, or a malformed row.
    """
    if split not in self.splits:
      raise ValueError(
        f'task {self.name!r} has no split {split!r}; accepted: '
        f'{", ".join(self.splits)}'
      )
    rows = self.read(split, data_dir, skip_bad_rows)
    groups = [(source, [answer]) for source, answer in rows.pairs]
    if split in self.multi_reference_splits:
      groups = readers.group(rows.pairs)
    examples = tuple(
      readers.Example(self.template.inputs(source), tuple(answers))
      for source, answers in groups
    )
    return Split(examples, rows.num_skipped)

  def load_split(
    self, split: str, data_dir: str | None = None
  ) -> list[readers.Example]:
    """The examples of a split: prompt text and raw references."""
    return list(self.load(split, data_dir).examples)

  def pairs(
    self, examples: tuple[readers.Example, ...]
  ) -> list[tuple[str, str]]:
    """(prompt, answer after the prompt) for every reference."""
    return [
      (example.inputs, self.template.targets(reference))
      for example in examples
      for reference in example.references
    ]


def jsonl_task(name: str, files: Mapping[str, str]) -> TaskSpec:
  """A task over JSONL files of prompts and completions, kept verbatim.

  Args:
    name: name of the task.
    files: split -> path, e.g. {'train': 'my.jsonl'}.
  """

  def read(split, data_dir, skip_bad_rows):
    del data_dir
    return readers.read_jsonl(files[split], skip_bad_rows=skip_bad_rows)

  return TaskSpec(name, read, prompts.VERBATIM, splits=tuple(files))


_TASKS = {
  task.name: task
  for task in (
    TaskSpec(
      'e2e_nlg',
      sources.read_e2e,
      prompts.E2E,
      multi_reference_splits=('dev', 'test'),
    ),
    TaskSpec(
      'e2e_cleaned',
      sources.read_e2e_cleaned,
      prompts.E2E,
      multi_reference_splits=('dev', 'test'),
    ),
    TaskSpec(
      'e2e_sample',
      sources.read_e2e_sample,
      prompts.E2E,
      splits=('train', 'test'),
      multi_reference_splits=('test',),
    ),
    TaskSpec(
      'jsonl',
      sources.read_jsonl,
      prompts.VERBATIM,
      files=sources.jsonl_files,
      read_file=sources.read_jsonl_file,
    ),
    TaskSpec(
      'dialogsum',
      sources.read_dialogsum,
      prompts.DIALOGSUM,
      multi_reference_splits=('test',),
    ),
    TaskSpec(
      'sql_create_context',
      sources.read_sql,
      prompts.SQL,
      metrics=('sql_match',),
    ),
  )
}


def names() -> tuple[str, ...]:
  """The known tasks."""
  return tuple(sorted(_TASKS))


def get(name: str) -> TaskSpec:
  """The task called `name`; `seqio:NAME` is one that is registered there.

  Raises:
    ValueError: there is none; names the nearest and those there are.
  """
  if name.startswith(task_modules.SEQIO):
    return _of_seqio(name.removeprefix(task_modules.SEQIO))
  if name not in _TASKS:
    nearest = difflib.get_close_matches(name, _TASKS, 1)
    hint = f'did you mean {nearest[0]!r}? ' if nearest else ''
    raise ValueError(
      f'task {name!r} is not known; {hint}accepted: {", ".join(names())}, or '
      'seqio:NAME with --task_module=MODULE'
    )
  return _TASKS[name]


def _of_seqio(name: str) -> TaskSpec:
  return seqio_module('seqio_spec', f'task seqio:{name}').spec(name)


def seqio_module(name: str, what: str) -> types.ModuleType:
  """A module of this package that loads seqio and TensorFlow.

  Args:
    name: of it.
    what: needs it.

  Raises:
    ValueError: they are not installed.
  """
  try:
    with quiet.filtered():
      module = importlib.import_module(f'specstream_jax.data.{name}')
      # It would take all memory of a GPU, for nothing.
      tensorflow = importlib.import_module('tensorflow')
      tensorflow.config.set_visible_devices([], 'GPU')
    return module
  except ImportError as error:
    raise ValueError(
      f'{what} needs {error.name}; install the extra: {task_modules.INSTALL}'
    ) from error
