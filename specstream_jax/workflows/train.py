# SPDX-License-Identifier: Apache-2.0
"""From a base model and token records to an adapter on disk."""

import dataclasses

from absl import logging
import jax
import jax.numpy as jnp

from specstream_jax import config, partitioning
from specstream_jax.checkpoints import adapters, eos, loading
from specstream_jax.config import checks
from specstream_jax.data import mixtures
from specstream_jax.modeling import (
  blocks,
  build,
  initialize,
  lora as lora_lib,
  params as params_lib,
  stacks,
)
from specstream_jax.training import (
  loop,
  step as step_lib,
)
from specstream_jax.workflows import train_run, train_start


@checks.names_options
@dataclasses.dataclass(frozen=True)
class Recipe(train_run.BaseRecipe):
  """Every setting of a run; each field can be set from gin."""

  stream: config.StreamConfig = dataclasses.field(
    default_factory=lambda: config.StreamConfig()
  )
  lora: config.LoraConfig = dataclasses.field(
    default_factory=lambda: config.LoraConfig()
  )

  def __post_init__(self):
    super().__post_init__()
    self.tree.check_fits(self.stream)
    self.objective.check_fits(self.stream.num_streams)


@checks.names_options
@dataclasses.dataclass(frozen=True)
class Execution:
  """How a run is computed; what it learns does not depend on it.

  Attributes:
    remat: what the backward pass recomputes, a name of `blocks.REMAT`.
    scan_layers: compile one layer and scan over stacked weights.
    profile_steps: first and last step of an XProf trace in profile/.
    step_cost: time of a call with drafts in calls without, by which
      evaluations predict the speed-up; 0 leaves it out.
  """

  remat: str = 'none'
  scan_layers: bool = False
  profile_steps: tuple[int, int] | None = None
  step_cost: float = 0.0

  def __post_init__(self):
    checks.option_types(self)
    checks.one_of('remat', self.remat, tuple(blocks.REMAT))


def train(
  base: str,
  data_dir: str,
  output_dir: str,
  *,
  eval_data_dir: str | None = None,
  init_adapter: str | None = None,
  fold_adapter: str | None = None,
  recipe: Recipe | None = None,
  dtype: str = 'float32',
  execution: Execution | None = None,
  export: str = 'best',
  partitioner: partitioning.Partitioner | None = None,
  progress: bool = True,
) -> train_run.Trained:
  """Trains an adapter, resuming if `output_dir` holds checkpoints.

  Args:
    base: model name, folder, hub id or GGUF file.
    data_dir: token records of the training split (`specstream prepare`), or
      a mixture, see `mixtures.parse`.
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, adapter/,
      curves.svg, recipe.json and operative_config.gin.
    eval_data_dir: token records for evaluation; None skips it.
    init_adapter: adapter to start from, and its settings but `coupling_rank`.
    fold_adapter: its LoRA tunes the base of lossless streams, and stays theirs.
    recipe: settings; default from gin.
    dtype: of the base weights and activations.
    execution: how to compute it.
    export: 'best' evaluation or 'last' step is kept; of plain LoRA the last.
    partitioner: the devices to train on; None takes those of `MeshConfig`.
    progress: show a progress bar.

  Raises:
    ValueError: records of another tokenizer, or settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  part = partitioner or partitioning.default()
  loaded = loading.load_model(base, dtype=dtype, lazy=not part.is_single)
  start = train_start.start(
    init_adapter, fold_adapter, loaded, recipe or Recipe()
  )
  job = train_run.Job(
    loaded,
    start.recipe,
    data_dir,
    eval_data_dir,
    output_dir,
    'adapter',
    {'start': init_adapter, 'fold': fold_adapter},
    is_best=_ranks(start.recipe, export),
    partitioner=part,
    progress=progress,
  )
  how = execution or Execution()
  return train_run.run(
    job,
    lambda batches: _setup(loaded, batches, start, part, how),
    lambda done: _export(job, start, done.state),
  )


def _ranks(recipe, export):
  """Whether the best evaluation is exported."""
  return export == 'best' and any(recipe.objective.stream_weights(1))


def _setup(loaded, batches, start, part, execution):
  """Structure, weights and fresh adapter of a run."""
  cfg, recipe = loaded.config, start.recipe
  built = build.build(
    cfg, recipe.stream, recipe.lora, is_stacked=execution.scan_layers
  )
  _check_trainable(built, recipe.optimizer.trainable)
  part.check_fits(cfg.num_heads, cfg.num_kv_heads)
  flat = lora_lib.Folded(loaded.params, start.folded, start.folded_lora)
  if built.stacked_at is not None:
    flat = stacks.Stacked(flat, built.stacked_at)
  weights = params_lib.unflatten(part.put(flat))
  return loop.TrainSetup(
    built=built,
    base=weights,
    adapter=_fresh_adapter(built, weights, batches, start, part),
    train=recipe.train,
    objective=recipe.objective,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    remat=execution.remat,
    profile_steps=execution.profile_steps,
    partitioner=part,
    step_cost=execution.step_cost,
  )


def _check_trainable(built, trainable):
  paths = params_lib.flatten(built.adapter)
  if not any(step_lib.is_trainable(path, trainable) for path in paths):
    raise ValueError(
      f'OptimizerConfig.trainable is {trainable!r}, which matches no adapter '
      f'weight; there are {", ".join(sorted(paths)[:3])}, …, for a coupling '
      'set StreamConfig.coupling_rank'
    )


def _fresh_adapter(built, weights, batches, start, part):
  """Initial adapter; P_j at the scale of the hidden state on one batch.

  Weights that the run starts from take the place of fresh ones.
  """
  place, recipe = batches.get_state(), start.recipe
  rms = step_lib.hidden_rms(built, weights, next(batches), part)
  batches.set_state(place)
  logging.info('hidden RMS at insertion: %.3g', rms)
  fresh = initialize.init_adapter(
    jax.random.key(recipe.train.seed),
    built.cfg,
    recipe.stream,
    recipe.lora,
    hidden_rms=rms,
  )
  flat = params_lib.flatten(fresh) | {
    path: jnp.asarray(leaf) for path, leaf in start.initial.items()
  }
  return params_lib.unflatten(flat)


def _export(job, start, state):
  """The state as adapter/."""
  flat = adapters.with_folded(params_lib.flatten(state.adapter), start.folded)
  adapters.save_adapter(job.folder, flat, _adapter_config(job, start, state))


def _eos_ids(manifests, start) -> list[int]:
  """Where answers of the tuned model end; streams alone change no answer."""
  tuned = [m.get('eos_id') for m in manifests]
  if start.recipe.stream.mode == 'lossless':
    tuned = []
  return [int(i) for i in eos.union(tuned, start.eos_ids) if i is not None]


def _adapter_config(job, start, state):
  """What the adapter says of itself."""
  loaded, recipe = job.loaded, start.recipe
  provenance = train_run.provenance(job, state) | {
    **start.origins,
    'eos_ids': _eos_ids(mixtures.manifests(job.data_dir), start),
  }
  return adapters.AdapterConfig(
    base_model_id=str(loaded.source),
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint,
    stream=recipe.stream,
    lora=recipe.lora,
    tree=recipe.tree,
    provenance=provenance,
    folded_lora=start.folded_lora,
  )
