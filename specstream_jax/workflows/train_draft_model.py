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

from specstream_jax import config, memory, partitioning, processes
from specstream_jax.checkpoints import (
  eos,
  files,
  fitted,
  huggingface,
  loading,
  weights as weights_lib,
)
from specstream_jax.config import checks, model as config_model
from specstream_jax.modeling import build, lora, params as params_lib
from specstream_jax.training import distillation, loop, screen
from specstream_jax.workflows import train_run

FOLDER = 'draft_model'
PROVENANCE = 'provenance.json'


@dataclasses.dataclass(frozen=True)
class DraftRecipe(train_run.BaseRecipe):
  """Every setting of a run; each field can be set from gin."""

  num_layers: int = 4

  def __post_init__(self):
    super().__post_init__()
    checks.count('num_layers', self.num_layers, 1, config_model.MAX_LAYERS)


def train(
  base: str,
  data_dir: str,
  output_dir: str,
  *,
  adapter: str | None = None,
  eval_data_dir: str | None = None,
  recipe: DraftRecipe | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  export: str = 'best',
  progress: bool = True,
) -> train_run.Trained:
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
  recipe = recipe or DraftRecipe()
  loaded = _load_target(base, adapter, dtype)
  job = train_run.Job(
    loaded,
    recipe,
    data_dir,
    eval_data_dir,
    output_dir,
    FOLDER,
    {'adapter': adapter},
    is_best=export == 'best',
    counts_tokens=True,
    progress=progress,
  )
  return train_run.run(
    job,
    lambda batches: _setup(loaded, recipe, remat),
    lambda done: _export(job, done),
  )


def _export(job, done) -> None:
  """The draft model, and where it comes from."""
  export_draft_model(
    job.folder,
    job.loaded,
    distillation.sizes(job.loaded.config, job.recipe.num_layers),
    done.state.adapter,
    {
      'target': job.loaded.source,
      'target_adapter': job.facts['adapter'],
      'target_fingerprint': job.loaded.fingerprint,
      'tokens_seen': done.place['num_tokens'],
      **train_run.provenance(job, done.state),
    },
  )


def describe(base: str, recipe: DraftRecipe, *, dtype: str = 'float32') -> str:
  """A few lines on what a run would be; nothing is loaded but sizes."""
  cfg = loading.load_config(base, dtype=dtype)
  draft_cfg = distillation.sizes(cfg, recipe.num_layers)
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


def _setup(loaded, recipe, remat) -> loop.TrainSetup:
  """Structure and weights of target and draft model."""
  draft_cfg, draft = distillation.truncate(
    loaded.config, loaded.params, recipe.num_layers
  )
  part = partitioning.default()
  memory.check(
    f'a draft model of {recipe.num_layers} layers, its gradient and moments',
    12 * weights_lib.count(draft_cfg),  # its weights are there by now
    'fewer --draft_model_layers need less',
    num_devices=part.mesh.size,
  )
  return loop.TrainSetup(
    built=build.build(loaded.config),
    base=params_lib.unflatten(part.put(loaded.params)),
    adapter=params_lib.unflatten(draft),
    train=recipe.train,
    objective=recipe.objective,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    remat=remat,
    steps=functools.partial(distillation.steps, draft=build.build(draft_cfg)),
    partitioner=part,
    legend=screen.DRAFT_MODEL,
  )
