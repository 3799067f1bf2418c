# SPDX-License-Identifier: Apache-2.0
"""From a target and token records to a draft model on disk.

The target is a base model, with the adapter folded in if it has one. Records
are those of training; distilling on the target's own text is better still:
generate it, write JSONL rows {prompt, completion} and run `specstream prepare
--task=jsonl` on them.
"""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from specstream_jax import (
  config,
  config_checks as checks,
  memory,
  partitioning,
  processes,
)
from specstream_jax.checkpoints import (
  eos,
  files,
  fitted,
  huggingface,
  loading,
  weights as weights_lib,
)
from specstream_jax.data import mixtures
from specstream_jax.evaluation import plots
from specstream_jax.modeling import build, lora, params as params_lib
from specstream_jax.outputs import writing
from specstream_jax.training import distill, loop, screen
from specstream_jax.workflows import (
  record_checks,
  resume,
  train as train_workflow,
)

FOLDER = 'draft_model'
PROVENANCE = 'provenance.json'


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Every setting of a run; each field can be set from gin."""

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
  num_layers: int = 4

  def __post_init__(self):
    checks.option_types(self)
    checks.at_least('num_layers', self.num_layers, 1)

  def to_json(self) -> dict[str, Any]:
    """Nested dict of JSON types."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Distilled:
  """Where the draft model lies, or None if a signal stopped the run.

  Attributes:
    folder: a plain Hugging Face checkpoint; `draft_model:path=…` takes it.
    step: optimiser steps done.
    signal: that stopped the run, or 0; calling again resumes it.
  """

  folder: str | None
  step: int
  signal: int = 0

  @property
  def interrupted(self) -> bool:
    """Whether a signal stopped the run."""
    return bool(self.signal)


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


def distill_drafter(
  base: str,
  data_dir: str,
  output_dir: str,
  *,
  adapter: str | None = None,
  eval_data_dir: str | None = None,
  recipe: Recipe | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  export: str = 'best',
  progress: bool = True,
) -> Distilled:
  """Distils a draft model, resuming if `output_dir` holds checkpoints.

  Args:
    base: model name, folder, hub id or GGUF file of the target.
    data_dir: token records of the training split (`specstream prepare`).
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, draft_model/,
      curves.svg, recipe.json and operative_config.gin.
    adapter: folder or name of the target's adapter; None is the bare base.
    eval_data_dir: token records for evaluation; None skips it.
    recipe: settings; default from gin.
    dtype: of the target; the draft model trains in float32.
    remat: of the draft model's layers, a name of `blocks.REMAT`.
    export: 'best' evaluation or 'last' step becomes the draft model.
    progress: show a progress bar.

  Raises:
    ValueError: records of another tokenizer, or settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  processes.check_alone('distilling a draft model')
  recipe = recipe or Recipe()
  loaded = _load_target(base, adapter, dtype)
  record_checks.check(loaded, data_dir, eval_data_dir)
  draft_cfg, setup = _setup(loaded, recipe, remat)
  part = setup.partitioner
  batches = CountedBatches(train_workflow.open_training(data_dir, recipe, part))
  open_eval = train_workflow.eval_opener(eval_data_dir, recipe, part)
  with resume.run(output_dir, recipe, loaded, data_dir, adapter=adapter):
    outcome, checkpoints = train_workflow.run_loop(
      setup, batches, open_eval, output_dir, progress
    )
    step = int(outcome.state.step)
    if outcome.interrupted:
      return Distilled(None, step, outcome.signal)
    wanted = checkpoints.best_step() if export == 'best' else step
    state, place = checkpoints.restore(outcome.state, wanted or step)
    checkpoints.close()
    provenance = _provenance(loaded, adapter, state, place, data_dir, recipe)
    folder = os.path.join(output_dir, FOLDER)
    export_draft_model(folder, loaded, draft_cfg, state.adapter, provenance)
    _write_curves(output_dir)
  return Distilled(folder, step)


def _provenance(loaded, adapter, state, place, data_dir, recipe):
  """Where the draft model comes from."""
  return {
    'target': loaded.source,
    'target_adapter': adapter,
    'target_fingerprint': loaded.fingerprint,
    'step': int(state.step),
    'tokens_seen': place['num_tokens'],
    **mixtures.describe(mixtures.manifests(data_dir)),
    'recipe': recipe.to_json(),
  }


def _write_curves(output_dir):
  curves = plots.training_curves(os.path.join(output_dir, 'metrics.jsonl'))
  writing.write_text(os.path.join(output_dir, 'curves.svg'), curves)


def describe(base: str, recipe: Recipe, *, dtype: str = 'float32') -> str:
  """A few lines on what a run would be; nothing is loaded but sizes."""
  cfg = loading.load_config(base, dtype=dtype)
  draft_cfg = dataclasses.replace(cfg, num_layers=recipe.num_layers)
  counts = weights_lib.count(cfg), weights_lib.count(draft_cfg)
  tokens = recipe.train.batch_size * recipe.data.sequence_length
  size = 2 if dtype == 'bfloat16' else 4
  return (
    f'target: {counts[0]:,} parameters, {size * counts[0] / 1e6:.1f} MB\n'
    f'draft model: {counts[1]:,} parameters in {recipe.num_layers} layers; '
    f'weights, gradient, 2 moments: {16 * counts[1] / 1e6:.1f} MB\n'
    f'step: {tokens:,} tokens on {partitioning.default().mesh.size} device(s), '
    f'{recipe.train.num_steps:,} steps'
  )


def export_draft_model(
  folder: str | os.PathLike,
  loaded: loading.LoadedModel,
  cfg: config.ModelConfig,
  weights: Any,
  provenance: dict[str, Any],
) -> None:
  """Writes a Hugging Face checkpoint with the target's tokenizer.

  Args:
    folder: made if it is not there.
    loaded: the target.
    cfg: of the draft model.
    weights: nested, of the draft model.
    provenance: how it was trained, JSON types; goes to provenance.json.
  """
  tokenizer = loaded.tokenizer
  if isinstance(tokenizer, loading.MissingTokenizer):
    tokenizer = None
  flat = jax.device_get(params_lib.flatten(weights))
  extras = huggingface.Extras(tokenizer, loaded.chat_template, loaded.eos_ids)
  huggingface.export(folder, cfg, flat, extras)
  files.write_all(
    os.fspath(folder),
    {PROVENANCE: functools.partial(files.write_json, value=provenance)},
  )


def read_provenance(folder: str | os.PathLike) -> dict[str, Any]:
  """What `export_draft_model` wrote."""
  return files.read_json(os.path.join(folder, PROVENANCE))


def _load_target(base, adapter, dtype) -> loading.LoadedModel:
  """The weights that decode: LoRA folded in, unless it acts on streams alone."""
  loaded = loading.load_model(base, dtype=dtype)
  if not adapter:
    return loaded
  found = fitted.read(adapter, loaded)
  merged = lora.merge(loaded.params, found.folded, found.folded_lora)[0]
  ends = eos.union(loaded.eos_ids, found.eos_ids)
  return dataclasses.replace(loaded, params=merged, eos_ids=ends)


def _setup(loaded, recipe, remat) -> tuple[config.ModelConfig, loop.Setup]:
  """Structure and weights of target and draft model."""
  draft_cfg, draft = distill.truncate(
    loaded.config, loaded.params, recipe.num_layers
  )
  part = partitioning.default()
  memory.check(
    f'a draft model of {recipe.num_layers} layers, its gradient and moments',
    12 * weights_lib.count(draft_cfg),  # its weights are there by now
    'fewer --draft_model_layers need less',
    num_devices=part.mesh.size,
  )
  setup = loop.Setup(
    built=build.build(loaded.config),
    base=params_lib.unflatten(part.put(loaded.params)),
    adapter=params_lib.unflatten(draft),
    train=recipe.train,
    objective=recipe.objective,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    remat=remat,
    steps=functools.partial(distill.steps, draft=build.build(draft_cfg)),
    partitioner=part,
    legend=screen.DRAFT_MODEL,
  )
  return draft_cfg, setup
