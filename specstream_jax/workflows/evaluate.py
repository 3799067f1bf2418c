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
  journal as journal_lib,
  journal_lines,
  pair,
  results,
  runners,
  sides as sides_lib,
)
from specstream_jax.config import (
  bounds,
  checks,
  drafting as config_drafting,
)
from specstream_jax.data import registry
from specstream_jax.metrics import scores
from specstream_jax.outputs import locks
from specstream_jax.report import page


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
  spec = registry.get(options.task)
  examples = spec.load_split(options.split, options.data_dir)
  examples = examples[: options.num_prompts or None]
  prompts = [model.encode_prompt(e.inputs) for e in examples]
  for number, prompt in enumerate(prompts, start=1):
    model.check_ids(prompt, f'task {options.task!r}, prompt {number}')
  model.warn_if_long(prompts, options.max_new_tokens)
  drafter = options.drafter or config_drafting.DrafterConfig()
  if isinstance(drafter, str):
    drafter = config_drafting.parse(drafter, options.tree or model.tree)
  if drafter.name != 'streams':
    raise ValueError(
      f"drafter is {drafter.name!r}; evaluate takes 'streams', `specstream "
      'bench` takes any'
    )
  settings = _settings(model, options, drafter)
  options.sampling.check_fits(model.config.vocab_size)
  if folder is None:
    if options.num_shards > 1:
      raise ValueError('shards need a folder in which they meet')
    found = pair.compare(model, prompts, settings, progress=progress)
  else:
    found = _shared(model, prompts, settings, options, folder, progress)
    if found is None:
      return None
  asked = list(zip(prompts, examples, strict=True))
  return _summary(model, options, settings, asked, spec.metrics, found)


def _summary(model, options, settings, asked, names, found):
  """Both sides as a row of results, with the scores of their texts."""
  plain, fast = found
  drafter = settings.drafter
  ignore_eos = options.sampling.ignore_eos
  texts = {
    'autoregressive': _texts(model, asked, plain, ignore_eos=ignore_eos),
    'speculative': _texts(model, asked, fast, ignore_eos=ignore_eos),
  }
  references = [list(example.references) for _, example in asked]
  quality = {
    side: scores.compute(names, references, found)
    for side, found in texts.items()
  }
  samples = _samples(
    model, asked[: settings.num_samples], fast, texts['speculative']
  )
  tree = drafter.tree or settings.tree
  return sides_lib.summarize(
    plain,
    fast,
    max_depth=tree.max_depth,
    task=f'{options.task}/{options.split}',
    drafter=drafter.name,
    name=_name(drafter, tree),
    tree=config.to_json(tree) | {'size': tree.size},
    schedule=options.schedule,
    dtype=model.config.dtype,
    batch=options.batch,
    temperature=options.sampling.temperature,
    sampling=options.sampling.changes(),
    lossy=drafter.is_lossy,
    synthetic=drafter.output == 'synthetic',
    settings=config.to_json(drafter),
    extra_parameters=runners.count_extra(
      model.params(drafter),
      has_coupling=drafter.coupling and tree.kind == 'best_first',
    ),
    quality=quality,
    samples=samples,
  )


def _shared(model, prompts, settings, options, folder, progress):
  """Both sides once all shards' measurements are in the folder, else None."""
  header = _header(model, prompts, options)
  count = options.num_shards
  shard = options.shard, count
  with locks.hold(folder, 'results', *shard):
    journal = journal_lib.Journal(
      _measured(folder, *shard),
      header,
      resume=True,
      problem=journal_lines.measurement,
    )
    pair.measure(
      model, prompts, settings, journal, shard=shard, progress=progress
    )
  entries = {}
  for number in range(count):
    entries |= journal_lib.read(
      _measured(folder, number, count), header, journal_lines.measurement
    )
  if pair.missing(entries, len(prompts), settings):
    return None
  return pair.sides(entries, len(prompts), settings)


def forget(folder: str, options: Options) -> None:
  """Removes the measurements of a run of one shard, once they are written.

  Those of several shards stay, for each of them may be the last.
  """
  if options.num_shards == 1:
    pathlib.Path(_measured(folder, 0, 1)).unlink(missing_ok=True)


def _measured(folder, shard, num_shards):
  name = f'measured.shard-{shard:05d}-of-{num_shards:05d}.jsonl'
  return os.path.join(folder, name)


def _header(model, prompts, options) -> dict[str, Any]:
  """What measurements depend on; shards and resumed runs must agree on it."""
  settings = dataclasses.asdict(options)
  del settings['shard']
  always = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}
  settings['sampling'] = always | options.sampling.changes()
  digest = hashlib.sha256(repr([list(row) for row in prompts]).encode())
  return {
    'source': model.source,
    'sha256': runtime.fingerprint(model),
    'prompts_sha256': digest.hexdigest(),
    'dtype': model.config.dtype,
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


def _settings(model, options, drafter):
  """What `pair.compare` is to do."""
  return pair.Settings(
    tree=options.tree or model.tree,
    decode=config.DecodeConfig(
      max_new_tokens=options.max_new_tokens,
      schedule=options.schedule,
      eos_ids=model.eos_ids,
      prompt_bucket=16,
    ),
    sampling=options.sampling,
    batch=options.batch,
    repeats=options.repeats,
    seed=options.seed,
    drafter=drafter,
  )


def _name(drafter, tree) -> str:
  """Label of the row: drafter, tree, and what helps it."""
  helpers = {'vocabulary': drafter.vocabulary, 'n-grams': drafter.ngram_table}
  used = [name for name, file in helpers.items() if file]
  return ' + '.join([f'{drafter.name} {tree.kind} {tree.size}', *used])


def _texts(model, asked, side, *, ignore_eos: bool) -> list[str]:
  """What each (prompt ids, example) was answered."""
  return [
    model.decode_text(row, prompt, ignore_eos=ignore_eos).strip()
    for row, (prompt, _) in zip(side.tokens, asked, strict=True)
  ]


def _samples(model, asked, side, texts):
  """Texts of some (prompt ids, example), token by token, for the report."""
  return [
    {
      'prompt': example.inputs,
      'text': texts[i],
      'references': list(example.references),
      'accept_lengths': side.accept_lengths[i],
      'tokens': model.token_texts(side.tokens[i], prompt),
    }
    for i, (prompt, example) in enumerate(asked)
  ]
