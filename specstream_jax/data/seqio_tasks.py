# SPDX-License-Identifier: Apache-2.0
"""Tasks and mixtures that others have registered with seqio; loads TensorFlow.

Texts are what the task's preprocessors make before they tokenize, which
`seqio.preprocessors.tokenize` keeps beside the ids. Ids count where there is no
text, as far as they can be read back, and where they are the model's own.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import difflib
import functools
import itertools
from typing import Any

import numpy as np
import seqio

from specstream_jax.data import readers, seqio_vocabulary, task_modules

FEATURES = ('inputs', 'targets')
_NUM_NAMES = 20  # that a message lists
Provider = seqio.Task | seqio.Mixture


@dataclasses.dataclass(frozen=True)
class Element:
  """An example as the task makes it.

  Attributes:
    task: that it is of.
    split: of the task.
    number: of it in the split.
    values: of all features.
  """

  task: seqio.Task
  split: str
  number: int
  values: Mapping[str, Any]

  @property
  def place(self) -> str:
    """Where it is, for messages."""
    return f'seqio task {self.task.name!r}, {self.split} example {self.number}'

  def ids(self, field: str) -> np.ndarray:
    """Token ids int32 of `inputs` or `targets`."""
    return np.asarray(self.values[field], np.int32)

  def text(self, field: str) -> str:
    """Text of `inputs` or `targets`.

    Raises:
      ValueError: the task has kept none, and the ids cannot be read back.
    """
    kept = self.values.get(f'{field}_pretokenized')
    if isinstance(kept, bytes):
      return kept.decode('utf-8', 'replace')
    feature = self.task.output_features[field]
    text = seqio_vocabulary.read_back(feature.vocabulary, self.ids(field))
    if text is None:
      kind = type(feature.vocabulary).__name__
      raise ValueError(
        f'{self.place}: {field!r} are ids of {kind}, another vocabulary than '
        "the model's, and the task has kept no text of them; let "
        'seqio.preprocessors.tokenize make them (it keeps '
        f'{field}_pretokenized), or give the feature the model’s vocabulary: '
        'specstream_jax.data.tasks.SeqioVocabulary'
      )
    return text


def find(name: str) -> Provider:
  """The registered task or mixture called `name`, without the prefix.

  Raises:
    ValueError: there is none (the nearest names), or it has not the features
      `inputs` and `targets`.
  """
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in known:
    nearest = difflib.get_close_matches(name, known, 3)
    hint = (
      f'did you mean {" or ".join(map(repr, nearest))}? ' if nearest else ''
    )
    names = sorted(known)
    shown = ', '.join(names[:_NUM_NAMES]) or 'none'
    if len(names) > _NUM_NAMES:
      shown += f' and {len(names) - _NUM_NAMES} more'
    raise ValueError(
      f'no seqio task or mixture {name!r} is registered; {hint}Registered: '
      f'{shown}. --task_module=my.tasks imports the module that registers it'
    )
  found = seqio.get_mixture_or_task(name)
  for task in seqio.get_subtasks(found):
    _check_features(task)
  return found


def _check_features(task: seqio.Task) -> None:
  features = task.output_features
  missing = [name for name in FEATURES if name not in features]
  if missing:
    raise ValueError(
      f'seqio task {task.name!r} has the output features '
      f'{", ".join(map(repr, features))}; a prompt and its answer need '
      f"'inputs' and 'targets': {', '.join(map(repr, missing))} missing"
    )
  for name in FEATURES:
    if features[name].rank != 1:
      raise ValueError(
        f'seqio task {task.name!r}: the feature {name!r} has rank '
        f'{features[name].rank}; accepted: 1, a sequence of tokens'
      )


def subtasks(found: Provider, split: str) -> list[seqio.Task]:
  """The tasks of a mixture, or the task itself, that have a split.

  Raises:
    ValueError: none has it.
  """
  tasks = [t for t in seqio.get_subtasks(found) if split in t.splits]
  if not tasks:
    splits = dict.fromkeys(
      s for t in seqio.get_subtasks(found) for s in t.splits
    )
    raise ValueError(
      f'seqio task {found.name!r} has no split {split!r}; accepted: '
      f'{", ".join(splits)}'
    )
  return tasks


@contextlib.contextmanager
def naming(task: seqio.Task) -> Iterator[None]:
  """Turns what a task's own code raises into one line with its name."""
  try:
    yield
  except Exception as error:  # It is the user's program.
    hint = ''
    if task.requires_caching and not task.cache_dir:
      hint = (
        '; it lives from a cache that is not found: let the task module call '
        'seqio.add_global_cache_dirs([FOLDER])'
      )
    raise ValueError(
      f'seqio task {task.name!r}: {task_modules.said(error)}{hint}'
    ) from error


def dataset(task: seqio.Task, split: str) -> Any:
  """One epoch of a task in its own order, from its cache if it has one."""
  with naming(task):
    is_cached = task.supports_caching and bool(task.cache_dir)
    return task.get_dataset(
      sequence_length=None,
      split=split,
      use_cached=is_cached,
      shuffle=False,
      num_epochs=1,
    )


def elements(task: seqio.Task, split: str) -> Iterator[Element]:
  """Yields the examples of a task's split."""
  iterator = dataset(task, split).as_numpy_iterator()
  for number in itertools.count():
    with naming(task):
      values = next(iterator, None)
    if values is None:
      return
    yield Element(task, split, number, values)


def interleaved(found: Provider, split: str) -> Iterator[Element]:
  """Examples of every task of a mixture in turn, each once."""
  waiting = [elements(task, split) for task in subtasks(found, split)]
  while waiting:
    left = []
    for iterator in waiting:
      element = next(iterator, None)
      if element is not None:
        yield element
        left.append(iterator)
    waiting = left


@functools.lru_cache(maxsize=4)
def loaded(found: Provider, split: str) -> tuple[Element, ...]:
  """`interleaved`, all of it."""
  return tuple(interleaved(found, split))


def check(element: Element, skip_bad_rows: bool) -> bool:
  """Whether an example can be used.

  Raises:
    ValueError: it cannot, and bad examples are not to be left out.
  """
  wrong = readers.text_problem({'inputs': element.text('inputs')})
  if wrong and not skip_bad_rows:
    raise ValueError(
      f'{element.place}: {wrong}; correct it, or leave it out with '
      '--skip_bad_rows (of `prepare` and `distill`)'
    )
  return not wrong
