# SPDX-License-Identifier: Apache-2.0
"""A task through plain and speculative decoding: quality and speed."""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.bench import (
  grid,
  journal as journal_lib,
  journal_lines,
  results,
  runners as runners_lib,
  summary,
)
from specstream_jax.config import bounds, checks, drafting as config_drafting
from specstream_jax.data import questions as questions_lib, registry
from specstream_jax.outputs import locks
from specstream_jax.report import page

_NUM_SAMPLES = 8  # texts in the report
_BUCKET_STEP = 16  # the compiled prompt length is a multiple of it


@dataclasses.dataclass(frozen=True)
class Options:
  """What to evaluate and how.

  Attributes:
    task: name of a task.
    split: its split.
    data_dir: folder of the task's files; None takes what ships (e2e_sample)
      or downloads.
    num_prompts: the first so many; 0 takes all.
    max_new_tokens: per prompt.
    tree: draft tree; None takes the adapter's.
    schedule: 'deferred' or 'parallel'.
    sampling: how tokens are drawn, on both sides.
    batch: rows per call.
    repeats: timed passes.
    seed: of the noise when temperature > 0.
    drafter: all settings, or text as `config.drafting.parse` reads it; None
      takes plain streams.
    shard: this shard's number.
    num_shards: how many runs share the batches.
  """

  task: str = 'e2e_sample'
  split: str = 'test'
  data_dir: str | None = None
  num_prompts: int = 64
  max_new_tokens: int = 64
  tree: config.TreeConfig | None = None
  schedule: str = 'deferred'
  sampling: config.SamplingConfig = config.SamplingConfig()
  batch: int = 1
  repeats: int = 2
  seed: int = 0
  drafter: str | config_drafting.DrafterConfig | None = None
  shard: int = 0
  num_shards: int = 1

  def __post_init__(self):
    """Raises ValueError if a value is of the wrong kind."""
    checks.option_types(self)
    if isinstance(self.drafter, str):
      config_drafting.parse(self.drafter)
    checks.seed('seed', self.seed)
    checks.at_least('num_prompts', self.num_prompts, 0)
    for name, most in (
      ('max_new_tokens', bounds.TOKENS),
      ('batch', bounds.ROWS),
      ('repeats', bounds.PASSES),
    ):
      checks.count(name, getattr(self, name), 1, most)
    checks.shard(self.shard, self.num_shards)


def evaluate(
  model: runtime.Model,
  options: Options = Options(),
  *,
  folder: str | None = None,
  progress: bool = True,
) -> results.RunResult | None:
  """Decodes the task's prompts both ways, and scores both outputs.

  Args:
    model: with an adapter.
    options: see `Options`.
    folder: keeps every measurement as it comes, so that a stopped run goes on
      and shards meet; None keeps nothing.
    progress: show a progress bar.

  Returns:
    The result of all shards, or None while another one owes batches.

  Raises:
    ValueError: unknown task or split, no rows, no adapter, another drafter
      than streams, shards without a folder, or a folder with measurements of
      other settings, or that another process works in.
  """
  plan = _plan(model, options)
  runners = _runners(model, options)
  if folder is None and options.num_shards > 1:
    raise ValueError('shards need a folder in which they meet')
  if folder is None:
    made = grid.Bench(model, plan, runners, journal_lib.Memory())
    made.run(progress=progress)
  else:
    made = _shared(model, plan, runners, options, folder, progress)
  if not made.is_whole:
    return None
  [run] = summary.summarize(
    model,
    made,
    schedule=options.schedule,
    sampling=options.sampling,
    num_samples=_NUM_SAMPLES,
  )
  return run


def _plan(model, options) -> grid.Plan:
  """The task's first prompts, in batches of one compiled length."""
  spec = registry.get(options.task)
  examples = spec.load_split(options.split, options.data_dir)
  examples = examples[: options.num_prompts or None]
  prompts = [model.encode_prompt(e.inputs) for e in examples]
  for number, prompt in enumerate(prompts, start=1):
    model.check_ids(prompt, f'task {options.task!r}, prompt {number}')
  model.warn_if_long(prompts, options.max_new_tokens)
  task = f'{options.task}/{options.split}'
  return grid.Plan(
    {task: questions_lib.of_examples(options.task, examples)},
    (grid.Cell(task, options.sampling.temperature, options.batch),),
    options.repeats,
    options.seed,
    max_prompt_tokens=None,
    bucket=-(-max(map(len, prompts)) // _BUCKET_STEP) * _BUCKET_STEP,
    ignore_eos=options.sampling.ignore_eos,
  )


def _runners(model, options) -> list[runners_lib.Runner]:
  """Plain decoding and the streams."""
  options.sampling.check_fits(model.config.vocab_size)
  tree = options.tree or model.tree
  drafter = options.drafter or config_drafting.DrafterConfig()
  if isinstance(drafter, str):
    drafter = config_drafting.parse(drafter, tree)
  if drafter.name != 'streams':
    raise ValueError(
      f"drafter is {drafter.name!r}; evaluate takes 'streams', `specstream "
      'bench` takes any'
    )
  if drafter.tree is None:
    drafter = dataclasses.replace(drafter, tree=tree)
  decode = config.DecodeConfig(
    max_new_tokens=options.max_new_tokens,
    schedule=options.schedule,
    eos_ids=model.eos_ids,
  )
  plain = config_drafting.DrafterConfig(grid.BASELINE)
  sides = {grid.BASELINE: plain, _name(drafter): drafter}
  return [
    runners_lib.OwnRunner(model, rival, label, decode, options.sampling)
    for label, rival in sides.items()
  ]


def _shared(model, plan, runners, options, folder, progress) -> grid.Bench:
  """This shard's measurements are made; those of all that ended are there."""
  header = _header(model, plan, options)
  count = options.num_shards
  shard = options.shard, count
  with locks.hold(folder, 'results', *shard):
    journal = journal_lib.Journal(
      _measured(folder, *shard),
      header,
      resume=True,
      problem=journal_lines.measurement,
    )
    grid.Bench(model, plan, runners, journal).run(
      shard=shard, progress=progress
    )
  entries = journal_lib.Memory()
  for number in range(count):
    entries |= journal_lib.read(
      _measured(folder, number, count), header, journal_lines.measurement
    )
  return grid.Bench(model, plan, runners, entries)


def forget(folder: str, options: Options) -> None:
  """Removes the measurements of a run of one shard, once they are written.

  Those of several shards stay, for each of them may be the last.
  """
  if options.num_shards == 1:
    pathlib.Path(_measured(folder, 0, 1)).unlink(missing_ok=True)


def _measured(folder, shard, num_shards):
  name = f'measured.shard-{shard:05d}-of-{num_shards:05d}.jsonl'
  return os.path.join(folder, name)


def _header(model, plan, options) -> dict[str, Any]:
  """What measurements depend on; shards and resumed runs must agree on it."""
  settings = dataclasses.asdict(options)
  del settings['shard']
  always = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}
  settings['sampling'] = always | options.sampling.changes()
  [asked] = plan.questions.values()
  prompts = [list(model.encode_prompt(q.turns[0])) for q in asked]
  digest = hashlib.sha256(repr(prompts).encode())
  return {
    'source': model.source,
    'sha256': runtime.fingerprint(model),
    'prompts_sha256': digest.hexdigest(),
    'dtype': model.config.numbers,
    'versions': results.versions(),
    'options': settings,
  }


def write(
  folder: str,
  runs: Sequence[results.RunResult],
  *,
  command: str,
  source: dict[str, str],
) -> str:
  """Writes results.json and report.html; returns the report's path.

  Raises:
    ValueError: the folder cannot be written.
  """
  document = results.document(list(runs), command=command, source=source)
  results.write(folder, document)
  path = os.path.join(folder, 'report.html')
  page.write(path, document)
  return path


def _name(drafter) -> str:
  """Label of the row: drafter, tree, and what helps it."""
  tree = drafter.tree
  helpers = {'vocabulary': drafter.vocabulary, 'n-grams': drafter.ngram_table}
  used = [name for name, file in helpers.items() if file]
  return ' + '.join([f'{drafter.name} {tree.kind} {tree.size}', *used])
