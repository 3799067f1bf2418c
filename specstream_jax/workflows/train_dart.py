# SPDX-License-Identifier: Apache-2.0
"""From a model and token records to a DART layer on disk."""

import dataclasses
import functools

import jax

from specstream_jax import config, memory, partitioning, processes
from specstream_jax.checkpoints import dart as checkpoint
from specstream_jax.config import checks
from specstream_jax.drafters import dart as drafter
from specstream_jax.modeling import (
  build,
  dart as dart_lib,
  params as params_lib,
)
from specstream_jax.training import dart_losses, loop, screen
from specstream_jax.workflows import frozen_target, train_run

FOLDER = 'dart'


@dataclasses.dataclass(frozen=True)
class DartRecipe(train_run.BaseRecipe):
  """Every setting of a run.

  Attributes:
    num_drafts: tokens that the layer predicts, also the depth that the tree
      may have.
    draft_decay: draft j (from 0) weighs draft_decay**j in the loss.
    objective: anchors and chunking; its weights are not used.
    optimizer: rates; that of stream embeddings is not used.
    train: length and cadence.
    data: how records become batches.
    tree: whose tokens per call evaluation measures.
  """

  num_drafts: int = 4
  draft_decay: float = 0.8

  def __post_init__(self):
    super().__post_init__()
    checks.count(
      'num_drafts',
      self.num_drafts,
      checkpoint.MIN_DRAFTS,
      config.MAX_STREAMS,
    )
    checks.at_least('draft_decay', self.draft_decay, 0.0)
    drafter.check_tree(self.tree, self.num_drafts)

  @property
  def weighted(self) -> config.ObjectiveConfig:
    """The objective with a_j = draft_decay**j."""
    return dataclasses.replace(
      self.objective, stream_weight=1.0, stream_decay=self.draft_decay
    )


def train(
  base: str,
  data_dir: str,
  output_dir: str,
  *,
  adapter: str | None = None,
  eval_data_dir: str | None = None,
  recipe: DartRecipe | None = None,
  dtype: str = 'float32',
  save_dtype: str = 'bfloat16',
  export: str = 'best',
  progress: bool = True,
) -> train_run.Trained:
  """Trains a layer, resuming if `output_dir` holds checkpoints.

  Args:
    base: model name, folder, hub id or GGUF file.
    data_dir: token records of the training split (`specstream prepare`).
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, dart/,
      curves.svg, recipe.json and operative_config.gin.
    adapter: whose fine-tuned model the layer is for; None is the base.
    eval_data_dir: token records for evaluation; None skips it.
    recipe: settings; default from gin.
    dtype: of the model's weights and activations; the layer trains in float32.
    save_dtype: of the layer on disk, see `checkpoints.dart.DTYPES`.
    export: 'best' evaluation or 'last' step becomes the layer.
    progress: show a progress bar.

  Raises:
    ValueError: records of another tokenizer, or settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  processes.check_alone('training a DART layer')
  recipe = recipe or DartRecipe()
  checks.one_of('save_dtype', save_dtype, checkpoint.DTYPES)
  target = frozen_target.load(base, adapter, dtype)
  job = train_run.Job(
    target.loaded,
    recipe,
    data_dir,
    eval_data_dir,
    output_dir,
    FOLDER,
    {'adapter': adapter},
    is_best=export == 'best',
    progress=progress,
  )
  return train_run.run(
    job,
    lambda batches: _setup(target.loaded, recipe, data_dir),
    lambda done: _export(job, target, done, save_dtype),
  )


def _setup(loaded, recipe, data_dir) -> loop.TrainSetup:
  """Structure, weights and a fresh layer of a run."""
  dart = dart_lib.build(loaded.config, recipe.num_drafts, dtype='float32')
  part = partitioning.default()
  memory.check(
    'a DART layer, its gradient and moments',
    16 * params_lib.count(dart.shapes),
    'a smaller model needs less',
    num_devices=part.mesh.size,
  )
  key = jax.random.key(recipe.train.seed)
  built = build.build(loaded.config)
  base = params_lib.unflatten(part.put(loaded.params))
  # Of its own iterator: the run's begins at its first batch.
  first = next(train_run.open_training(data_dir, recipe, part))
  measure = functools.partial(dart_losses.mean_state, built)
  mean = part.jit(measure)(base, part.put_batch(first))
  return loop.TrainSetup(
    built=built,
    base=base,
    adapter=dart_lib.init(dart, loaded.params, key, mean),
    train=recipe.train,
    objective=recipe.weighted,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    steps=functools.partial(dart_losses.steps, dart),
    partitioner=part,
    legend=screen.DART,
  )


def _export(job, target, done, dtype) -> None:
  """The layer as dart/."""
  cfg = checkpoint.DartConfig(
    num_drafts=job.recipe.num_drafts,
    provenance=train_run.provenance(job, done.state),
    **target.known_by,
  )
  flat = params_lib.flatten(done.state.adapter)
  checkpoint.save(job.folder, flat, cfg, dtype=dtype)
