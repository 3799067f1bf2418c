# SPDX-License-Identifier: Apache-2.0
"""The grid of a benchmark: every rival on the same prompts, interleaved.

Each batch goes through every rival before the next one does, in alternating
order, so that a drift of the machine favours none. Every measurement goes to
the journal at once; `collect` turns its lines into `sides_lib.Side`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from specstream_jax import runtime
from specstream_jax.bench import (
  journal as journal_lib,
  runners as runners_lib,
  sides as sides_lib,
)
from specstream_jax.data import chat, questions as questions_lib
from specstream_jax.outputs import progress as progress_lib

BASELINE = 'none'


@dataclasses.dataclass(frozen=True)
class Cell:
  """One point of the grid."""

  task: str
  temperature: float
  batch: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a benchmark measures.

  Attributes:
    questions: task -> its questions.
    cells: points of the grid.
    repeats: timed passes.
    seed: of the noise.
    max_prompt_tokens: longer prompts lose their beginning; None keeps all.
    bucket: prompt length that everything is compiled for; None takes a few,
      see `bucket_of`.
    ignore_eos: texts go on behind EOS.
  """

  questions: dict[str, list[questions_lib.Question]]
  cells: tuple[Cell, ...]
  repeats: int = 1
  seed: int = 0
  max_prompt_tokens: int | None = 1024
  bucket: int | None = None
  ignore_eos: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """One prompt: a turn of a question.

  Attributes:
    index: row id in the noise, the same for every rival.
    question: the question.
    turn: which of its turns.
    prompt: token ids.
    is_truncated: its beginning was cut off.
  """

  index: int
  question: questions_lib.Question
  turn: int
  prompt: tuple[int, ...]
  is_truncated: bool


class Bench:
  """Runs a plan, resuming from its journal."""

  def __init__(
    self,
    model: runtime.Model,
    plan: Plan,
    runners: Sequence[runners_lib.Runner],
    journal: journal_lib.Journal | journal_lib.Memory,
  ):
    """Takes the rivals, the baseline `none` first."""
    self._model, self.plan, self._journal = model, plan, journal
    self._runners = runners
    self._warm: set[Any] = set()

  def run(
    self, *, shard: tuple[int, int] = (0, 1), progress: bool = True
  ) -> None:
    """Measures whatever the journal lacks.

    Args:
      shard: (this one, of how many); batches are dealt out in turn, so a
        question may have one turn only if there are several.
      progress: show a progress bar.
    """
    total = sum(
      len(list(self._visits(cell, self._batches_of_sizes(cell), shard)))
      for cell in self.plan.cells
    )
    with progress_lib.bar(total=total, unit='batch', show=progress) as bar:
      progress_lib.say(bar, f'each drafter {progress_lib.COMPILING}')
      for cell in self.plan.cells:
        for turn in range(self._num_turns(cell)):
          self._run_turn(cell, turn, shard, bar)

  def _run_turn(self, cell, turn, shard, bar):
    batches = self.batches(cell, turn)
    for repeat, number, runner in self._visits(cell, len(batches), shard):
      key = _key(cell, runner.label, turn, repeat, number)
      bar.set_description(f'{cell.task} {runner.label}'[:32])
      if key in self._journal:
        progress_lib.skip(bar)
        continue
      line = self._measure(cell, runner, batches[number])
      self._journal.add(key, line)
      bar.update()
      # Each rival compiles once, some of them late.
      progress_lib.leave_out(bar, line['compile_seconds'])

  def _visits(
    self, cell, num_batches, shard=(0, 1)
  ) -> Iterator[tuple[int, int, Any]]:
    """(repeat, batch number, runner) in the order of measurement.

    Rivals take turns at being first; where later turns need the baseline's
    answers, it comes first in the first pass.
    """
    rivals = self.runners(cell)
    has_turns = self._num_turns(cell) > 1
    for repeat in range(self.plan.repeats):
      for place, number in enumerate(range(shard[0], num_batches, shard[1])):
        is_reversed = (repeat + place) % 2 and not (has_turns and repeat == 0)
        order = rivals[::-1] if is_reversed else rivals
        yield from ((repeat, number, runner) for runner in order)

  @property
  def is_whole(self) -> bool:
    """Whether everything has been measured."""
    return all(
      _key(cell, runner.label, turn, repeat, number) in self._journal
      for cell in self.plan.cells
      for turn in range(self._num_turns(cell))
      for repeat, number, runner in self._visits(
        cell, len(self.batches(cell, turn))
      )
    )

  def runners(self, cell: Cell) -> list[runners_lib.Runner]:
    """Those that can take the cell: other programs decode one row at a time."""
    return [r for r in self._runners if cell.batch == 1 or not r.is_external]

  def _measure(self, cell, runner, batch):
    """One batch through one rival, as the journal keeps it."""
    bucket = self.plan.bucket or batch_bucket(batch)
    call = lambda: runner.generate(
      [list(row.prompt) for row in batch],
      [row.index for row in batch],
      bucket=bucket,
      temperature=cell.temperature,
      seed=self.plan.seed,
    )
    compile_seconds = 0.0
    shape = (runner.label, cell.temperature, cell.batch, bucket)
    if shape not in self._warm:
      cold = call()
      compile_seconds = cold.prefill_seconds + cold.decode_seconds
      self._warm.add(shape)
    result = call()
    if compile_seconds:
      compile_seconds -= result.prefill_seconds + result.decode_seconds
    return sides_lib.line(result) | {
      'compile_seconds': max(compile_seconds, 0.0),
      'bucket': bucket,
    }

  def _num_turns(self, cell):
    return max(len(q.turns) for q in self.plan.questions[cell.task])

  def _batches_of_sizes(self, cell):
    """How many batches all turns of a cell have, roughly, for the clock."""
    turns = sum(len(q.turns) for q in self.plan.questions[cell.task])
    return -(-turns // cell.batch)

  def batches(self, cell: Cell, turn: int) -> list[list[Row]]:
    """Batches of one turn, of prompts of one bucket each.

    A short batch repeats its first row. Later turns follow the baseline's
    answers, so they need its earlier turns in the journal.
    """
    buckets: dict[int, list[Row]] = {}
    for row in self._rows(cell, turn):
      bucket = self.plan.bucket or bucket_of(len(row.prompt))
      buckets.setdefault(bucket, []).append(row)
    batches = []
    for _, rows in sorted(buckets.items()):
      for start in range(0, len(rows), cell.batch):
        part = rows[start : start + cell.batch]
        batches.append(part + part[:1] * (cell.batch - len(part)))
    return batches

  def _rows(self, cell, turn):
    answers = [self._answers(cell, earlier) for earlier in range(turn)]
    for index, question in enumerate(self.plan.questions[cell.task]):
      if turn < len(question.turns):
        said = [texts[index] for texts in answers]
        prompt = _prompt(self._model, question, said)
        kept = self._shortened(prompt)
        yield Row(index, question, turn, tuple(kept), len(kept) < len(prompt))

  def _shortened(self, prompt):
    """The prompt's end, as many tokens as a prompt may have; BOS stays."""
    excess = len(prompt) - (self.plan.max_prompt_tokens or len(prompt))
    if excess <= 0:
      return prompt
    num_kept = int(prompt[0] == self._model.bos_id)
    return prompt[:num_kept] + prompt[num_kept + excess :]

  def _answers(self, cell, turn):
    """Question index -> the baseline's answer in an earlier turn."""
    found = {}
    for number, batch in enumerate(self.batches(cell, turn)):
      line = self._journal[_key(cell, BASELINE, turn, 0, number)]
      for row, tokens in zip(batch, line['tokens'], strict=True):
        found[row.index] = self.text(tokens, row)
    return found

  def text(self, tokens: Sequence[int], row: Row) -> str:
    """What tokens add to a row's prompt."""
    return self._model.decode_text(
      tokens, row.prompt, ignore_eos=self.plan.ignore_eos
    )

  def collect(
    self, cell: Cell, label: str
  ) -> tuple[list[Row], sides_lib.Side] | None:
    """What the journal holds of a rival: its rows, and their measurements.

    Batches that some rival of the cell has not been measured on are left out,
    so that all have the same prompts; so are passes that lack a batch of the
    first. None if there is nothing.
    """
    rows, lines = self._collect(cell, label, 1)
    for repeats in range(2, self.plan.repeats + 1):
      more = self._collect(cell, label, repeats)
      if len(more[0]) == len(rows):
        rows, lines = more
    return (_flat(rows), _side(rows, lines)) if rows else None

  def _collect(self, cell, label, repeats):
    """The batches that all rivals did in the first `repeats` passes."""
    labels = [runner.label for runner in self.runners(cell)]
    rows, lines = [], []
    for turn in range(self._num_turns(cell)):
      try:
        batches = self.batches(cell, turn)
      except KeyError:  # the baseline's earlier turn is not all there
        break
      for number, batch in enumerate(batches):
        keys = lambda name, t=turn, n=number: [
          _key(cell, name, t, repeat, n) for repeat in range(repeats)
        ]
        if all(key in self._journal for name in labels for key in keys(name)):
          rows.append(batch)
          lines.append([self._journal[key] for key in keys(label)])
    return rows, lines


def _prompt(model, question, answers):
  """Token ids of the turn after so many answers."""
  if not question.is_chat:
    return model.encode_prompt(question.turns[0])
  text = chat.prompt(model.chat_template, question.turns, answers)
  return model.encode_prompt(text)


def check_ids(model: runtime.Model, plan: Plan) -> None:
  """Raises ValueError if a question holds a token without an embedding."""
  for task, questions in plan.questions.items():
    for question in questions:
      name = f'{task}, question {question.question_id}'
      model.check_ids(_prompt(model, question, []), name)
      for text in question.turns[1:]:
        model.check_ids(model.encode(text), name)


def bucket_of(length: int) -> int:
  """Prompt length that is compiled for: 64, 256, 1024, …"""
  bucket = 64
  while bucket < length:
    bucket *= 4
  return bucket


def batch_bucket(batch: Sequence[Row]) -> int:
  """Bucket of a batch."""
  return bucket_of(max(len(row.prompt) for row in batch))


def _key(cell, label, turn, repeat, number):
  return (*dataclasses.astuple(cell), label, turn, repeat, number)


def _real(batch):
  """Positions in a batch of rows that are not repeats of its first."""
  return [
    i for i, row in enumerate(batch) if i == 0 or row.index != batch[0].index
  ]


def _flat(batches):
  return [batch[i] for batch in batches for i in _real(batch)]


def _side(batches, lines) -> sides_lib.Side:
  """Measurements [batch][repeat] as a Side, one entry per real row."""
  last = [repeats[-1] for repeats in lines]
  pick = lambda name: [
    line[name][i]
    for batch, line in zip(batches, last, strict=True)
    for i in _real(batch)
  ]
  grid = lambda name: (
    np.array([[line[name] for line in repeats] for repeats in lines]).T
  )
  return sides_lib.Side(
    tokens=pick('tokens'),
    accept_lengths=pick('accept_lengths'),
    calls=np.array(pick('calls')),
    seconds=grid('decode_seconds'),
    prefill_seconds=grid('prefill_seconds'),
    steps=np.array([max(line['calls']) for line in last]),
    compile_seconds=_compile_seconds(lines),
    batch_of=tuple(n for n, batch in enumerate(batches) for _ in _real(batch)),
  )


def _compile_seconds(lines) -> float:
  """Seconds of all programs; one that several processes compiled counts once."""
  found: dict[int, list[float]] = {}
  for line in (one for repeats in lines for one in repeats):
    found.setdefault(line['bucket'], []).append(line['compile_seconds'])
  times = [[s for s in seconds if s] for seconds in found.values()]
  return sum(float(np.median(seconds)) for seconds in times if seconds)
