# SPDX-License-Identifier: Apache-2.0
"""One training run from records to a folder; what is trained is given to it.

Streams, Medusa heads and draft models bring their setup and their export; what
lies between is here: records that fit, resuming, outputs, the loop, which step
is taken, and the curves.
"""

from collections.abc import Callable
import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np

from specstream_jax import config, memory, partitioning, processes
from specstream_jax.checkpoints import loading
from specstream_jax.config import checks
from specstream_jax.data import batches as batches_lib, mixtures, records
from specstream_jax.decoding import topology
from specstream_jax.outputs import writing
from specstream_jax.report import plots
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  loop,
  metric_files as metrics_lib,
  step as step_lib,
)
from specstream_jax.workflows import record_checks, resume

_BYTES_PER_TOKEN = 5 * 4  # five arrays, see `data.batches`


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
  """Settings that every run has; each field can be set from gin."""

  objective: config.ObjectiveConfig = dataclasses.field(
    default_factory=lambda: config.ObjectiveConfig()
  )
  optimizer: config.OptimizerConfig = dataclasses.field(
    default_factory=lambda: config.OptimizerConfig()
  )
  train: config.TrainConfig = dataclasses.field(
    default_factory=lambda: config.TrainConfig()
  )
  data: config.DataConfig = dataclasses.field(
    default_factory=lambda: config.DataConfig()
  )
  tree: config.TreeConfig = dataclasses.field(
    default_factory=lambda: config.TreeConfig()
  )

  def __post_init__(self):
    checks.option_types(self)

  def to_json(self) -> dict[str, Any]:
    """Nested dict of JSON types."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Trained:
  """Where the result lies, or None if a signal stopped the run before its end.

  Attributes:
    folder: the checkpoint that was chosen, as its users read it.
    step: optimiser steps done.
    shares: of the wall time by part, see `goodput.Goodput`.
    signal: that stopped the run, or 0; calling again resumes it.
  """

  folder: str | None
  step: int
  shares: dict[str, float] = dataclasses.field(
    default_factory=dict, compare=False
  )
  signal: int = 0

  @property
  def adapter_dir(self) -> str | None:
    """The folder, where it is an adapter."""
    return self.folder

  @property
  def interrupted(self) -> bool:
    """Whether a signal stopped the run."""
    return bool(self.signal)


@dataclasses.dataclass(frozen=True)
class Job:
  """What a run is about.

  Attributes:
    loaded: the model.
    recipe: settings.
    data_dir: token records of the training split, or a mixture, see
      `mixtures.parse`.
    eval_data_dir: token records for evaluation; None skips it.
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, curves.svg,
      recipe.json, operative_config.gin and the result.
    result: folder in it.
    facts: what else the run depends on, and is resumed with only.
    is_best: the best evaluation is the result, rather than the last step.
    counts_tokens: the place in the data says how many were seen.
    partitioner: the devices; None takes those of `MeshConfig`.
    progress: show a progress bar.
  """

  loaded: loading.LoadedModel
  recipe: BaseRecipe
  data_dir: str
  eval_data_dir: str | None
  output_dir: str
  result: str
  facts: dict[str, Any]
  is_best: bool = True
  counts_tokens: bool = False
  partitioner: partitioning.Partitioner | None = None
  progress: bool = True

  @property
  def folder(self) -> str:
    """Where the result goes."""
    return os.path.join(self.output_dir, self.result)


class Done(NamedTuple):
  """What is exported.

  Attributes:
    setup: of the loop.
    state: that was chosen, whole in every process.
    place: in the data, behind the last batch of that state.
    open_eval: opens the evaluation records, or None.
  """

  setup: loop.TrainSetup
  state: step_lib.TrainState
  place: dict[str, Any]
  open_eval: Callable[[], Any] | None


def run(
  job: Job,
  setup: Callable[[loop.Batches], loop.TrainSetup],
  export: Callable[[Done], None],
) -> Trained:
  """Trains, resuming if `job.output_dir` holds checkpoints.

  Args:
    job: see `Job`.
    setup: of the loop, from the batches it will see.
    export: writes `job.folder`; called in the main process.

  Raises:
    ValueError: records of another tokenizer, a tree of more tokens than there
      are, or other settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  part = job.partitioner or partitioning.default()
  topology.check_vocabulary(job.recipe.tree, job.loaded.config.vocab_size)
  record_checks.check(job.loaded, job.data_dir, job.eval_data_dir)
  batches = open_training(job.data_dir, job.recipe, part)
  if job.counts_tokens:
    batches = CountedBatches(batches)
  made = setup(batches)
  open_eval = eval_opener(job.eval_data_dir, job.recipe, part)
  known = job.output_dir, job.recipe, job.loaded, job.data_dir
  with resume.run(*known, **job.facts):
    outcome, checkpoints = _run_loop(job, made, batches, open_eval)
    step = int(outcome.state.step)
    if outcome.interrupted:
      return Trained(None, step, outcome.shares, outcome.signal)
    state, place = chosen(checkpoints, outcome.state, job.is_best, part)
    if processes.is_main():
      export(Done(made, state, place, open_eval))
      metrics = os.path.join(job.output_dir, 'metrics.jsonl')
      curves = plots.training_curves(metrics)
      writing.write_text(os.path.join(job.output_dir, 'curves.svg'), curves)
    processes.barrier('result written')
  return Trained(job.folder, step, outcome.shares)


def provenance(job: Job, state: step_lib.TrainState) -> dict[str, Any]:
  """Where a result comes from, JSON types."""
  return {
    'step': int(state.step),
    **mixtures.describe(mixtures.manifests(job.data_dir)),
    'recipe': job.recipe.to_json(),
  }


def _run_loop(job, setup, batches, open_eval):
  """The outcome of the loop, and its checkpoints, which stay open."""
  checkpoints = checkpoints_lib.Checkpoints(
    os.path.join(job.output_dir, 'checkpoints'), setup.train.keep_checkpoints
  )
  writer = metrics_lib.Writer(job.output_dir, enabled=processes.is_main())
  outcome = loop.train(
    setup,
    batches,
    open_eval,
    checkpoints,
    writer,
    progress=job.progress and processes.is_main(),
  )
  writer.close()
  return outcome, checkpoints


def chosen(
  checkpoints: checkpoints_lib.Checkpoints,
  state: step_lib.TrainState,
  is_best: bool,
  part: partitioning.Partitioner,
) -> tuple[step_lib.TrainState, dict[str, Any]]:
  """The state that is exported, whole in every process, and its place."""
  best = checkpoints.best_step() if is_best else None
  number = best or int(state.step)
  state, place = checkpoints.restore(state, number) or (state, {})
  checkpoints.close()
  whole = dataclasses.replace(state, adapter=part.gather(state.adapter))
  return whole, place


class CountedBatches:
  """Batches that count their real tokens; the count is part of the place."""

  def __init__(self, batches: loop.Batches):
    self._batches, self.num_tokens = batches, 0

  def __next__(self) -> dict[str, Any]:
    batch = next(self._batches)
    self.num_tokens += int(np.sum(batch['decoder_segment_ids'] > 0))
    return batch

  def get_state(self) -> dict[str, Any]:
    place = self._batches.get_state()
    return {'place': place, 'num_tokens': self.num_tokens}

  def set_state(self, state: dict[str, Any]) -> None:
    self._batches.set_state(state['place'])
    self.num_tokens = state['num_tokens']


def open_training(
  data_dir: str, recipe: Any, part: partitioning.Partitioner
) -> loop.Batches:
  """This process's rows of the batches of `recipe.train` and `.data`.

  Raises:
    ValueError: a batch does not fit into memory, or see `batches.open_global`.
  """
  _check_batch(recipe.train.batch_size, recipe.data.sequence_length, part)
  feed = part.feed()
  return batches_lib.open_global(
    data_dir,
    batch_size=recipe.train.batch_size,
    blocks=feed.blocks,
    num_blocks=feed.num_blocks,
    num_shares=feed.num_feeds,
    sequence_length=recipe.data.sequence_length,
    packed=recipe.data.packed,
    seed=recipe.train.seed,
  )


def _check_batch(rows, length, part):
  """Raises ValueError if nothing but the tokens of a batch is too much."""
  memory.check(
    f'the tokens of a batch of {rows:,} rows of {length:,}',
    rows * length * _BYTES_PER_TOKEN,
    'a smaller batch size or DataConfig.sequence_length takes less',
    num_devices=part.mesh.size,
  )


def eval_opener(
  data_dir: str | None, recipe: Any, part: partitioning.Partitioner
) -> Callable[[], Any] | None:
  """Opens the evaluation records anew, one example to a row, file order.

  The last batch is filled up with empty rows, which weigh nothing.
  """
  if data_dir is None:
    return None
  longest = records.read_manifest(data_dir)['lengths']['total']['max']
  padded, feed = -(-longest // 32) * 32, part.feed()
  _check_batch(recipe.data.eval_batch_size, padded, part)
  return lambda: batches_lib.open_global(
    data_dir,
    batch_size=recipe.data.eval_batch_size,
    blocks=feed.blocks,
    num_blocks=feed.num_blocks,
    sequence_length=padded,
    packed=False,
    seed=None,
    repeat=False,
  )
