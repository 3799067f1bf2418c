# SPDX-License-Identifier: Apache-2.0
"""What tuning measures: calls of every tree, and what a call costs."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import statistics
import time
from typing import Any

import jax

from specstream_jax import config, runtime
from specstream_jax.bench import (
  grid,
  journal as journal_lib,
  survey as survey_lib,
)
from specstream_jax.checkpoints import draft_vocabulary, fields
from specstream_jax.config import drafting as config_drafting
from specstream_jax.outputs import progress as progress_lib
from specstream_jax.workflows import tune_streamed

_NODES = {'cpu': (2, 4, 6, 8, 12, 16, 24, 32), 'other': (8, 16, 32, 64, 128)}
_SCHEDULES = {'cpu': ('deferred',), 'other': ('deferred', 'parallel')}
_BRANCHING = 32
_SURVEY_ROWS = 8
_BUCKET = 16  # prompt lengths are compiled for multiples of it
_ROUNDS = 3
_SECONDS = fields.Kind(
  'a number > 0', lambda value: fields.is_number(value) and value > 0
)
PLAIN = None  # the side without drafts
# (nodes, 'adapter' or '' for all tokens, schedule), or PLAIN.
Side = tuple[int, str, str] | None


def problem(line: Mapping[str, Any]) -> str:
  """What makes a line of the journal no measurement; empty if nothing does."""
  if 'seconds' in line:
    return fields.problem('seconds', line['seconds'], _SECONDS)
  wrong = fields.problem('num_tokens', line.get('num_tokens'), fields.COUNTS)
  return wrong or fields.problem('calls', line.get('calls'), fields.OBJECT)


class Measures:
  """The measurements of one model on one task, made as they are asked for."""

  def __init__(
    self,
    model: runtime.Model,
    rows: Sequence[grid.Row],
    journal: journal_lib.Journal | journal_lib.Memory,
    *,
    decode: config.DecodeConfig,
    sampling: config.SamplingConfig,
    seed: int,
    nodes: Sequence[int] = (),
    schedules: Sequence[str] = (),
    progress: bool = True,
  ):
    """Takes what is tried.

    Args:
      model: with streams.
      rows: prompts.
      journal: keeps what was measured.
      decode: sizes, and where a text ends.
      sampling: how tokens are drawn.
      seed: of the noise.
      nodes: sizes of trees; empty takes some that suit the device.
      schedules: of the streams; empty likewise.
      progress: show progress bars.
    """
    kind = 'cpu' if jax.default_backend() == 'cpu' else 'other'
    self.nodes = tuple(sorted(set(nodes or _NODES[kind])))
    self._streamed, known = None, _SCHEDULES[kind]
    if model.streamed is not None:
      tune_streamed.check(schedules)
      self._streamed = tune_streamed.Costs(model)
      known = tune_streamed.SCHEDULES
    self.schedules = tuple(schedules or known)
    self.vocabularies = _vocabularies(model)
    self._model, self._rows, self._journal = model, rows, journal
    self._sampling, self._seed, self._progress = sampling, seed, progress
    longest = max(len(row.prompt) for row in rows)
    bucket = -(-longest // _BUCKET) * _BUCKET
    self._decode = dataclasses.replace(decode, prompt_bucket=bucket)

  @property
  def may_pause(self) -> bool:
    """Whether a decoder may stop to draft within a text."""
    return self._streamed is None

  def drafter(self, nodes: int, vocabulary: str) -> str:
    """Text for `config.drafting.parse`."""
    tree = self._tree(nodes)
    text = (
      f'streams:kind=best_first,num_nodes={nodes},depth={tree.depth},'
      f'branching={tree.branching},keep_nodes=0'
    )
    return text + (f',vocabulary={vocabulary}' if vocabulary else '')

  def calls(self, vocabulary: str) -> tuple[list[int], dict[int, list[int]]]:
    """(tokens of each prompt, nodes -> calls of each prompt)."""
    total, made = -(-len(self._rows) // _SURVEY_ROWS), None
    num_tokens: list[int] = []
    calls: dict[int, list[int]] = {nodes: [] for nodes in self.nodes}
    with progress_lib.bar(
      total=total, unit='batch', show=self._progress
    ) as bar:
      bar.set_description(f'calls{", vocabulary" * bool(vocabulary)}')
      for number in range(total):
        key = ('calls', vocabulary, number)
        if key not in self._journal:
          made = made or self._survey(vocabulary)
          self._journal.add(key, self._look(made, number))
        line = self._journal[key]
        num_tokens += line['num_tokens']
        for nodes, counts in calls.items():
          counts += line['calls'][str(nodes)]
        bar.update()
    return num_tokens, calls

  def costs(self, batch: int) -> dict[Side, float]:
    """Seconds of a call with so many rows, medians."""
    sides: list[Side] = [PLAIN]
    sides += [
      (nodes, vocabulary, schedule)
      for schedule in self.schedules
      for vocabulary in self.vocabularies
      for nodes in self.nodes
    ]
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    with progress_lib.bar(
      total=len(sides) * _ROUNDS, unit='timing', show=self._progress
    ) as bar:
      bar.set_description(f'cost of a call, batch {batch}')
      progress_lib.say(bar, f'each size {progress_lib.COMPILING}')
      warm: set[Side] = set()
      for number, side in _in_turns(sides):
        key = ('cost', batch, number, *(side or ('none',)))
        is_old = key in self._journal
        if not is_old:
          if side not in warm:
            start = time.time()
            self._time(side, batch)  # compiles
            warm.add(side)
            progress_lib.leave_out(bar, time.time() - start)
          self._journal.add(key, {'seconds': self._time(side, batch)})
        seconds[side].append(self._journal[key]['seconds'])
        if is_old:
          progress_lib.skip(bar)
        else:
          bar.update()
    return {side: statistics.median(found) for side, found in seconds.items()}

  def _tree(self, nodes) -> config.TreeConfig:
    """As deep as there are streams, as wide as the adapter's."""
    streams = self._model.stream
    assert streams is not None
    return config.TreeConfig(
      kind='best_first',
      depth=streams.num_streams,
      branching=_width(self._model),
      num_nodes=nodes,
    )

  def _survey(self, vocabulary) -> survey_lib.Survey:
    drafter = config_drafting.DrafterConfig('streams', vocabulary=vocabulary)
    trees = [self._tree(nodes) for nodes in self.nodes]
    return survey_lib.Survey(self._model, drafter, trees, self._decode)

  def _look(self, made, number) -> dict[str, Any]:
    """One batch of the survey, as the journal keeps it."""
    first = number * _SURVEY_ROWS
    rows = list(self._rows[first : first + _SURVEY_ROWS])
    # A short batch repeats its first row, so that nothing compiles anew.
    padded = [*rows, *rows[:1] * (_SURVEY_ROWS - len(rows))]
    seen = made.run(
      [row.prompt for row in padded],
      sampling=self._sampling,
      seed=self._seed,
      row_ids=[row.index for row in padded],
    )
    counts = zip(self.nodes, seen.calls.values(), strict=True)
    return {
      'num_tokens': seen.num_tokens[: len(rows)],
      'calls': {str(nodes): row[: len(rows)] for nodes, row in counts},
    }

  def _time(self, side, batch) -> float:
    """Seconds of a call of one side; texts do not end before their limit."""
    drafter, schedule = 'none', self._decode.schedule
    if side is not PLAIN:
      nodes, vocabulary, schedule = side
      drafter = self.drafter(nodes, vocabulary)
    decode = dataclasses.replace(self._decode, schedule=schedule, eos_ids=())
    rows = [self._rows[i % len(self._rows)] for i in range(batch)]
    prompts = [row.prompt for row in rows]
    drawn: Any = {'seed': self._seed, 'sampling': self._sampling}
    if self._streamed is not None:
      return self._streamed.seconds(drafter, decode, prompts, **drawn)
    decoder = self._model.decoder(drafter, decode)
    done = decoder.generate(decoder.params, prompts, **drawn)
    return done.decode_seconds / int(done.calls.max())


def num_steps(calls: Sequence[int], batch: int) -> int:
  """Steps of batches of so many rows: a batch is done with its last row."""
  starts = range(0, len(calls), batch)
  return sum(max(calls[start : start + batch]) for start in starts)


def _in_turns(sides: Sequence[Side]) -> Iterator[tuple[int, Side]]:
  """(round, side), every other round backwards, so that a drift cancels."""
  for number in range(_ROUNDS):
    for side in sides[:: -1 if number % 2 else 1]:
      yield number, side


def _vocabularies(model) -> tuple[str, ...]:
  """Settings of `vocabulary` to try: all tokens, and the adapter's own."""
  num_tokens = draft_vocabulary.num_tokens(model.adapter_dir)
  return ('', 'adapter') if num_tokens >= _width(model) else ('',)


def _width(model) -> int:
  """Candidates per depth."""
  own = model.tree
  return own.branching if own.kind == 'best_first' else _BRANCHING
