# SPDX-License-Identifier: Apache-2.0
"""The part of the Python interface that works through whole data sets.

done = ss.adapt('smollm2-135m-instruct', 'rows.jsonl', 'my_adapter')
runs = ss.compare(ss.load('smollm2-135m-instruct', done.adapter))
"""

from collections.abc import Iterator, Sequence
from typing import Any

from specstream_jax import runtime
from specstream_jax.api_checks import says_where
from specstream_jax.bench import results as _results
from specstream_jax.checkpoints import loading
from specstream_jax.config import checks
from specstream_jax.data import prepare_pairs, registry, vocabulary
from specstream_jax.workflows import (
  adapt as _adapt,
  bench as _bench,
  check as _check,
  export as _export,
)


@checks.names_options
def adapt(
  base: str,
  rows: str,
  output_dir: str,
  *,
  mode: str = 'auto',
  on_adapter: str = '',
  time_limit: float = 15.0,
  prompt_column: str = '',
  answer_column: str = '',
  chat: str = 'auto',
  split: str = 'train',
  skip_bad_rows: bool = False,
  dtype: str = 'float32',
  max_new_tokens: int = 0,
  task: str = '',
  data_dir: str = '',
  compare_lora: bool = False,
  progress: bool = True,
) -> _adapt.Adapted:
  """From rows to a measured adapter; the same call goes on where it stopped.

  Args:
    base: model name, folder, hub id or GGUF file.
    rows: a file of rows, a folder of such files, or a Hugging Face data set.
    output_dir: of the run: adapter/, report.html, and all stages.
    mode: 'fine_tuned', 'lossless' or 'auto', which takes what fits the rows.
    on_adapter: fine-tuned adapter or PEFT LoRA whose answers are kept.
    time_limit: minutes for all of it; a guide.
    prompt_column: of the prompts or messages; '' goes by the known names.
    answer_column: of the answers.
    chat: 'auto', 'always' or 'never': prompts go through the chat template.
    split: of a data set that has several.
    skip_bad_rows: leave bad rows out, with a warning each.
    dtype: of weights and activations.
    max_new_tokens: of an answer; 0 goes by the rows.
    task: whose rows are taken, of data_dir; `rows` is '' then.
    data_dir: folder of the task's files.
    compare_lora: train a LoRA without drafts as well, to compare answers with.
    progress: say what is going on, and show progress bars.

  Raises:
    ValueError: bad rows, with file and line, or a folder of other settings.
  """
  options = _adapt.Options(
    mode=mode,
    on_adapter=on_adapter,
    time_limit=time_limit,
    prompt_column=prompt_column,
    answer_column=answer_column,
    chat=chat,
    split=split,
    skip_bad_rows=skip_bad_rows,
    dtype=dtype,
    max_new_tokens=max_new_tokens,
    task=task,
    data_dir=data_dir,
    compare_lora=compare_lora,
  )
  return _adapted(base, rows, output_dir, options, progress)


def _adapted(base, rows, folder, options, progress):
  say = print if progress else lambda line: None
  return _adapt.adapt(rows, base, folder, options, say=say, progress=progress)


@checks.names_options
def prepare(
  base: str,
  output_dir: str,
  *,
  task: str = 'e2e_sample',
  split: str = 'train',
  data_dir: str | None = None,
  max_length: int = 0,
  too_long: str = 'drop',
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes a task's rows as token records, for `train`.

  All rows are held in memory; `specstream prepare` streams them.

  Args:
    base: model whose tokenizer makes the tokens.
    output_dir: folder to create.
    task: name of a task.
    split: its split.
    data_dir: folder of its files; None takes what ships, or downloads.
    max_length: most tokens of an example; 0 is no limit.
    too_long: 'drop' longer examples, 'truncate' the end of the answer, or
      'truncate_prompt', its beginning.
    overwrite: replace a folder that is there.

  Returns:
    What the folder's manifest says.

  Raises:
    ValueError: unknown task or split, a malformed row, or a folder that is
      there.
  """
  return prepare_pairs.prepare(
    registry.get(task),
    vocabulary.load(str(loading.resolve(base))),
    output_dir,
    split=split,
    data_dir=data_dir,
    max_length=max_length,
    too_long=too_long,
    overwrite=overwrite,
  )


@says_where
def compare(
  model: runtime.Model,
  drafters: Sequence[str] = ('streams',),
  *,
  tasks: Sequence[str] = ('e2e_sample/test',),
  temperatures: Sequence[float] = (0.0,),
  batch_sizes: Sequence[int] = (1,),
  num_prompts: int = 64,
  max_new_tokens: int = 64,
  repeats: int = 1,
  seed: int = 0,
  schedule: str = 'deferred',
  folder: str | None = None,
  resume: bool = False,
  progress: bool = True,
) -> list[_results.RunResult]:
  """Races drafters on the same prompts, as `specstream bench` does.

  Args:
    model: from `load`.
    drafters: names with settings, such as 'streams:num_nodes=8', perhaps
      behind a label of your own, 'mine=streams:num_nodes=8'.
    tasks: names, each with an optional split and folder: 'name/split@DIR'.
    temperatures: 0 is greedy.
    batch_sizes: rows per call.
    num_prompts: per task, evenly spread; 0 takes all.
    max_new_tokens: per prompt.
    repeats: timed passes.
    seed: of the noise.
    schedule: of streams, 'deferred' or 'parallel'.
    folder: gets journal, results, table, report and answers; None keeps none.
    resume: go on with the journal that is there.
    progress: show a progress bar.

  Returns:
    A result for each drafter, task, temperature and batch size, against plain
    decoding.
  """
  options = _bench.Options(
    drafters=tuple(drafters),
    tasks=tuple(tasks),
    temperatures=tuple(temperatures),
    batch_sizes=tuple(batch_sizes),
    num_prompts=num_prompts,
    max_new_tokens=max_new_tokens,
    repeats=repeats,
    seed=seed,
    schedule=schedule,
    resume=resume,
  )
  run = _bench.bench
  return run(model, options, folder, command='ss.compare', progress=progress)


@says_where
def check(
  model: runtime.Model,
  *,
  drafters: Sequence[str] | None = None,
  task: str = 'e2e_sample/test',
  num_prompts: int = 16,
  max_new_tokens: int = 64,
  temperatures: Sequence[float] = (0.0, 0.8),
  batch: int = 4,
  seed: int = 0,
  laws: bool = True,
) -> Iterator[_check.Property]:
  """Is decoding lossless here? What `specstream check` measures, as it comes.

  Args:
    model: from `load`, in float32.
    drafters: names with settings; None takes those that need no weights of
      their own.
    task: name with an optional split and folder: 'name/split@DIR'.
    num_prompts: evenly spread; 0 takes all.
    max_new_tokens: per prompt.
    temperatures: at which tokens must be equal.
    batch: rows per call.
    seed: of the noise and of the enumerated laws.
    laws: enumerate the laws of the verifiers.

  Raises:
    ValueError: unknown drafter or task, or the model is not in float32.
  """
  options = _check.Options(
    drafters=None if drafters is None else tuple(drafters),
    task=task,
    num_prompts=num_prompts,
    max_new_tokens=max_new_tokens,
    temperatures=tuple(temperatures),
    batch=batch,
    seed=seed,
    laws=laws,
  )
  return _check.check(model, options)


@checks.names_options
def export(
  base: str,
  adapter: str | None,
  output_dir: str,
  *,
  format: str = 'huggingface',
  dtype: str = 'float32',
  max_shard_bytes: int = 5 * 10**9,
  overwrite: bool = False,
) -> _export.Exported:
  """Writes folders that other engines load; see docs/EXPORT.md.

  Args:
    base: model name, folder, hub id or GGUF file.
    adapter: folder of an adapter or a PEFT LoRA, or one that ships; None writes
      the base itself.
    output_dir: made if it is not there.
    format: 'huggingface', LoRA merged, or 'peft', LoRA alone.
    dtype: of weights on disk.
    max_shard_bytes: a file holds at most so much, one tensor at least.
    overwrite: take the place of an earlier export.

  Raises:
    ValueError: the folder holds something else, or the adapter has nothing of
      what is asked for.
  """
  options = _export.Options(
    format=format,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
    overwrite=overwrite,
  )
  return _export.export(base, adapter, output_dir, options)
