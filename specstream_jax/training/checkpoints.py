# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints of a training run: asynchronous, best and last kept.

A checkpoint holds the adapter, the optimiser state, the step and the place in
the data, so a resumed run continues the same batches and the same losses.
"""

from collections.abc import Iterator
import contextlib
import os
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from specstream_jax import partitioning, processes
from specstream_jax.outputs import writing
from specstream_jax.training import noise, step as step_lib

BEST_METRIC = 'tokens_per_call'


class SaveError(OSError):
  """A checkpoint could not be written, most often because the disk is full."""


class Checkpoints:
  """Checkpoints under one folder, named by step."""

  def __init__(self, folder: str | os.PathLike, keep: int = 2):
    policies = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(n=keep),
        checkpoint_managers.BestN(
          n=1,
          get_metric_fn=lambda metrics: metrics[BEST_METRIC],
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._folder = os.path.abspath(folder)
    noise.silence()
    with writing.readable(self._folder):
      self._manager = ocp.CheckpointManager(
        self._folder,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policies,
          best_fn=lambda metrics: metrics[BEST_METRIC],
          cleanup_tmp_directories=True,
        ),
      )

  def save(
    self,
    state: step_lib.TrainState,
    data_state: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts writing `state`; a step that is already there is left alone.

    Args:
      state: what to save; arrays are copied off before this returns.
      data_state: JSON-able place in the data after the last batch.
      metrics: evaluation results; with them the step competes for best.

    Raises:
      SaveError: this checkpoint, or the one before it, could not be written.
    """
    number = int(state.step)
    if number in self._manager.all_steps():
      return
    args = ocp.args.Composite(
      adapter=ocp.args.StandardSave(state.adapter),
      optimizer=ocp.args.StandardSave(_leaves(state.opt_state)),
      data=ocp.args.JsonSave(data_state),
    )
    with self._readable_errors():
      self._manager.save(number, args=args, metrics=metrics)

  def restore(
    self, like: step_lib.TrainState, number: int | None = None
  ) -> tuple[step_lib.TrainState, dict[str, Any]] | None:
    """The state at step `number` (default: the last), or None if there is none.

    Args:
      like: a state with the shapes, dtypes and shardings wanted.
      number: step to restore.
    """
    number = self._manager.latest_step() if number is None else number
    if number is None:
      return None
    abstract = lambda tree: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    restored: Any = self._manager.restore(
      number,
      args=ocp.args.Composite(
        adapter=ocp.args.StandardRestore(abstract(like.adapter)),
        optimizer=ocp.args.StandardRestore(abstract(_leaves(like.opt_state))),
        data=ocp.args.JsonRestore(),
      ),
    )
    structure = jax.tree.structure(like.opt_state)
    leaves = [restored.optimizer[name] for name in _leaves(like.opt_state)]
    step = partitioning.put_leaf(np.int32(number), like.step.sharding)
    state = step_lib.TrainState(
      step, restored.adapter, jax.tree.unflatten(structure, leaves)
    )
    return state, restored.data

  def restore_last(
    self, like: step_lib.TrainState
  ) -> tuple[step_lib.TrainState, dict[str, Any]] | None:
    """The newest state that can be read, or None if there is no checkpoint.

    A newer one that cannot be read is set aside as damaged_STEP, with a warning.

    Raises:
      ValueError: there are some, and none can be read.
    """
    errors: dict[int, Exception] = {}
    for number in sorted(self._manager.all_steps(), reverse=True):
      restored = None
      try:
        restored = self.restore(like, number)
      except Exception as error:  # Storage raises what it likes.
        errors[number] = error
      is_whole = all(processes.gather(restored is not None))
      if is_whole:
        self._set_aside(errors, number)
        return restored
      errors.setdefault(number, OSError('another process could not read it'))
    if errors:
      number, error = next(iter(errors.items()))
      raise ValueError(
        f'no checkpoint in {self._folder} can be read; of step {number}: '
        f'{_first_line(error)}. Files may be damaged, or of another version of '
        'this program; give another folder, or start anew without them'
      ) from error
    return None

  def _set_aside(self, errors, number):
    """Renames damaged checkpoints, which would be in the way of new ones."""
    for damaged, error in errors.items():
      target = os.path.join(self._folder, f'damaged_{damaged}')
      logging.warning(
        'checkpoint %d in %s cannot be read (%s) and is now %s; going on from '
        'step %d',
        *(damaged, self._folder, _first_line(error), target, number),
      )
      if processes.is_main():
        shutil.rmtree(target, ignore_errors=True)
        os.rename(os.path.join(self._folder, str(damaged)), target)
    if errors:
      processes.barrier('damaged checkpoints set aside')
      self._manager.reload()

  def best_step(self) -> int | None:
    """Step with the best evaluation, or the last one without evaluations."""
    return self._manager.best_step() or self._manager.latest_step()

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def wait(self) -> None:
    """Blocks until the last save is on disk.

    Raises:
      SaveError: it could not be written.
    """
    with self._readable_errors():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _readable_errors(self) -> Iterator[None]:
    """Turns what the writing libraries raise into one readable line."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      # tensorstore raises ValueError: 'what: where: reason [details]'.
      text = str(error).split(' [', 1)[0].rsplit(': ', 1)[-1]
      reason = writing.reason(error) or text
      last = self._manager.latest_step()
      raise SaveError(
        f'could not write a checkpoint to {self._folder}: {reason}; '
        + (f'step {last} is whole' if last else 'there is no earlier one')
        + '. If the disk is full, free some space; the same command resumes'
      ) from error

  def close(self) -> None:
    self._manager.close()


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [repr(error)])[0][:200]


def _leaves(opt_state: Any) -> dict[str, Any]:
  """Leaves of an optax state by position: stable under renamed classes."""
  return {f'{i:05d}': leaf for i, leaf in enumerate(jax.tree.leaves(opt_state))}
