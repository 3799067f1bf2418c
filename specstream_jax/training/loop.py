# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, checkpoints and metrics out.

It knows neither file formats nor tasks: it takes an iterator of numpy batches
with `get_state` and `set_state`, and a callable that opens evaluation batches.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import math
import os
import signal
import time
from typing import Any, Protocol

import jax
import optax

from specstream_jax import arrays, config, partitioning, processes
from specstream_jax.modeling import blocks, build
from specstream_jax.outputs import progress as progress_lib
from specstream_jax.training import (
  accumulation,
  checkpoints as checkpoints_lib,
  goodput,
  metric_files as metrics_lib,
  screen,
  stalling,
  step as step_lib,
)


class Batches(Protocol):
  """What training reads: numpy batches whose place can be saved."""

  def __next__(self) -> dict[str, Any]: ...
  def get_state(self) -> dict[str, Any]: ...
  def set_state(self, state: dict[str, Any]) -> None: ...


class DivergedError(RuntimeError):
  """The loss became NaN or infinite; names the step."""


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """Everything a run needs, resolved.

  Attributes:
    built: structure of the model with streams and LoRA.
    base: nested base weights on device.
    adapter: nested initial adapter weights.
    train: length and cadence of the run.
    objective: loss weights.
    optimizer: rates.
    tree: draft tree whose tokens per call evaluation measures.
    remat: a name of `blocks.REMAT`.
    profile_steps: first and last step of a trace, or None.
    steps: what is trained and measured, see `stream_steps`.
    partitioner: where weights and batches lie.
    legend: of the progress line.
    step_cost: time of a call with drafts in calls without, by which
      evaluations predict the speed-up; 0 leaves it out.
  """

  built: build.Built
  base: arrays.Params
  adapter: arrays.Params
  train: config.TrainConfig
  objective: config.ObjectiveConfig
  optimizer: config.OptimizerConfig
  tree: config.TreeConfig
  remat: str = 'none'
  profile_steps: tuple[int, int] | None = None
  steps: Callable[..., tuple[Callable, Callable, Callable]] | None = None
  partitioner: partitioning.Partitioner = dataclasses.field(
    default_factory=partitioning.default
  )
  legend: str = screen.STREAMS
  step_cost: float = 0.0

  def __post_init__(self):
    blocks.check_remat(self.remat)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  Attributes:
    state: its last state.
    shares: of its wall time by part, see `goodput.Goodput`.
    signal: that stopped it early, or 0.
  """

  state: step_lib.TrainState
  shares: dict[str, float]
  signal: int = 0

  @property
  def interrupted(self) -> bool:
    """Whether a signal stopped it early."""
    return bool(self.signal)


def train(
  setup: TrainSetup,
  batches: Batches,
  open_eval: Callable[[], Iterator[dict[str, Any]]] | None,
  checkpoints: checkpoints_lib.Checkpoints,
  writer: metrics_lib.Writer,
  *,
  progress: bool = True,
) -> Outcome:
  """Runs to `num_steps`, or until evaluations get no better (`patience`).

  Resumes from the last checkpoint if there is one.

  SIGTERM and SIGINT save and return cleanly after the current step; in a job
  of several processes, after a step that all agree on. A checkpoint that cannot
  be read gives way to the one before it, with a warning; metrics past the step
  that the run goes on from are dropped.

  Raises:
    DivergedError: the loss of a step is not finite; nothing is saved then.
    checkpoints.SaveError: a checkpoint could not be written.
  """
  cfg, clock = setup.train, goodput.Goodput()
  optimizer = step_lib.make_optimizer(setup.optimizer, cfg.num_steps)
  state = _first_state(setup, optimizer, batches, checkpoints)
  start = int(state.step)
  writer.forget_after(start)
  advance, evaluate, weigh = _compiled(setup, optimizer, open_eval, state)
  run = _Run(setup, batches, checkpoints, writer, evaluate, clock, start)
  shares = _shares(setup, batches, weigh, start)
  with _signals() as stop, _bar(setup, start, progress) as bar:
    try:
      for number in range(start + 1, cfg.num_steps + 1):
        with clock.part('data'):
          share = next(shares)
        run.profile.before_step(number)
        with clock.part('compile' if number == start + 1 else 'step'):
          state, metrics = advance(state, setup.base, share.batch, share.group)
          _check_finite(number, metrics)
        run.after_step(number, state, metrics, bar, share.is_last)
        if run.has_stalled:
          break
        if processes.should_stop(number):
          stop.append(signal.SIGTERM)
        # The place in the data is that after the whole group.
        if stop and share.is_last:
          run.save(state)
          break
    finally:
      run.finish()
  if stop:  # The first to exit, by 143, may take the others along.
    processes.barrier('saved')
  is_early = stop and not run.has_stalled and int(state.step) < cfg.num_steps
  return Outcome(state, clock.shares(), stop[0] if is_early else 0)


def _bar(setup, start, is_shown):
  """The bar of a run from step `start` on, under what its numbers mean."""
  bar = progress_lib.bar(
    total=setup.train.num_steps, initial=start, unit='step', show=is_shown
  )
  progress_lib.say(
    bar, f'{setup.legend}\nthe first step {progress_lib.COMPILING}'
  )
  return bar


def _shares(setup, batches, weigh, start):
  """The batches from step `start` on, see `accumulation.shares`."""
  return accumulation.shares(
    lambda: setup.partitioner.put_batch(next(batches)),
    weigh,
    start=start,
    num_steps=setup.train.num_steps,
    every=setup.optimizer.accumulation_steps,
  )


def _first_state(setup, optimizer, batches, checkpoints):
  """That of the last checkpoint, whose place `batches` take; else a new one."""
  state = step_lib.init_state(setup.adapter, optimizer)
  state = step_lib.place_state(state, setup.partitioner)
  restored = checkpoints.restore_last(state)
  if restored:
    state, data_state = restored
    batches.set_state(data_state)
  return state


def stream_steps(
  setup: TrainSetup, optimizer: optax.GradientTransformationExtraArgs
) -> tuple[Callable, Callable, Callable]:
  """Steps of streams and LoRA, not compiled yet.

  Returns:
    (state, base, batch, group) -> (state, metrics), (adapter, base, batch) ->
    metrics with `tokens_per_call`, and (batch, step) -> weights, see
    `step.weigh`.
  """
  advance = functools.partial(
    step_lib.train_step,
    built=setup.built,
    optimizer=optimizer,
    cfg=setup.objective,
    seed=setup.train.seed,
    remat=setup.remat,
    trainable=setup.optimizer.trainable,
  )
  measure = functools.partial(
    step_lib.eval_step, built=setup.built, cfg=setup.objective, tree=setup.tree
  )
  weigh = functools.partial(
    step_lib.weigh,
    cfg=setup.objective,
    num_streams=setup.built.num_streams,
    seed=setup.train.seed,
  )
  return advance, measure, weigh


def _compiled(setup, optimizer, open_eval, state):
  """jitted steps (state donated), the evaluation as one callable."""
  part = setup.partitioner
  advance, measure, weigh = (setup.steps or stream_steps)(setup, optimizer)
  placed = jax.tree.map(lambda leaf: leaf.sharding, state)
  advance = part.jit(
    advance, donate_argnums=0, out_shardings=(placed, part.replicated)
  )
  measure = part.jit(measure, out_shardings=part.replicated)
  weigh = part.jit(weigh, out_shardings=part.replicated)

  def evaluate(adapter: arrays.Params) -> dict[str, float]:
    means = metrics_lib.Means()
    for _, batch in zip(range(setup.train.eval_batches), open_eval()):
      means.add(measure(adapter, setup.base, part.put_batch(batch)))
    found = means.result()
    if setup.step_cost and 'tokens_per_call' in found:
      found['predicted_speedup'] = found['tokens_per_call'] / setup.step_cost
    return found

  return advance, evaluate if open_eval else None, weigh


class _Run:
  """What happens around the steps: logging, evaluation, saving."""

  def __init__(
    self, setup, batches, checkpoints, writer, evaluate, clock, start
  ):
    self._cfg, self._goodput = setup.train, clock
    self.profile = goodput.Profile(writer.profile, setup.profile_steps)
    self._batches, self._checkpoints = batches, checkpoints
    self._writer, self._evaluate = writer, evaluate
    self._means, self._clock = metrics_lib.Means(), time.perf_counter()
    self._since_log, self._updated, self._first = 0, start, start + 1
    self._evaluations = stalling.read(writer.path, start)
    self._has_evaluated = False

  def after_step(self, number, state, metrics, bar, has_updated):
    """Logs, evaluates and saves as often as the settings say."""
    cfg, last = self._cfg, number == self._cfg.num_steps
    self.profile.after_step(number)
    self._means.add(metrics)
    self._since_log += 1
    bar.update()
    if number == self._first:
      progress_lib.forget_so_far(bar)
    if number % cfg.log_every == 0 or last:
      self._log(number, bar)
    if not has_updated:
      return
    # Whether a multiple has come since the last update.
    due = lambda every: number // every > self._updated // every or last
    results = None
    if self._evaluate and due(cfg.eval_every):
      started = time.perf_counter()
      with self._goodput.part('evaluation'):
        results = self._evaluate(state.adapter)
      self._writer.write(number, results, 'eval')
      self._evaluations.append(results)
      progress_lib.say(
        bar, f'evaluation at step {number}: {screen.line(results)}'
      )
      if self.has_stalled:
        progress_lib.say(
          bar, f'no better for {cfg.patience} evaluations: the end'
        )
      spent = time.perf_counter() - started
      self._clock += spent
      if not self._has_evaluated:  # that one compiled
        progress_lib.leave_out(bar, spent)
      self._has_evaluated = True
    if results or due(cfg.save_every):
      self.save(state, results)
    self._updated = number

  @property
  def has_stalled(self):
    """Whether evaluations have stopped getting better."""
    return stalling.has_stalled(self._evaluations, self._cfg.patience)

  def save(self, state, results=None):
    with self._goodput.part('checkpoint'):
      self._checkpoints.save(state, self._batches.get_state(), results)

  def finish(self):
    self.profile.stop()
    with self._goodput.part('checkpoint'):
      self._checkpoints.wait()

  def _log(self, number, bar):
    means, now = self._means.result(), time.perf_counter()
    num_steps, self._since_log = self._since_log, 0
    tokens = means.pop('tokens') * num_steps
    means['tokens_per_second'] = tokens / (now - self._clock)
    means['steps_per_second'] = num_steps / (now - self._clock)
    self._clock = now
    shares = self._goodput.shares()
    means |= {f'time/{name}': share for name, share in shares.items()}
    self._writer.write(number, means, 'train')
    bar.set_postfix_str(screen.line(means))


def _check_finite(number, metrics):
  """Raises DivergedError with the step and what was not finite."""
  total = float(metrics['loss/total'][0])
  norm = float(metrics['gradient_norm'][0])
  if not (math.isfinite(total) and math.isfinite(norm)):
    raise DivergedError(
      f'step {number}: loss is {total}, gradient norm is {norm}; '
      'checkpoints of earlier steps, if any, are whole. Lower the learning '
      'rates, or resume with another seed'
    )


@contextlib.contextmanager
def _signals():
  """A list that is non-empty once SIGTERM or SIGINT has arrived.

  In a job of several processes JAX hears SIGTERM (`processes.should_stop`), and
  Ctrl-C becomes one.
  """
  received: list[int] = []

  def handle(number, _):
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
      return
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt  # The second Ctrl-C does not wait for the step.
    received.append(number)

  caught = [signal.SIGINT]
  if jax.process_count() == 1:
    caught.append(signal.SIGTERM)
  try:
    old = {s: signal.signal(s, handle) for s in caught}
  except ValueError:  # Not the main thread: signals go elsewhere.
    old = {}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
