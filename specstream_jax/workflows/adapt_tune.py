# SPDX-License-Identifier: Apache-2.0
"""Which tree is fastest here, and what the held-out rows say of it.

Both are benchmarks of the rows that were held out, or of the task that they
come from: on `dev` to choose, on `test` to report.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import shutil

from specstream_jax import config, runtime
from specstream_jax.bench import results, summary
from specstream_jax.checkpoints import adapters, draft_vocabulary
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records
from specstream_jax.workflows import adapt_plan, bench, generate, generate_file

# A draft head pays if it is so many times smaller than the model's.
_SMALLER = 4
_BATCH = 8
_NODES = {'cpu': (4, 8, 16), 'accelerator': (8, 16, 32)}


@dataclasses.dataclass(frozen=True)
class Setting:
  """How both benchmarks decode.

  Attributes:
    sources: of `dev` and `test`, as `bench` names tasks.
    max_new_tokens: of an answer.
    repeats: timed passes.
  """

  sources: Mapping[str, str]
  max_new_tokens: int
  repeats: int = 1

  def options(
    self, split: str, drafters: Sequence[str], num_prompts: int
  ) -> bench.Options:
    """What `bench` is asked for."""
    return bench.Options(
      drafters=tuple(drafters),
      tasks=(self.sources[split],),
      num_prompts=num_prompts,
      max_new_tokens=max(self.max_new_tokens, 2),
      repeats=self.repeats,
      schedule=adapt_plan.schedule(),
      num_samples=8,
      resume=True,
    )


def write_vocabulary(adapter: str, data_dir: str) -> None:
  """Puts the tokens of the answers of some records beside an adapter."""
  ids, metadata = draft_vocabulary.build(*records.with_source(data_dir))
  path = os.path.join(adapter, draft_vocabulary.FILE)
  draft_vocabulary.save(path, ids, metadata)


def candidates(model: runtime.Model) -> list[str]:
  """Drafters to choose from, for a model with an adapter and its vocabulary."""
  num_tokens = draft_vocabulary.num_tokens(model.adapter_dir)
  kind = 'accelerator' if adapt_plan.is_accelerated() else 'cpu'
  plain = [f'streams:num_nodes={count}' for count in _NODES[kind]]
  is_smaller = (
    model.tree.branching <= num_tokens <= model.config.vocab_size / _SMALLER
  )
  if not is_smaller:
    return plain
  # Of the two kinds of drafts, the middle size tells which is better.
  return [f'{one},vocabulary=adapter' for one in plain] + plain[1:2]


def tune(
  model: runtime.Model,
  setting: Setting,
  folder: str,
  drafters: Sequence[str],
  *,
  num_prompts: int,
  command: str,
  progress: bool,
) -> results.RunResult:
  """Times the drafters on `dev`; the fastest of them.

  Args:
    model: with the adapter.
    setting: how to decode.
    folder: of the benchmark, which goes on where it was stopped.
    drafters: to choose from.
    num_prompts: of dev.
    command: for its results.
    progress: show a progress bar.
  """
  options = setting.options('dev', drafters, num_prompts)
  runs = bench.bench(model, options, folder, command=command, progress=progress)
  return max(runs, key=lambda run: run.speedup)


def keep_tree(adapter: str, drafter: str) -> None:
  """Makes the tree of a drafter the one that the adapter comes with."""
  flat, cfg = adapters.load_adapter(adapter)
  tree = config_drafting.parse(drafter, cfg.tree).tree
  if tree is not None and tree != cfg.tree:
    adapters.save_adapter(adapter, flat, dataclasses.replace(cfg, tree=tree))


def plain_quality(
  base: str,
  adapter: str | None,
  setting: Setting,
  *,
  dtype: str,
  num_prompts: int,
) -> dict[str, float]:
  """Scores of the base model, or of an adapter, on the test rows, greedy.

  Args:
    base: name or path of it.
    adapter: folder, or None.
    setting: how to decode.
    dtype: of weights and activations.
    num_prompts: the same as of the benchmark.
  """
  asked = bench.make_plan(setting.options('test', ['streams'], num_prompts))
  [(task, examples)] = asked.questions.items()
  model = runtime.load(base, adapter, dtype=dtype)
  options = generate.Options(
    max_new_tokens=max(setting.max_new_tokens, 2),
    drafter='none',
    sampling=config.SamplingConfig(),
  )
  prompts = [example.turns[0] for example in examples]
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  texts: dict[int, str] = {}
  for numbers, made in generate_file.in_batches(
    model, prompts, options, _BATCH, order
  ):
    found = (row.text or '' for row in made)
    texts |= dict(zip(numbers, found, strict=True))
  return summary.score(task, examples, [texts[i] for i in range(len(prompts))])


def test(
  model: runtime.Model,
  setting: Setting,
  folder: str,
  drafter: str,
  *,
  num_prompts: int,
  command: str,
  progress: bool,
) -> None:
  """Measures a drafter on `test`; arguments as of `tune`."""
  options = setting.options('test', [drafter], num_prompts)
  bench.bench(model, options, folder, command=command, progress=progress)


def seconds_per_prompt(run: results.RunResult) -> float:
  """Of both sides together, prompt pass included."""
  calls = (run.autoregressive_calls, run.calls)
  decoding = sum(
    count * run.ms_per_call[side]
    for count, side in zip(calls, ('autoregressive', 'speculative'))
  )
  prefill = run.prefill_ms + run.autoregressive_prefill_ms
  return (decoding / run.num_prompts + prefill) / 1e3


def copy_adapter(source: str, folder: str) -> None:
  """An adapter, weights as they are, in another folder."""
  for name in (adapters.WEIGHTS, adapters.CONFIG):
    shutil.copy(os.path.join(source, name), os.path.join(folder, name))
