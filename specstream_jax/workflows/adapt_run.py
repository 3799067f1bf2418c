# SPDX-License-Identifier: Apache-2.0
"""What every stage of an adaptation knows: rows, model, mode, folder."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.checkpoints import fitted, loading, shipped
from specstream_jax.config import checks
from specstream_jax.data import row_shapes, vocabulary as vocabulary_lib
from specstream_jax.workflows import (
  adapt_plan,
  adapt_rows,
  adapt_task,
  task_records,
  train as train_workflow,
)

MODES = ('auto', 'fine_tuned', 'lossless')
# Of an answer that is not known yet, at most.
OWN_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Options:
  """What to adapt to, and how.

  Attributes:
    mode: `fine_tuned` learns the rows' answers and to draft them; `lossless`
      leaves the answers as they are; `auto` takes what fits the rows.
    on_adapter: fine-tuned adapter or PEFT LoRA whose answers are kept.
    time_limit: minutes for all of it, on this machine.
    prompt_column: see `row_shapes.Shape`.
    answer_column: see `row_shapes.Shape`.
    chat: see `row_shapes.Shape`.
    split: of a data set that has several.
    skip_bad_rows: leave bad rows out, with a warning each.
    dtype: of weights and activations.
    max_new_tokens: of an answer; 0 goes by the rows.
    task: in place of rows, see `registry.get`.
    data_dir: folder of the task's files.
    compare_lora: train a LoRA alone as well, to compare answers with.
  """

  mode: str = 'auto'
  on_adapter: str = ''
  time_limit: float = 15.0
  prompt_column: str = ''
  answer_column: str = ''
  chat: str = 'auto'
  split: str = 'train'
  skip_bad_rows: bool = False
  dtype: str = 'float32'
  max_new_tokens: int = 0
  task: str = ''
  data_dir: str = ''
  compare_lora: bool = False

  def __post_init__(self):
    checks.option_types(self)
    checks.one_of('mode', self.mode, MODES)
    checks.one_of('chat', self.chat, row_shapes.CHAT)
    checks.at_least('max_new_tokens', self.max_new_tokens, 0)
    checks.check(
      self.time_limit > 0,
      f'time_limit is {self.time_limit}; accepted: minutes, more than 0',
    )
    checks.check(
      not (self.on_adapter and self.mode == 'fine_tuned'),
      f'--on_adapter={self.on_adapter} keeps the answers of that adapter, '
      '--mode=fine_tuned trains new ones; leave one out',
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """What every stage knows."""

  base: str
  folder: str
  options: Options
  found: adapt_rows.Found
  mode: str
  vocabulary: vocabulary_lib.Vocabulary
  outline: loading.LoadedModel
  command: str
  say: Callable[[str], None]
  progress: bool
  models: dict[str, runtime.Model] = dataclasses.field(default_factory=dict)

  @property
  def sizes(self) -> config.ModelConfig:
    """Of the base model."""
    return self.outline.config

  @property
  def fold_adapter(self) -> str | None:
    """Folder of the adapter whose answers are kept, or None."""
    name = self.options.on_adapter
    return shipped.adapter_folder(name) if name else None

  def path(self, *names: str) -> str:
    """A place in the folder."""
    return os.path.join(self.folder, *names)

  def recipe(
    self, lengths: adapt_plan.Lengths, num_steps: int, batch_size: int = 0
  ) -> train_workflow.Recipe:
    """Settings of training, see `adapt_plan.recipe`."""
    return adapt_plan.recipe(
      self.sizes,
      self.mode,
      lengths,
      num_steps=num_steps,
      batch_size=batch_size,
    )

  def step(self, name: str, text: str) -> None:
    """Says which step begins, of how many."""
    names = ['own'] * (self.mode == 'lossless') + ['train', 'tune', 'test']
    names += ['lora'] * self.options.compare_lora
    self.say(f'{names.index(name) + 1}/{len(names)} {text}')

  def seconds(self, share: float) -> float:
    """A part of the time limit."""
    return 60 * self.options.time_limit * share

  def settings(self, rows: str) -> dict[str, Any]:
    """What a run that goes on must have in common with its beginning."""
    options = dataclasses.asdict(self.options) | {'mode': self.mode}
    # A LoRA may be asked for later.
    del options['skip_bad_rows'], options['compare_lora']
    for name in ('task', 'data_dir'):  # folders of older versions lack them
      if not options[name]:
        del options[name]
    return {
      'model': str(self.outline.source),
      'model sha256': self.outline.config_hash,
      'rows': os.path.basename(os.path.normpath(rows or self.options.task)),
      'content of the rows': self.found.sha256(),
      **options,
    }

  def model(self) -> runtime.Model:
    """Base and adapter, loaded once."""
    if not self.models:
      self.models['adapted'] = runtime.load(
        self.base, self.path('adapter'), dtype=self.options.dtype
      )
    return self.models['adapted']


def start(
  rows: str,
  base: str,
  folder: str,
  options: Options,
  command: str,
  say: Callable[[str], None],
  progress: bool,
) -> Run:
  """Reads what there is and says what it comes to; arguments as of `adapt`."""
  outline = loading.load_outline(base, dtype=options.dtype)
  if options.on_adapter:
    fitted.read(options.on_adapter, outline)  # a wrong name ends it here
  vocab = task_records.model_vocabulary(base, outline)
  tokenizer = vocab.tokenizer
  ends = {vocab.eos_id, *outline.eos_ids}
  found = _found(
    rows,
    options,
    outline.chat_template,
    tuple(filter(None, map(tokenizer.id_to_token, sorted(ends)))),
  )
  for line in found.lines():
    say(line)
  mode, why = choose(options, found)
  say(f'mode: {mode}, {why}')
  checks.check(
    not (options.compare_lora and mode == 'lossless'),
    "--compare_lora trains a LoRA on the rows' answers, which --mode=lossless "
    'does not learn; leave it out, or use --mode=fine_tuned',
  )
  if found.end:
    end = tokenizer.token_to_id(found.end)
    vocab = dataclasses.replace(vocab, eos_id=end)
  return Run(
    base,
    folder,
    options,
    found,
    mode,
    vocab,
    outline,
    command,
    say,
    progress,
  )


def _found(rows, options, template, ends) -> adapt_rows.Found:
  """Rows of a source, or of a task."""
  if options.task:
    return adapt_task.read(
      options.task,
      options.data_dir or None,
      skip_bad_rows=options.skip_bad_rows,
    )
  shape = row_shapes.Shape(
    prompt_column=options.prompt_column,
    answer_column=options.answer_column,
    chat=options.chat,
    template=template,
    ends=ends,
  )
  return adapt_rows.read(
    rows,
    shape,
    split=options.split,
    skip_bad_rows=options.skip_bad_rows,
    wants_answers=options.mode == 'auto' and not options.on_adapter,
  )


def choose(options: Options, found: adapt_rows.Found) -> tuple[str, str]:
  """The mode, and why it is that."""
  if options.mode == 'fine_tuned' and not found.has_answers:
    raise ValueError(
      '--mode=fine_tuned learns the answers of the rows, and some have none; '
      'name their column with --answer_column, or use --mode=lossless'
    )
  if options.mode != 'auto':
    return options.mode, 'as asked'
  if options.on_adapter:
    return 'lossless', f'so that answers stay those of {options.on_adapter}'
  if found.has_answers:
    return (
      'fine_tuned',
      'as the rows have answers: the model learns them, and to draft them '
      "(--mode=lossless keeps the model's own answers)",
    )
  return (
    'lossless',
    f"as {found.without_answers}: the model's own count",
  )
