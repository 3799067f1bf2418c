# SPDX-License-Identifier: Apache-2.0
"""The Python interface: `import specstream_jax as ss`.

model = ss.load('smollm2-135m-instruct', adapter='e2e_nlg')
for row in ss.generate(model, prompts):
  print(row.text, row.tokens_per_call)
"""

from collections.abc import Iterator, Sequence
from typing import Any

from specstream_jax import api_checks, api_runs, runtime
from specstream_jax.bench import results as _results
from specstream_jax.config import (
  SamplingConfig,
  StreamConfig,
  TreeConfig,
  checks,
)
from specstream_jax.config.drafting import DrafterConfig
from specstream_jax.runtime import Model
from specstream_jax.workflows import (
  evaluate as _evaluate,
  generate as _generate,
  train as _train,
)
from specstream_jax.workflows.adapt import Adapted
from specstream_jax.workflows.export import Exported
from specstream_jax.workflows.generate import Generation
from specstream_jax.workflows.train import Execution, Recipe
from specstream_jax.workflows.train_run import Trained

__all__ = [
  'Adapted',
  'DrafterConfig',
  'Execution',
  'Exported',
  'Generation',
  'Model',
  'Recipe',
  'SamplingConfig',
  'StreamConfig',
  'Trained',
  'TreeConfig',
  'adapt',
  'check',
  'compare',
  'evaluate',
  'export',
  'generate',
  'load',
  'prepare',
  'stream',
  'stream_text',
  'train',
]

adapt = api_runs.adapt
check = api_runs.check
compare = api_runs.compare
export = api_runs.export
load = checks.names_options(runtime.load)
prepare = api_runs.prepare
train = checks.names_options(_train.train)


@api_checks.says_where
def generate(
  model: Model,
  prompts: Sequence[Any],
  *,
  max_new_tokens: int = 64,
  drafter: str | DrafterConfig | None = None,
  tree: TreeConfig | None = None,
  schedule: str | None = None,
  sampling: SamplingConfig | None = None,
  generation_config: str = 'auto',
  stop: str | Sequence[str] = (),
  seed: int = 0,
  chat: bool = False,
) -> list[Generation]:
  """Completes prompts.

  Args:
    model: from `load`.
    prompts: each a text, a list of token ids, or a chat: a list of messages
      {role, content}.
    max_new_tokens: most new tokens per prompt. Decoding is compiled for the next
      of 64, 128, 256, …; another number up to it compiles nothing.
    drafter: a name, a name with settings such as 'streams:depth=2', or all
      settings; 'none' is plain decoding. None takes what `specstream tune`
      found here, else streams if there is an adapter.
    tree: draft tree; None takes the adapter's, or the one that was tuned.
    schedule: 'deferred' or 'parallel'; None takes the one that was tuned, else
      'deferred'.
    sampling: how tokens are drawn; None is greedy, or what `generation_config`
      finds.
    generation_config: 'auto' takes the checkpoint's generation_config.json
      where `sampling` is None, and says so; 'none' does not.
    stop: texts that end a completion as soon as it holds one of them; that of
      a special token, such as '<|im_end|>', ends it like EOS.
    seed: of the noise when temperature > 0.
    chat: a text is what a user says, and goes through the chat template.

  Returns:
    One `Generation` per prompt. A text ends before EOS, or with the first of
    the `stop` texts to be whole; it is None for a model without tokenizer.
  """
  return _generate.generate(
    model,
    prompts,
    _generate.Options(
      max_new_tokens=max_new_tokens,
      drafter=drafter,
      tree=tree,
      schedule=schedule,
      sampling=sampling,
      generation_config=generation_config,
      stop=stop,
      seed=seed,
      chat=chat,
    ),
  )


@api_checks.says_where
def stream(
  model: Model,
  prompts: Sequence[Any],
  *,
  max_new_tokens: int = 64,
  drafter: str | DrafterConfig | None = None,
  tree: TreeConfig | None = None,
  schedule: str | None = None,
  sampling: SamplingConfig | None = None,
  generation_config: str = 'auto',
  stop: str | Sequence[str] = (),
  seed: int = 0,
  chat: bool = False,
) -> Iterator[tuple[int, list[int]]]:
  """Yields (row, newly accepted token ids); arguments as in `generate`."""
  return _generate.stream(
    model,
    prompts,
    _generate.Options(
      max_new_tokens=max_new_tokens,
      drafter=drafter,
      tree=tree,
      schedule=schedule,
      sampling=sampling,
      generation_config=generation_config,
      stop=stop,
      seed=seed,
      chat=chat,
    ),
  )


@api_checks.says_where
def stream_text(
  model: Model,
  prompts: Sequence[Any],
  *,
  max_new_tokens: int = 64,
  drafter: str | DrafterConfig | None = None,
  tree: TreeConfig | None = None,
  schedule: str | None = None,
  sampling: SamplingConfig | None = None,
  generation_config: str = 'auto',
  stop: str | Sequence[str] = (),
  seed: int = 0,
  chat: bool = False,
) -> Iterator[tuple[int, str]]:
  """Yields (row, new text), never half a character; else as `stream`.

  A row's texts together are the text that `generate` gives.
  """
  return _generate.stream_text(
    model,
    prompts,
    _generate.Options(
      max_new_tokens=max_new_tokens,
      drafter=drafter,
      tree=tree,
      schedule=schedule,
      sampling=sampling,
      generation_config=generation_config,
      stop=stop,
      seed=seed,
      chat=chat,
    ),
  )


@api_checks.says_where
def evaluate(
  model: Model,
  *,
  task: str = 'e2e_sample',
  split: str = 'test',
  data_dir: str | None = None,
  num_prompts: int = 64,
  max_new_tokens: int = 64,
  tree: TreeConfig | None = None,
  schedule: str = 'deferred',
  sampling: SamplingConfig = SamplingConfig(),
  batch: int = 1,
  repeats: int = 2,
  seed: int = 0,
  drafter: str | DrafterConfig | None = None,
  shard: int = 0,
  num_shards: int = 1,
  folder: str | None = None,
  progress: bool = True,
) -> _results.RunResult | None:
  """Compares both ways of decoding on a task.

  Args:
    model: from `load`, with an adapter.
    task: name of a task.
    split: its split.
    data_dir: folder of its files; None takes what ships, or downloads.
    num_prompts: the first so many; 0 takes all.
    max_new_tokens: per prompt.
    tree: draft tree; None takes the adapter's.
    schedule: 'deferred' or 'parallel'.
    sampling: how tokens are drawn, on both sides.
    batch: rows per call.
    repeats: timed passes.
    seed: of the noise when temperature > 0.
    drafter: settings of the streams, or text; None takes plain ones.
    shard: number of this run, of `num_shards` that share the batches.
    folder: from which a stopped run goes on, and where shards meet.
    progress: show a progress bar.

  Returns:
    The result, or None while other shards owe batches.
  """
  options = _evaluate.Options(
    task=task,
    split=split,
    data_dir=data_dir,
    num_prompts=num_prompts,
    max_new_tokens=max_new_tokens,
    tree=tree,
    schedule=schedule,
    sampling=sampling,
    batch=batch,
    repeats=repeats,
    seed=seed,
    drafter=drafter,
    shard=shard,
    num_shards=num_shards,
  )
  return _evaluate.evaluate(model, options, folder=folder, progress=progress)
