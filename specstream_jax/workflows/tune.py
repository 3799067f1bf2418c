# SPDX-License-Identifier: Apache-2.0
"""Which drafter is fastest here: few measurements, a prediction, then proof.

Speed-up is calls without drafts / calls with, divided by what a call with
drafts costs. The first factor of every tree comes out of one pass over the
prompts (`bench.survey`), the second is timed for each tree, and only the few
that promise most are run against plain decoding. So are two drafters of which
only a run can tell, as what they do depends on every draft: the most promising
tree with copies of the text among its nodes (`drafters.mix`), and calls that
choose among three sizes by what they promise (`decoding.budgets`).
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
from typing import Any

import jax

from specstream_jax import config, runtime
from specstream_jax.bench import (
  grid,
  journal as journal_lib,
  machine,
  results,
)
from specstream_jax.checkpoints import tuning
from specstream_jax.config import bounds, budgets, checks
from specstream_jax.outputs import locks
from specstream_jax.report import tune_report
from specstream_jax.workflows import bench, tune_measures, tune_streamed


@dataclasses.dataclass(frozen=True)
class Options:
  """What to try, on what.

  Attributes:
    task: whose prompts, `name[/split][@DIR]`; of chats the first turns.
    num_prompts: evenly spread over it; 0 takes all.
    max_new_tokens: per prompt.
    batch_sizes: rows per call, each tuned by itself.
    nodes: sizes of trees; empty takes some that suit the device.
    schedules: of the streams; empty likewise.
    num_verified: candidates that are run against plain decoding.
    temperature: 0 is greedy.
    sampling: everything else of how tokens are drawn.
    seed: of the noise.
  """

  task: str = 'e2e_sample/train'
  num_prompts: int = 24
  max_new_tokens: int = 64
  batch_sizes: tuple[int, ...] = (1,)
  nodes: tuple[int, ...] = ()
  schedules: tuple[str, ...] = ()
  num_verified: int = 2
  temperature: float = 0.0
  sampling: config.SamplingConfig = config.SamplingConfig()
  seed: int = 0

  def __post_init__(self):
    """Raises ValueError if a value is of another type or out of range."""
    checks.option_types(self)
    checks.at_least('num_prompts', self.num_prompts, 0)
    checks.at_least('temperature', self.temperature, 0.0)
    checks.count('max_new_tokens', self.max_new_tokens, 2, bounds.TOKENS)
    checks.count('num_verified', self.num_verified, 1, config.MAX_NODES)
    checks.not_empty('batch_sizes', self.batch_sizes)
    for batch in self.batch_sizes:
      checks.count('an entry of batch_sizes', batch, 1, bounds.ROWS)
    for count in self.nodes:
      checks.count('an entry of nodes', count, 2, config.MAX_NODES)
    for name in self.schedules:
      checks.one_of('an entry of schedules', name, config.SCHEDULES)
    checks.seed('seed', self.seed)

  def bench(
    self, drafters: Sequence[str], batch: int, schedule: str
  ) -> bench.Options:
    """The benchmark of some candidates on the same prompts."""
    return bench.Options(
      drafters=tuple(drafters),
      tasks=(self.task,),
      temperatures=(self.temperature,),
      sampling=self.sampling,
      batch_sizes=(batch,),
      num_prompts=self.num_prompts,
      max_new_tokens=self.max_new_tokens,
      seed=self.seed,
      schedule=schedule,
      resume=True,
    )


def tune(
  model: runtime.Model,
  options: Options,
  folder: str,
  *,
  command: str,
  progress: bool = True,
) -> list[tune_report.Candidate]:
  """Measures, and keeps what is fastest with the adapter.

  Args:
    model: with an adapter that has streams.
    options: see `Options`.
    folder: keeps every measurement; the same call goes on where it stopped.
    command: for the results.
    progress: show progress bars.

  Returns:
    All candidates, by batch and then by what they promise, the best first.

  Raises:
    ValueError: there are no streams, no prompts, or the folder holds
      measurements of other settings, or another process works in it.
  """
  if model.stream is None:
    raise ValueError(
      'there is nothing to tune: no adapter with streams is loaded; name one '
      'with --adapter'
    )
  with locks.hold(folder, 'tuning'):
    journal = journal_lib.Journal(
      os.path.join(folder, 'measured.jsonl'),
      _header(model, options),
      resume=True,
      problem=tune_measures.problem,
    )
    measures = _measures(model, options, journal, progress)
    found = [one for b in options.batch_sizes for one in _rank(measures, b)]
  found = _verified(model, options, folder, found, command, progress)
  tune_report.write(folder, found, command=command, task=options.task)
  for batch in options.batch_sizes:
    tuning.keep(model.adapter_dir, _winner(model, options, found, batch))
  return found


def place(model: runtime.Model, num_rows: int) -> tuning.Place:
  """Where a time of this model on this machine is true."""
  return tuning.Place(
    machine.describe(),
    jax.__version__,
    model.config.numbers + tune_streamed.in_words(model),
    tuning.bucket(num_rows),
  )


def find(
  model: runtime.Model, num_rows: int, *, folder: str | None = None
) -> tuning.Tuned | None:
  """What was tuned for an adapter, this machine and so many rows.

  Args:
    model: of which the number type counts.
    num_rows: that decode together.
    folder: of the adapter; None takes the one that the model was loaded with,
      if it has streams.

  Raises:
    ValueError: tuning.json is damaged.
  """
  if folder is None:
    folder = model.adapter_dir if model.stream else ''
  if not (folder and tuning.is_there(folder)):
    return None
  return tuning.find(folder, place(model, num_rows))


def _header(model, options) -> dict[str, Any]:
  """What measurements of one folder have in common."""
  asked = dataclasses.asdict(options) | {'sampling': options.sampling.changes()}
  del asked['num_verified']
  return {
    'options': asked,
    'source': model.source,
    'weights': runtime.fingerprint(model) + tune_streamed.in_words(model),
    'machine': machine.describe(),
    'versions': results.versions(),
  }


def _measures(model, options, journal, progress) -> tune_measures.Measures:
  plan = bench.make_plan(options.bench(('none',), 1, 'deferred'))
  grid.check_ids(model, plan)
  prompts = grid.Bench(model, plan, [], journal_lib.Memory())
  [cell] = plan.cells
  return tune_measures.Measures(
    model,
    [row for rows in prompts.batches(cell, 0) for row in rows],
    journal,
    decode=config.DecodeConfig(
      max_new_tokens=options.max_new_tokens, eos_ids=model.eos_ids
    ),
    sampling=dataclasses.replace(
      options.sampling, temperature=options.temperature
    ),
    seed=options.seed,
    nodes=options.nodes,
    schedules=options.schedules,
    progress=progress,
  )


def _rank(measures, batch) -> list[tune_report.Candidate]:
  """All candidates for so many rows, the most promising first."""
  calls = {name: measures.calls(name) for name in measures.vocabularies}
  costs = measures.costs(batch)
  plain, found = costs[tune_measures.PLAIN], []
  steps = tune_measures.num_steps
  for side, cost in costs.items():
    if side is not tune_measures.PLAIN:
      nodes, vocabulary, schedule = side
      num_tokens, by_nodes = calls[vocabulary]
      without = steps([count - 1 for count in num_tokens], batch)
      text = measures.drafter(nodes, vocabulary)
      if measures.may_pause:
        # Where a text accepts less than a call costs, drafts pause.
        text += f',pays_above={cost / plain:.2f}'
      found.append(
        tune_report.Candidate(
          drafter=text,
          nodes=nodes,
          has_vocabulary=bool(vocabulary),
          schedule=schedule,
          batch=batch,
          call_reduction=without / max(steps(by_nodes[nodes], batch), 1),
          step_cost=cost / plain,
        )
      )
  found.sort(key=lambda one: -(one.predicted or 0.0))
  around = _around(found)
  choosing = [_choosing(measures, around)] if len(around) > 1 else []
  return [*found, _mixed(found[0]), *choosing]


def _mixed(one: tune_report.Candidate) -> tune_report.Candidate:
  """The candidate with copies of the text among its nodes."""
  name, _, settings = one.drafter.partition(':')
  assert name == 'streams', name
  return dataclasses.replace(
    one,
    drafter=f'mix:{settings}',
    call_reduction=None,
    step_cost=None,
    has_copies=True,
  )


def _around(
  found: Sequence[tune_report.Candidate],
) -> list[tune_report.Candidate]:
  """Sizes for calls to choose among: the most promising, half and twice it.

  Args:
    found: candidates for one batch size, the most promising first.

  Returns:
    Up to three that differ in nothing else, each dearer than the one before.
  """
  first, rising = found[0], []
  alike = [
    one
    for one in found
    if (one.has_vocabulary, one.schedule)
    == (first.has_vocabulary, first.schedule)
  ]
  for one in sorted(alike, key=lambda one: -one.nodes):
    # A smaller tree that costs as much is of no use.
    if not rising or (one.step_cost or 0) < (rising[0].step_cost or 0):
      rising.insert(0, one)
  half = [one for one in rising if 2 * one.nodes <= first.nodes][-1:]
  twice = [one for one in rising if one.nodes >= 2 * first.nodes][:1]
  return [*half, *([first] if first in rising else []), *twice]


def _choosing(measures, around) -> tune_report.Candidate:
  """The candidate whose calls choose among sizes."""
  largest = around[-1]
  vocabulary = 'adapter' if largest.has_vocabulary else ''
  sizes = tuple(budgets.Size(one.nodes, one.step_cost) for one in around)
  return dataclasses.replace(
    largest,
    drafter=f'{measures.drafter(largest.nodes, vocabulary)},'
    f'budgets={budgets.write(sizes)}',
    call_reduction=None,
    step_cost=None,
    sizes=tuple(size.nodes for size in sizes),
  )


def _verified(
  model, options, folder, found, command, progress
) -> list[tune_report.Candidate]:
  """The candidates, with how the most promising of each batch size ran.

  Calls that choose their size run in turns with the trees that they choose among.
  """
  chosen = []
  for batch in options.batch_sizes:
    promising = [one for one in found if one.batch == batch]
    others = [one for one in promising if not one.is_foreseen]
    foreseen = [one for one in promising if one.is_foreseen]
    chosen += foreseen[: options.num_verified] + others
  ran: dict[Any, results.RunResult] = {}
  for batch, schedule in sorted({(one.batch, one.schedule) for one in chosen}):
    group = [
      one for one in chosen if (one.batch, one.schedule) == (batch, schedule)
    ]
    drafters = [f'{one.label}={one.drafter}' for one in group]
    digest = hashlib.sha256('\n'.join(drafters).encode()).hexdigest()[:8]
    runs = bench.bench(
      model,
      options.bench(drafters, batch, schedule),
      os.path.join(folder, f'verified-{batch}-{schedule}-{digest}'),
      command=command,
      progress=progress,
    )
    ran |= dict(zip(map(id, group), runs, strict=True))
  return [
    one.measured_by(ran[id(one)]) if id(one) in ran else one for one in found
  ]


def _winner(model, options, found, batch) -> tuning.Tuned:
  one, where = tune_report.best(found, batch), place(model, batch)
  if one is None:
    return tuning.Tuned(where, 'none', 'deferred', 1.0, options.task)
  fixed = ''
  if not one.is_foreseen:
    same = tune_report.fixed(found, batch, with_copies=False)
    fixed = same.drafter if same else 'none'
  return tuning.Tuned(
    where,
    one.drafter,
    one.schedule,
    one.speedup or 1.0,
    options.task,
    fixed=fixed,
  )
