# SPDX-License-Identifier: Apache-2.0
"""From a model and token records to Medusa heads on disk, with their tree."""

from collections.abc import Callable
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from specstream_jax import arrays, config, memory, partitioning, processes
from specstream_jax.checkpoints import medusa as checkpoint
from specstream_jax.config import bounds, checks
from specstream_jax.drafters import medusa as drafter
from specstream_jax.modeling import (
  build,
  heads as heads_lib,
  params as params_lib,
)
from specstream_jax.training import head_losses, loop, screen
from specstream_jax.workflows import frozen_target, train_run

HEADS = 'medusa'
NUM_RANKS = 10


@dataclasses.dataclass(frozen=True)
class HeadsRecipe(train_run.BaseRecipe):
  """Every setting of a run.

  Attributes:
    num_heads: γ, also the depth that the tree may have.
    head_decay: head j (from 0) weighs head_decay**j in the loss.
    calibration_batches: evaluation batches the static tree is chosen on.
    objective: anchors and chunking; its weights are not used.
    optimizer: rates; that of stream embeddings is not used.
    train: length and cadence.
    data: how records become batches.
    tree: whose tokens per call evaluation measures; the calibrated tree has as
      many nodes.
  """

  num_heads: int = 4
  head_decay: float = 0.8
  calibration_batches: int = 16

  def __post_init__(self):
    super().__post_init__()
    checks.count('num_heads', self.num_heads, 1, config.MAX_STREAMS)
    checks.at_least('head_decay', self.head_decay, 0.0)
    checks.count(
      'calibration_batches', self.calibration_batches, 1, bounds.COUNT
    )
    drafter.check_tree(self.tree, self.num_heads)

  @property
  def weighted(self) -> config.ObjectiveConfig:
    """The objective with a_j = head_decay**j."""
    return dataclasses.replace(
      self.objective, stream_weight=1.0, stream_decay=self.head_decay
    )


def train(
  base: str,
  data_dir: str,
  output_dir: str,
  *,
  adapter: str | None = None,
  eval_data_dir: str | None = None,
  recipe: HeadsRecipe | None = None,
  dtype: str = 'float32',
  save_dtype: str = 'bfloat16',
  export: str = 'best',
  progress: bool = True,
) -> train_run.Trained:
  """Trains heads, resuming if `output_dir` holds checkpoints.

  Args:
    base: model name, folder, hub id or GGUF file.
    data_dir: token records of the training split (`specstream prepare`).
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, medusa/,
      curves.svg, recipe.json and operative_config.gin.
    adapter: whose fine-tuned model the heads are for; None is the base.
    eval_data_dir: token records for evaluation and for choosing the tree; None
      skips both.
    recipe: settings; default from gin.
    dtype: of the model's weights and activations; heads train in float32.
    save_dtype: of the heads on disk, see `checkpoints.medusa.DTYPES`.
    export: 'best' evaluation or 'last' step becomes the heads.
    progress: show a progress bar.

  Raises:
    ValueError: records of another tokenizer, or settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  processes.check_alone('training Medusa heads')
  recipe = recipe or HeadsRecipe()
  checks.one_of('save_dtype', save_dtype, checkpoint.DTYPES)
  loaded, cfg = _main_model(base, adapter, dtype, recipe.num_heads)
  job = train_run.Job(
    loaded,
    recipe,
    data_dir,
    eval_data_dir,
    output_dir,
    HEADS,
    {'adapter': adapter},
    is_best=export == 'best',
    progress=progress,
  )
  heads = heads_lib.build(loaded.config, recipe.num_heads)
  return train_run.run(
    job,
    lambda batches: _setup(loaded, recipe, heads),
    lambda done: _export(job, cfg, heads, done, save_dtype),
  )


def _main_model(base, adapter, dtype, num_heads):
  """The model that the heads read, in `dtype`, and what says which it is."""
  target = frozen_target.load(base, adapter, dtype)
  cfg = checkpoint.MedusaConfig(num_heads=num_heads, **target.known_by)
  return target.loaded, cfg


def _setup(loaded, recipe, heads) -> loop.TrainSetup:
  """Structure, weights and fresh heads of a run."""
  built = build.build(loaded.config)
  part = partitioning.default()
  memory.check(
    f'{recipe.num_heads} heads, their gradient and moments',
    16 * heads_lib.count(loaded.config, recipe.num_heads),
    'fewer --num_heads need less',
    num_devices=part.mesh.size,
  )
  base = params_lib.unflatten(part.put(loaded.params))
  return loop.TrainSetup(
    built=built,
    base=base,
    adapter=heads_lib.init(heads, base),
    train=recipe.train,
    objective=recipe.weighted,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    steps=functools.partial(head_losses.steps, heads),
    partitioner=part,
    legend=screen.HEADS,
  )


def _calibrated(cfg, setup, heads, weights, open_eval, recipe):
  """The config with the tree that suits these weights."""
  accuracies = calibrate(setup, heads, weights, open_eval, recipe)
  cfg.provenance['rank_accuracies'] = accuracies.round(5).tolist()
  choices = drafter.best_choices(accuracies, recipe.tree.size)
  return dataclasses.replace(cfg, choices=choices)


def calibrate(
  setup: loop.TrainSetup,
  heads: heads_lib.Built,
  weights: arrays.Params,
  open_eval: Callable[[], Any],
  recipe: HeadsRecipe,
) -> Any:
  """How often each head's token of each rank is the true one, [J, K].

  Paper: against what the model itself generates (section 2.3.3). Here: against
  the answers of the records, which the model was tuned to.
  """
  num_ranks = min(NUM_RANKS, setup.built.cfg.vocab_size)
  count = jax.jit(
    functools.partial(
      head_losses.rank_counts,
      built=setup.built,
      heads=heads,
      cfg=setup.objective,
      num_ranks=num_ranks,
    )
  )
  hits = totals = np.zeros(())
  for batch in itertools.islice(open_eval(), recipe.calibration_batches):
    more, seen = jax.device_get(count(weights, setup.base, batch)['accuracy'])
    hits, totals = hits + more, totals + seen
  return hits / totals.clip(min=1)


def _export(job, cfg, heads, done, dtype) -> None:
  """The heads as medusa/, with a calibrated tree if there are records for it."""
  weights = done.state.adapter
  cfg.provenance.update(train_run.provenance(job, done.state))
  if done.open_eval:
    cfg = _calibrated(
      cfg, done.setup, heads, weights, done.open_eval, job.recipe
    )
  flat = params_lib.flatten(weights)
  checkpoint.save_heads(job.folder, flat, cfg, dtype=dtype)
