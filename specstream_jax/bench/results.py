# SPDX-License-Identifier: Apache-2.0
"""What a benchmark run came to, and results.json.

Paper, tables 1 and 2: speed-up, call reduction, quality. Three ratios belong
together: speedup = call_reduction_ratio / step_cost_ratio, up to what happens
between calls. The schema is results_schema.json.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
from importlib import metadata
import json
import os
import platform
from typing import Any

import specstream_jax
from specstream_jax.bench import machine, schema
from specstream_jax.checkpoints import files
from specstream_jax.outputs import writing

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class RunResult:
  """One drafter on one task, against our own autoregressive loop.

  "Sides" are the keys `autoregressive` and `speculative`. The prompt pass is
  in none of the counts, times and ratios, but for the two that name it.

  Attributes:
    task: name and split.
    drafter: what proposed the trees.
    tree: the tree configuration.
    schedule: `parallel` or `deferred`.
    dtype: of weights and activations.
    batch: rows per call.
    num_prompts: prompts decoded.
    new_tokens: tokens emitted by the speculative side.
    calls: model calls of the speculative side, summed over prompts.
    autoregressive_calls: the same of the autoregressive side.
    call_reduction_ratio: CR = autoregressive_calls / calls.
    step_cost_ratio: ms per speculative call / ms per autoregressive call.
    speedup: measured wall clock ratio, autoregressive / speculative.
    speedup_ci95: its bootstrap interval, [low, high].
    equal_fraction: share of prompts with the same tokens on both sides.
    tokens_per_second: sides.
    tokens_per_call_macro: mean over prompts of each prompt's mean.
    tokens_per_call_micro: mean over all calls of accept length + 1.
    accept_length_histogram: calls with accept length 0, 1, …
    per_depth_acceptance: share of calls that accept at least 1, 2, … drafts.
    quality: metric -> score, per side.
    prefill_ms: prompt pass of one batch, in milliseconds.
    compile_seconds: sides.
    ms_per_call: sides, medians over batches.
    device: kind of accelerator, as JAX names it.
    versions: of python, jax, jaxlib, flax, specstream_jax.
    repeats: timed passes.
    lossy: whether the acceptance rule changes the law of the output.
    samples: {prompt, text, references, accept_lengths, tokens}; tokens are
      strings, and the first one comes from the prompt pass.
    call_reduction_ci95: bootstrap interval of CR over prompts.
    speedup_with_prefill: the same ratio with the prompt passes in it.
    temperature: 0 is greedy.
    sampling: every setting of `SamplingConfig` that is not its default.
    name: short name of the row; empty makes one of drafter and tree.
    settings: everything that defines the drafter.
    extra_parameters: weights beside the model's own (LoRA is folded in).
    by_category: category -> tokens per call, micro.
    by_prompt_length: prompt tokens, at most -> tokens per call, micro.
    prompts_by_length: the same groups -> how many prompts.
    autoregressive_prefill_ms: `prefill_ms` of the other side.
    num_truncated: prompts that lost their beginning.
    synthetic: acceptance was drawn, not earned; times only.
    external: another program's loop.
  """

  task: str
  drafter: str
  tree: dict[str, Any]
  schedule: str
  dtype: str
  batch: int
  num_prompts: int
  new_tokens: int
  calls: int
  autoregressive_calls: int
  call_reduction_ratio: float
  step_cost_ratio: float
  speedup: float
  speedup_ci95: list[float]
  equal_fraction: float
  tokens_per_second: dict[str, float]
  tokens_per_call_macro: float
  tokens_per_call_micro: float
  accept_length_histogram: list[int]
  per_depth_acceptance: list[float]
  quality: dict[str, dict[str, float]]
  prefill_ms: float
  compile_seconds: dict[str, float]
  ms_per_call: dict[str, float]
  device: str
  versions: dict[str, str]
  repeats: int
  lossy: bool
  samples: list[dict[str, Any]]
  call_reduction_ci95: list[float] = dataclasses.field(
    default_factory=lambda: [0.0, 0.0]
  )
  speedup_with_prefill: float = 0.0
  temperature: float = 0.0
  name: str = ''
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  extra_parameters: int = 0
  by_category: dict[str, float] = dataclasses.field(default_factory=dict)
  by_prompt_length: dict[str, float] = dataclasses.field(default_factory=dict)
  prompts_by_length: dict[str, int] = dataclasses.field(default_factory=dict)
  autoregressive_prefill_ms: float = 0.0
  num_truncated: int = 0
  synthetic: bool = False
  external: bool = False
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def predicted_speedup(self) -> float:
    """call_reduction_ratio / step_cost_ratio; 0 without a step cost."""
    cost = self.step_cost_ratio
    return self.call_reduction_ratio / cost if cost else 0.0

  @property
  def consistency(self) -> float:
    """Measured over predicted speed-up; far from 1, a number is wrong.

    With several rows per call it falls below 1, as a batch waits for its
    slowest row while calls are counted per row.
    """
    predicted = self.predicted_speedup
    return self.speedup / predicted if predicted else 0.0

  @property
  def output(self) -> str:
    """What a reader must know of the tokens: 'lossless', 'lossy', …"""
    for name in ('synthetic', 'external', 'lossy'):
      if getattr(self, name):
        return name
    return 'lossless'

  @property
  def marked_label(self) -> str:
    """`label`, and `output` unless that is lossless."""
    mark = '' if self.output == 'lossless' else f' ({self.output})'
    return self.label + mark

  @property
  def label(self) -> str:
    """Short name for tables and plots."""
    if self.name:
      return self.name
    kind = self.tree.get('kind', 'tree')
    size = self.tree.get('size', self.tree.get('num_nodes', ''))
    return f'{self.drafter} {kind} {size}'.strip()


@dataclasses.dataclass(frozen=True)
class Document:
  """Everything in results.json.

  Attributes:
    runs: at least what one command measured.
    command: that command.
    source: what was loaded; `base`, and `adapter` if there was one.
    environment: machine and date, see `environment`.
  """

  runs: tuple[RunResult, ...]
  command: str
  source: dict[str, Any]
  environment: dict[str, Any]


def call_reduction_ratio(autoregressive_calls: int, calls: int) -> float:
  """CR: autoregressive calls / speculative calls, prompt passes excluded."""
  return _ratio('calls', autoregressive_calls, calls)


def step_cost_ratio(speculative_ms: float, autoregressive_ms: float) -> float:
  """Milliseconds per speculative call / per autoregressive call."""
  return _ratio('autoregressive_ms', speculative_ms, autoregressive_ms)


def _ratio(name: str, numerator: float, denominator: float) -> float:
  if not denominator > 0:
    raise ValueError(
      f'{name} is {denominator}, so there is no ratio to report; decode more '
      'than one token per prompt'
    )
  return float(numerator / denominator)


def versions() -> dict[str, str]:
  """Installed versions; a package without metadata is 'unknown'."""
  found = {'python': platform.python_version()}
  for name in ('jax', 'jaxlib', 'flax'):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = 'unknown'
  # Of the code that runs; metadata may be of an older installation.
  return found | {'specstream_jax': specstream_jax.__version__}


def environment() -> dict[str, Any]:
  """Machine and date of a measurement."""
  now = datetime.datetime.now(datetime.UTC)
  return {
    'created': now.isoformat(timespec='seconds'),
    'platform': platform.platform(),
    'machine': platform.machine(),
    'processor': machine.describe(),
    'processors': os.cpu_count(),
  }


def document(
  runs: Iterable[RunResult], *, command: str, source: Mapping[str, Any]
) -> Document:
  """The runs with the environment of this process."""
  return Document(tuple(runs), command, dict(source), environment())


def to_json(doc: Document) -> dict[str, Any]:
  """The document as plain JSON types, arrays as lists."""
  values = {'schema_version': SCHEMA_VERSION, **dataclasses.asdict(doc)}
  return json.loads(json.dumps(values, default=lambda x: x.tolist()))


def from_json(values: Any) -> Document:
  """The document of `to_json` output.

  Raises:
    ValueError: see `validate`.
  """
  validate(values)
  runs = tuple(RunResult(**run) for run in values['runs'])
  names = ('command', 'source', 'environment')
  return Document(runs, *(values[name] for name in names))


def validate(values: Any) -> None:
  """Checks what results.json holds against results_schema.json.

  Raises:
    ValueError: a key is missing, unknown, or of another type or range.
  """
  schema.check(values)


def write(folder: str, doc: Document) -> str:
  """Writes results.json, atomically, and returns its path.

  Raises:
    ValueError: the document does not fit the schema, or the folder cannot be
      written.
  """
  values = to_json(doc)
  validate(values)
  path = os.path.join(folder, 'results.json')
  writing.write_text(
    path, json.dumps(values, indent=2, ensure_ascii=False) + '\n'
  )
  return path


def read(path: str) -> Document:
  """The document in a results.json.

  Raises:
    ValueError: it cannot be read, is not JSON or does not fit the schema.
  """
  try:
    return from_json(files.read_json(path))
  except ValueError as error:
    raise ValueError(
      f'cannot read results from {path}: {error}; give a results.json that '
      '`specstream evaluate` wrote'
    ) from error


def spec_bench_record(
  question_id: int,
  category: str,
  turns: Sequence[str],
  new_tokens: Sequence[int],
  wall_time: Sequence[float],
  accept_lengths: Sequence[int],
) -> dict[str, Any]:
  """One answer in the format of Spec-Bench, one choice.

  Spec-Bench counts the tokens a call emits, so one more than our accept
  length, which leaves the bonus token out.

  Args:
    question_id: of the question.
    category: of the question.
    turns: answer text of each turn.
    new_tokens: per turn.
    wall_time: seconds per turn.
    accept_lengths: of every call of all turns, ours.

  Raises:
    ValueError: the turns differ in number.
  """
  if not len(turns) == len(new_tokens) == len(wall_time):
    raise ValueError(
      f'question {question_id} has {len(turns)} turns, {len(new_tokens)} '
      f'new_tokens and {len(wall_time)} wall_time; give one of each per turn'
    )
  choice = {
    'turns': list(turns),
    'new_tokens': [int(n) for n in new_tokens],
    'wall_time': [float(s) for s in wall_time],
    'accept_lengths': [int(n) + 1 for n in accept_lengths],
  }
  return {
    'question_id': question_id,
    'category': category,
    'choices': [choice],
  }


def write_spec_bench(path: str, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes `spec_bench_record` rows as JSONL, atomically.

  Raises:
    ValueError: the folder cannot be written.
  """
  lines = (json.dumps(record, ensure_ascii=False) for record in records)
  writing.write_text(path, ''.join(line + '\n' for line in lines))
