# SPDX-License-Identifier: Apache-2.0
"""From rows to a measured, faster model: every step of it in one call.

Reads and splits the rows, lets the model answer the prompts where its own
answers are what drafts learn, writes token records, trains, chooses the tree,
measures on held-out rows. A stopped run goes on with the same call.
"""

from collections.abc import Callable
import dataclasses
import os
import shlex

from specstream_jax.bench import results
from specstream_jax.checkpoints import files
from specstream_jax.outputs import locks
from specstream_jax.report import page
from specstream_jax.workflows import (
  adapt_plan,
  adapt_run,
  adapt_settings,
  adapt_stages,
  dry_run,
)

Options = adapt_run.Options


@dataclasses.dataclass(frozen=True)
class Adapted:
  """What came out.

  Attributes:
    folder: of the run.
    run: measured on the held-out rows; None if a signal stopped the run.
    signal: that stopped it, or 0.
  """

  folder: str
  run: results.RunResult | None
  signal: int = 0

  @property
  def adapter(self) -> str:
    """Folder of the adapter."""
    return os.path.join(self.folder, 'adapter')

  @property
  def report(self) -> str:
    """The page with what was measured."""
    return os.path.join(self.folder, 'report.html')

  @property
  def drafter(self) -> str:
    """Settings of the drafter that was the fastest."""
    path = os.path.join(self.folder, 'tuned.json')
    return files.read_json(path)['drafter']


def adapt(
  rows: str,
  base: str,
  folder: str,
  options: Options = Options(),
  *,
  command: str = 'adapt',
  say: Callable[[str], None] = print,
  progress: bool = True,
) -> Adapted:
  """Adapts a model to rows; goes on where it was stopped.

  Args:
    rows: file, folder or hub id, see `row_files.read`; '' where the options
      name a task.
    base: model name, folder, hub id or GGUF file.
    folder: of the run: adapter/, report.html, and all stages.
    options: see `Options`.
    command: for the report.
    say: takes a line of what is going on.
    progress: show progress bars.

  Raises:
    ValueError: bad rows, with file and line of each; a folder of other
      settings; whatever the stages raise.
  """
  run = adapt_run.start(rows, base, folder, options, command, say, progress)
  with locks.hold(folder, 'adapt'):
    is_old = adapt_settings.check(folder, run.settings(rows))
    if is_old:
      say(f'{folder} is there: what is done stays')
    for stage in adapt_stages.ALL:
      if signal := stage(run):
        return Adapted(folder, None, signal)
    return _report(run)


def describe(rows: str, base: str, options: Options = Options()) -> str:
  """What `adapt` would do, without doing it; errors as there."""
  lines: list[str] = []
  run = adapt_run.start(rows, base, '', options, '', lines.append, False)
  lengths = adapt_plan.of_turns(
    run.found.splits.turns['train'],
    run.vocabulary,
    longest=adapt_plan.longest_example(run.sizes),
    own_tokens=options.max_new_tokens or adapt_run.OWN_TOKENS,
  )
  made = run.recipe(lengths, 1)
  steps = adapt_plan.wanted_steps(made, lengths)
  made = run.recipe(lengths, steps)
  lines.append(
    f'training: up to {steps:,} steps, fewer if they do not fit into '
    f'{options.time_limit:g} minutes (--time_limit, for all of it): a few are '
    'timed before it starts, and it says then how long it takes'
  )
  remat = adapt_plan.remat(base, made, options.dtype)
  lines.append(dry_run.describe(base, made, dtype=options.dtype, remat=remat))
  return '\n'.join(lines)


def _report(run: adapt_run.Run) -> Adapted:
  """report.html, from what the stages have left."""
  done = Adapted(run.folder, None)
  doc = results.read(run.path('results', 'results.json'))
  page.write(
    done.report,
    doc,
    metrics_path=run.path('run', 'metrics.jsonl'),
    other_quality=_other_quality(run),
    notes={
      'rows': '; '.join(run.found.lines()),
      'mode': run.mode,
      'drafter': done.drafter,
      'adapter': done.adapter,
      'measured on': _measured_on(run),
    },
  )
  return dataclasses.replace(done, run=max(doc.runs, key=lambda r: r.speedup))


def _measured_on(run: adapt_run.Run) -> str:
  """How many of the examples that were held out."""
  count = files.read_json(run.path('tested.json'))['num_prompts']
  held_out = len(run.found.splits.turns['test'])
  text = f'{count:,} of {held_out:,} test examples'
  return text + ', as many as the time allowed' * (count < held_out)


def _other_quality(run: adapt_run.Run) -> dict[str, dict[str, float]]:
  """Scores to stand beside those of the adapter."""
  known = {'base model': 'base_quality.json', 'LoRA alone': 'lora_quality.json'}
  return {
    label: files.read_json(run.path(name))
    for label, name in known.items()
    if os.path.isfile(run.path(name))
  }


def next_command(base: str, done: Adapted) -> str:
  """What a user may want to type next."""
  words = [
    *('specstream', 'generate', f'--model={base}', f'--adapter={done.adapter}'),
    f'--drafter={done.drafter}',
    '--prompt=YOUR PROMPT',
  ]
  return shlex.join(words)
