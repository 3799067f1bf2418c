# SPDX-License-Identifier: Apache-2.0
"""Rows of any kind as the train, dev and test files of a run.

They are files of the task `jsonl`, which every other command reads as well.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any

from absl import logging

from specstream_jax.checkpoints import chat_format, files
from specstream_jax.data import chat_rows, row_files, row_shapes, splits
from specstream_jax.outputs import writing

DONE = 'splits.json'
_SHOWN = 10  # kinds of mistakes, and places of each
_AROUND = 12  # characters of a text that are shown
# Rows without an answer are mistakes if they are no larger a share of all.
_FEW_WITHOUT = 0.1


@dataclasses.dataclass(frozen=True)
class Found:
  """What a source of rows holds.

  Attributes:
    splits: its examples by split.
    num_rows: good rows.
    num_bad: rows that were left out.
    unused: columns that nothing was taken from.
    sources: of `dev` and `test` where they are those of a task, as `bench`
      names it.
    without: places of rows that have no answer.
  """

  splits: splits.Splits
  num_rows: int
  num_bad: int
  unused: tuple[str, ...]
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
  without: tuple[str, ...] = ()

  @property
  def has_answers(self) -> bool:
    """Whether every row has one."""
    return all(t.answer is not None for turns in self._turns for t in turns)

  @property
  def without_answers(self) -> str:
    """How many rows have none, and where."""
    if not self.without:
      return 'there are rows without answers'
    return (
      f'{len(self.without):,} of {self.num_rows:,} rows have no answer, such as '
      f'{self.without[0]}'
    )

  @property
  def end(self) -> str:
    """The token that ends most answers, '' where the tokenizer decides."""
    ends = [turn.end for turns in self._turns for turn in turns]
    return max(sorted(set(ends)), key=ends.count)

  def _how_split(self) -> str:
    if not self.sources:
      return 'split by what a prompt says, none on two sides: '
    named = ', '.join(f'{k} is {v}' for k, v in self.sources.items())
    return f'splits of the task, {named}: '

  def _glued(self) -> str:
    """Where prompt and answer meet as one word, if most of them do."""
    pairs = [
      (turn.prompt[-_AROUND:], turn.answer[:_AROUND])
      for turns in self._turns
      for turn in turns
      if turn.answer and not isinstance(turn.prompt, chat_format.Text)
    ]
    has_space = lambda end, start: end[-1:].isspace() or start[0].isspace()
    glued = [pair for pair in pairs if not has_space(*pair)]
    return ''.join(glued[0]) if 2 * len(glued) > len(pairs) else ''

  @property
  def _turns(self) -> Sequence[Sequence[chat_rows.Turn]]:
    return list(self.splits.turns.values())

  def sha256(self) -> str:
    """Hash of all examples and of where they are."""
    lines = [_line(turn) for turns in self._turns for turn in turns]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()

  def lines(self) -> list[str]:
    """What there is, for people."""
    counts = {name: len(turns) for name, turns in self.splits.turns.items()}
    found = [
      f'rows: {self.num_rows:,} read, {self.num_bad:,} bad ones left out, '
      f'{self.splits.num_duplicates:,} duplicates left out',
      self._how_split()
      + ', '.join(f'{count:,} {name}' for name, count in counts.items())
      + ' examples',
    ]
    if glued := self._glued():
      found.append(
        f'note: answers follow their prompts without a space, as in {glued!r}; '
        'end prompts in a line break, or let answers begin with a space'
      )
    if self.unused:
      found.append(f'columns that are not used: {", ".join(self.unused)}')
    return found


def read(
  source: str,
  shape: row_shapes.Shape,
  *,
  split: str = 'train',
  skip_bad_rows: bool = False,
  wants_answers: bool = False,
) -> Found:
  """Reads and splits rows.

  Args:
    source: see `row_files.read`.
    shape: what their columns mean.
    split: of a data set that has several.
    skip_bad_rows: leave bad rows out, with a warning each.
    wants_answers: a few rows without an answer among many with one are bad.

  Raises:
    ValueError: bad rows, with the place of each; too few rows; no such source.
  """
  rows, places, bad, used, known = [], [], [], set(), {}
  for row in row_files.read(source, split=split):
    known |= dict.fromkeys(row.columns)
    used |= shape.used(row.columns)
    try:
      if row.problem:
        raise ValueError(row.problem)
      rows.append(shape.turns(row.columns))
      places.append(row.place)
    except ValueError as error:
      bad.append((row.place, str(error)))
  lacks = [any(turn.answer is None for turn in turns) for turns in rows]
  if wants_answers and 0 < sum(lacks) <= _FEW_WITHOUT * len(rows):
    problem = 'has no answer, and nearly all others have one'
    found = zip(places, lacks, strict=True)
    bad += [(place, problem) for place, lack in found if lack]
    rows = [row for row, lack in zip(rows, lacks, strict=True) if not lack]
    places, lacks = places[: len(rows)], []
  if bad:
    _tell(bad, len(rows), skip_bad_rows)
  if not rows:
    raise ValueError(f'rows {source!r}: there are none')
  unused = tuple(name for name in known if name not in used)
  without = tuple(p for p, lack in zip(places, lacks) if lack)
  return Found(splits.split(rows), len(rows), len(bad), unused, without=without)


def _tell(bad, num_good, skip_bad_rows):
  """Names bad rows, as a warning or as an error."""
  places: dict[str, list[str]] = {}
  for place, problem in bad:
    places.setdefault(problem, []).append(place)
  # A column that has another name is one mistake, not one a row.
  lines = [f'  {_few(found)}: {problem}' for problem, found in places.items()]
  shown = lines[:_SHOWN]
  if len(lines) > _SHOWN:
    shown.append(f'  … and {len(lines) - _SHOWN:,} more kinds')
  text = f'{len(bad):,} of {len(bad) + num_good:,} rows are bad:\n'
  text += '\n'.join(shown)
  if not skip_bad_rows or not num_good:
    leave = ', or leave them out: --skip_bad_rows' if num_good else ''
    raise ValueError(f'{text}\ncorrect them{leave}')
  logging.warning('%s\nleft out', text)


def _few(places):
  """The first few of some places."""
  text = ', '.join(places[:_SHOWN])
  more = len(places) - _SHOWN
  return f'{text} and {more:,} more' if more > 0 else text


def write(folder: str, found: Found) -> None:
  """Writes SPLIT.jsonl of every split, and then that all is there."""
  for name, turns in found.splits.turns.items():
    text = ''.join(_line(turn) + '\n' for turn in turns)
    writing.write_text(os.path.join(folder, f'{name}.jsonl'), text)
  counts = {name: len(turns) for name, turns in found.splits.turns.items()}
  files.write_json(
    os.path.join(folder, DONE),
    {
      'num_rows': found.num_rows,
      'num_bad': found.num_bad,
      'num_duplicates': found.splits.num_duplicates,
      'num_examples': counts,
      'sha256': found.sha256(),
    },
  )


def _line(turn: chat_rows.Turn) -> str:
  """An example as a row of the task `jsonl`."""
  row: dict[str, Any] = {'prompt': turn.prompt}
  if turn.answer is not None:
    row['completion'] = turn.answer
  if turn.is_cut:
    row['finished'] = False
  if isinstance(turn.prompt, chat_format.Text):
    row['chat'] = True
  return json.dumps(row, ensure_ascii=False)
