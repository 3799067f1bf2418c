# SPDX-License-Identifier: Apache-2.0
"""Every rival on every task: one table, one report, one journal."""

from collections.abc import Sequence
import dataclasses
import os
import subprocess
from typing import Any
import zlib

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import (
  external,
  grid,
  journal as journal_lib,
  journal_lines,
  llama_cpp_reference,
  openvino_reference,
  results,
  runners as runners_lib,
  summary,
)
from specstream_jax.config import bounds, checks, drafting as config_drafting
from specstream_jax.data import questions as questions_lib
from specstream_jax.outputs import locks, writing
from specstream_jax.report import bench_table, page

_DESCRIBE = ['describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
# Other programs that can be rows of the table.
EXTERNAL = (
  *external.NAMES,
  *openvino_reference.NAMES,
  *llama_cpp_reference.NAMES,
)
# Of those that read GGUF files: (program, loads weights, makes a row).
_PROGRAMS: dict[str, tuple[str, Any, Any]] = {
  name: (program, module.Target, wrap)
  for program, module, wrap in (
    ('openvino', openvino_reference, openvino_reference.OpenVinoRunner),
    ('llama_cpp', llama_cpp_reference, llama_cpp_reference.LlamaCppRunner),
  )
  for name in module.NAMES
}
# Options that do not change what is measured.
_OF_THE_RUN = ('resume', 'overwrite', 'num_samples')


@dataclasses.dataclass(frozen=True)
class Options:
  """What to measure.

  Attributes:
    drafters: settings as `config.drafting.parse` reads them, or
      `label=settings`; the baseline `none` is always measured.
    tasks: names, each with an optional split and folder: `name[/split][@DIR]`.
    temperatures: 0 is greedy.
    sampling: everything else of how tokens are drawn.
    batch_sizes: rows per call.
    num_prompts: per task, evenly spread; 0 takes all.
    max_new_tokens: per prompt.
    max_prompt_tokens: longer prompts lose their beginning.
    repeats: timed passes.
    seed: of the noise.
    schedule: of streams.
    external: names of `EXTERNAL`.
    synthetic_acceptance: chance that a draft is accepted; 0 verifies.
    resume: go on with the journal that is there.
    overwrite: start anew where there is one.
    num_samples: texts of each rival that the report shows.
  """

  drafters: tuple[str, ...] = ('streams',)
  tasks: tuple[str, ...] = ('e2e_sample/test',)
  temperatures: tuple[float, ...] = (0.0,)
  sampling: config.SamplingConfig = config.SamplingConfig()
  batch_sizes: tuple[int, ...] = (1,)
  num_prompts: int = 64
  max_new_tokens: int = 64
  max_prompt_tokens: int = 1024
  repeats: int = 1
  seed: int = 0
  schedule: str = 'deferred'
  external: tuple[str, ...] = ()
  synthetic_acceptance: float = 0.0
  resume: bool = False
  overwrite: bool = False
  num_samples: int = 2

  def __post_init__(self):
    """Raises ValueError if a value is out of range or of another type."""
    checks.option_types(self)
    checks.at_least('num_prompts', self.num_prompts, 0)
    checks.at_least('num_samples', self.num_samples, 0)
    for name, least, most in (
      ('max_new_tokens', 2, bounds.TOKENS),  # the first is of the prompt pass
      ('max_prompt_tokens', 2, bounds.TOKENS),
      ('repeats', 1, bounds.PASSES),
    ):
      checks.count(name, getattr(self, name), least, most)
    for name in ('tasks', 'temperatures', 'batch_sizes'):
      checks.not_empty(name, getattr(self, name))
    checks.seed('seed', self.seed)
    for batch in self.batch_sizes:
      checks.count('an entry of batch_sizes', batch, 1, bounds.ROWS)
    for temperature in self.temperatures:
      checks.at_least('an entry of temperatures', temperature, 0.0)
    for name in self.external:
      checks.one_of('an entry of external', name, EXTERNAL)
    others = sorted(set(self.sampling.changes()) - {'temperature'})
    checks.check(
      not (self.external and others),
      f'external references know nothing of {others}; leave one or the other',
    )


def bench(
  model: runtime.Model,
  options: Options,
  folder: str | None,
  *,
  command: str,
  progress: bool = True,
) -> list[results.RunResult]:
  """Measures, and writes journal, results, tables and report to `folder`.

  An interrupt writes what there is so far and is raised again. Without a folder
  nothing is kept but what is returned.

  Raises:
    ValueError: unknown drafter, task or setting, or a folder that cannot be
      written, or that another process works in.
  """
  plan = make_plan(options)
  grid.check_ids(model, plan)
  runners = make_runners(model, options)
  if folder is None:
    made = grid.Bench(model, plan, runners, journal_lib.Memory())
    made.run(progress=progress)
    return _summary(model, made, options)
  with locks.hold(folder, 'results'):
    journal = journal_lib.Journal(
      os.path.join(folder, 'journal.jsonl'),
      _header(model, options, runners),
      resume=options.resume,
      overwrite=options.overwrite,
      problem=journal_lines.measurement,
    )
    made = grid.Bench(model, plan, runners, journal)
    try:
      made.run(progress=progress)
    finally:
      runs = _summary(model, made, options)
      if runs:
        _write(folder, runs, made, runners, model, command)
  return runs


def _summary(model, made, options) -> list[results.RunResult]:
  """What has been measured so far."""
  return summary.summarize(
    model,
    made,
    schedule=options.schedule,
    sampling=options.sampling,
    num_samples=options.num_samples,
  )


def _header(model, options, runners) -> dict[str, Any]:
  """What measurements of one journal have in common."""
  asked = dataclasses.asdict(options) | {'sampling': options.sampling.changes()}
  left = _OF_THE_RUN if asked['sampling'] else (*_OF_THE_RUN, 'sampling')
  return {
    'options': {k: v for k, v in asked.items() if k not in left},
    'source': model.source,
    'weights': runtime.fingerprint(model),
    'drafters': {runner.label: runner.fingerprint for runner in runners},
    # Settings that are left out have defaults, which may change.
    'trees': {
      runner.label: [getattr(runner, 'size', 0), runner.max_depth]
      for runner in runners
    },
  }


def make_plan(options: Options) -> grid.Plan:
  """Questions and grid of the options; see `bench` for errors."""
  questions, names = {}, []
  shorts = [text.partition('@')[0] for text in options.tasks]
  for text, short in zip(options.tasks, shorts, strict=True):
    name, _, split = short.partition('/')
    data_dir = text.partition('@')[2]
    key = short
    if shorts.count(short) > 1:  # one task on several folders
      key += '@' + os.path.basename(os.path.normpath(data_dir))
    if key in questions:
      raise ValueError(f'task {key!r} is asked for twice; leave one out')
    questions[key] = questions_lib.load(
      name, split or 'test', data_dir or None, options.num_prompts
    )
    names.append(key)
  cells = tuple(
    grid.Cell(task, temperature, batch)
    for task in names
    for temperature in options.temperatures
    for batch in options.batch_sizes
  )
  return grid.Plan(
    questions,
    cells,
    options.repeats,
    options.seed,
    options.max_prompt_tokens,
    ignore_eos=options.sampling.ignore_eos,
  )


def make_runners(
  model: runtime.Model, options: Options
) -> list[runners_lib.Runner]:
  """The baseline, then every rival; see `bench` for errors."""
  options.sampling.check_fits(model.config.vocab_size)
  decode = config.DecodeConfig(
    max_new_tokens=options.max_new_tokens,
    schedule=options.schedule,
    eos_ids=model.eos_ids,
  )
  rivals = [text for text in options.drafters if text != grid.BASELINE]
  runners = []
  for text in (grid.BASELINE, *rivals):
    label, text = _label(text)
    drafter = config_drafting.parse(text, model.tree)
    if options.synthetic_acceptance and text != grid.BASELINE:
      drafter = dataclasses.replace(
        drafter, synthetic_acceptance=options.synthetic_acceptance
      )
    if label in [runner.label for runner in runners]:
      raise ValueError(
        f'two drafters are called {label!r}; give each a LABEL= of its own '
        f'({grid.BASELINE!r} is the baseline)'
      )
    runners.append(
      runners_lib.OwnRunner(model, drafter, label, decode, options.sampling)
    )
  if options.external:
    runners += _others(model, options.external, decode, rivals)
  return runners


def _others(model, names, decode, rivals) -> list[Any]:
  """Other programs, each with as many threads as there are cores."""
  threads, found = len(os.sched_getaffinity(0)), []
  targets: dict[str, Any] = {}
  for name in names:
    kind, load, wrap = _PROGRAMS.get(name, ('hf', external.load_target, None))
    if kind not in targets:
      targets[kind] = load(model, threads)
    if wrap is None:
      found.append(_external(targets[kind], name, decode, rivals))
    else:
      found.append(wrap(targets[kind], name, decode))
  return found


def _label(text: str) -> tuple[str, str]:
  """(label, settings) of `LABEL=NAME:…`; without a label, the settings."""
  head, colon, rest = text.partition(':')
  label, equals, name = head.rpartition('=')
  return (label.strip(), name + colon + rest) if equals else (text, text)


def _external(target, name, decode, drafters):
  assistant = None
  if name == 'hf_assisted':
    parsed = [config_drafting.parse(_label(text)[1]) for text in drafters]
    folders = [cfg.path for cfg in parsed if cfg.name == 'draft_model']
    if not folders:
      raise ValueError(
        'hf_assisted needs a draft model; name one, e.g. '
        '--drafters=draft_model:path=FOLDER'
      )
    assistant = external.load_folder(folders[0])
  return external.TransformersRunner(target, name, decode, assistant)


def _write(folder, runs, made, runners, model, command):
  """results.json, table.md, report.html and answers/*.jsonl."""
  source = model.source | {
    'revision': _revision(),
    'sha': runtime.fingerprint(model),
    'drafters': {runner.label: runner.fingerprint for runner in runners},
  }
  document = results.document(runs, command=command, source=source)
  results.write(folder, document)
  writing.write_text(
    os.path.join(folder, 'table.md'), bench_table.markdown(document)
  )
  page.write(os.path.join(folder, 'report.html'), document)
  for cell in made.plan.cells:
    for runner in made.runners(cell):
      found = made.collect(cell, runner.label)
      if found:
        name = f'{cell.task}-T{cell.temperature:g}-b{cell.batch}-{runner.label}'
        results.write_spec_bench(
          os.path.join(folder, 'answers', _file_name(name)),
          [row | _mark(runner) for row in _answers(made, *found)],
        )


def _mark(runner) -> dict[str, str]:
  """What answers carry beside Spec-Bench's fields unless they are lossless."""
  is_marked = runner.output in ('lossy', 'synthetic')
  return {'output': runner.output} if is_marked else {}


def _file_name(name: str) -> str:
  """A short file name, its own for every `name`."""
  safe = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)
  if safe != name or len(safe) > 100:
    safe = f'{safe[:100]}-{zlib.crc32(name.encode()):08x}'
  return f'{safe}.jsonl'


def _answers(made, rows: Sequence[Any], side) -> list[dict[str, Any]]:
  """Spec-Bench records: all turns of a question together, in order."""
  turns: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    turns.setdefault(row.index, []).append(i)
  # A batch is timed as a whole; each of its rows gets an equal part.
  whole = (side.seconds + side.prefill_seconds).mean(axis=0)
  share = (whole / np.bincount(side.batch_of))[list(side.batch_of)]
  return [
    results.spec_bench_record(
      rows[places[0]].question.question_id,
      rows[places[0]].question.category,
      [made.text(side.tokens[i], rows[i]) for i in places],
      [len(side.tokens[i]) for i in places],
      [share[i] for i in places],
      [n for i in places for n in side.accept_lengths[i]],
    )
    for _, places in sorted(turns.items())
  ]


def _revision() -> str:
  """Commit of the source tree this package lies in, `-dirty` if changed since.

  'unknown' where it lies in none.
  """
  try:
    done = subprocess.run(
      ['git', '-C', os.path.dirname(__file__), *_DESCRIBE],
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return done.stdout.strip()
