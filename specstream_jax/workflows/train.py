# SPDX-License-Identifier: Apache-2.0
"""From a base model and token records to an adapter on disk."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from specstream_jax import (
  config,
  config_checks as checks,
  partitioning,
  processes,
)
from specstream_jax.checkpoints import adapters, eos, loading
from specstream_jax.data import batches as batches_lib, mixtures, records
from specstream_jax.evaluation import plots
from specstream_jax.modeling import (
  blocks,
  build,
  initialize,
  lora as lora_lib,
  params as params_lib,
  stacks,
)
from specstream_jax.outputs import writing
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  loop,
  metrics as metrics_lib,
  step as step_lib,
)
from specstream_jax.workflows import record_checks, resume, train_start


@checks.names_options
@dataclasses.dataclass(frozen=True)
class Recipe:
  """Every setting of a run; each field can be set from gin."""

  stream: config.StreamConfig = dataclasses.field(
    default_factory=lambda: config.StreamConfig()
  )
  lora: config.LoraConfig = dataclasses.field(
    default_factory=lambda: config.LoraConfig()
  )
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
    self.tree.check_fits(self.stream)

  def to_json(self) -> dict[str, Any]:
    """Nested dict of JSON types."""
    return dataclasses.asdict(self)


@checks.names_options
@dataclasses.dataclass(frozen=True)
class Execution:
  """How a run is computed; what it learns does not depend on it.

  Attributes:
    remat: what the backward pass recomputes, a name of `blocks.REMAT`.
    scan_layers: compile one layer and scan over stacked weights.
    profile_steps: first and last step of an XProf trace in profile/.
  """

  remat: str = 'none'
  scan_layers: bool = False
  profile_steps: tuple[int, int] | None = None

  def __post_init__(self):
    checks.option_types(self)
    checks.one_of('remat', self.remat, tuple(blocks.REMAT))


@dataclasses.dataclass(frozen=True)
class Trained:
  """Where the adapter lies, or None if a signal stopped the run before its end.

  Attributes:
    adapter_dir: the best checkpoint as an adapter.
    step: optimiser steps done.
    shares: of the wall time by part, see `goodput.Goodput`.
    signal: that stopped the run, or 0; calling again resumes it.
  """

  adapter_dir: str | None
  step: int
  shares: dict[str, float]
  signal: int = 0

  @property
  def interrupted(self) -> bool:
    """Whether a signal stopped the run."""
    return bool(self.signal)


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
  progress: bool = True,
) -> Trained:
  """Trains an adapter, resuming if `output_dir` holds checkpoints.

  Args:
    base: model name, folder, hub id or GGUF file.
    data_dir: token records of the training split (`specstream prepare`), or
      a mixture, see `mixtures.parse`.
    output_dir: gets checkpoints/, metrics.jsonl, tensorboard/, adapter/,
      curves.svg, recipe.json and operative_config.gin.
    eval_data_dir: token records for evaluation; None skips it.
    init_adapter: adapter to start from; its stream and LoRA settings hold, but
      for `coupling_rank`.
    fold_adapter: fine-tuned adapter whose LoRA is folded into the base that
      lossless streams learn; it goes into their adapter.
    recipe: settings; default from gin.
    dtype: of the base weights and activations.
    execution: how to compute it.
    export: 'best' evaluation or 'last' step becomes the adapter; plain LoRA
      always takes the last, as evaluations rank streams.
    progress: show a progress bar.

  Raises:
    ValueError: records of another tokenizer, or settings that do not fit.
    training.loop.DivergedError: the loss became NaN or infinite.
  """
  part = partitioning.default()
  loaded = loading.load_model(base, dtype=dtype, lazy=not part.is_single)
  start = train_start.start(
    init_adapter, fold_adapter, loaded, recipe or Recipe()
  )
  recipe = start.recipe
  record_checks.check(loaded, data_dir, eval_data_dir)
  batches = open_training(data_dir, recipe, part)
  execution = execution or Execution()
  setup = _setup(loaded, batches, start, part, execution)
  open_eval = eval_opener(eval_data_dir, recipe, part)
  folder, origins = None, {'start': init_adapter, 'fold': fold_adapter}
  with resume.run(output_dir, recipe, loaded, data_dir, **origins):
    outcome, checkpoints = run_loop(
      setup, batches, open_eval, output_dir, progress
    )
    if not outcome.interrupted:
      state = chosen(checkpoints, outcome.state, _ranks(recipe, export), part)
      folder = _export(output_dir, loaded, state, start, data_dir)
  return Trained(
    folder, int(outcome.state.step), outcome.shares, outcome.signal
  )


def run_loop(
  setup: loop.Setup,
  batches: loop.Batches,
  open_eval: Callable[[], Any] | None,
  output_dir: str,
  progress: bool,
) -> tuple[loop.Outcome, checkpoints_lib.Checkpoints]:
  """The outcome of the loop, and its checkpoints, which stay open."""
  checkpoints, writer = open_outputs(output_dir, setup)
  outcome = loop.train(
    setup,
    batches,
    open_eval,
    checkpoints,
    writer,
    progress=progress and processes.is_main(),
  )
  writer.close()
  return outcome, checkpoints


def chosen(
  checkpoints: checkpoints_lib.Checkpoints,
  state: step_lib.TrainState,
  is_best: bool,
  part: partitioning.Partitioner,
) -> step_lib.TrainState:
  """The state that is exported, whole in every process."""
  best = checkpoints.best_step()
  if is_best and best not in (None, int(state.step)):
    state, _ = checkpoints.restore(state, best)
  checkpoints.close()
  return dataclasses.replace(state, adapter=part.gather(state.adapter))


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
  if execution.scan_layers:
    flat = stacks.Stacked(flat, built.stacked_at)
  weights = params_lib.unflatten(part.put(flat))
  return loop.Setup(
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
  )


def open_outputs(
  output_dir: str, recipe: Any
) -> tuple[checkpoints_lib.Checkpoints, metrics_lib.Writer]:
  """Checkpoints and metrics writer of a run."""
  checkpoints = checkpoints_lib.Checkpoints(
    os.path.join(output_dir, 'checkpoints'), recipe.train.keep_checkpoints
  )
  return checkpoints, metrics_lib.Writer(
    output_dir, enabled=processes.is_main()
  )


def open_training(
  data_dir: str, recipe: Any, part: partitioning.Partitioner
) -> loop.Batches:
  """This process's rows of the batches of `recipe.train` and `.data`."""
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


def _export(output_dir, loaded, state, start, data_dir):
  """The state as adapter/, which is returned, and the learning curves."""
  if processes.is_main():
    cfg = _adapter_config(loaded, state, start, data_dir)
    flat = adapters.with_folded(params_lib.flatten(state.adapter), start.folded)
    adapters.save_adapter(os.path.join(output_dir, 'adapter'), flat, cfg)
    curves = plots.training_curves(os.path.join(output_dir, 'metrics.jsonl'))
    writing.write_text(os.path.join(output_dir, 'curves.svg'), curves)
  processes.barrier('adapter written')
  return os.path.join(output_dir, 'adapter')


def _eos_ids(manifests, start) -> list[int]:
  """Where answers of the tuned model end; streams alone change no answer."""
  tuned = [m.get('eos_id') for m in manifests]
  if start.recipe.stream.mode == 'lossless':
    tuned = []
  return [int(i) for i in eos.union(tuned, start.eos_ids) if i is not None]


def _adapter_config(loaded, state, start, data_dir):
  """What the adapter says of itself."""
  recipe = start.recipe
  provenance = {
    'step': int(state.step),
    **mixtures.describe(mixtures.manifests(data_dir)),
    **start.origins,
    'eos_ids': _eos_ids(mixtures.manifests(data_dir), start),
    'recipe': recipe.to_json(),
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
