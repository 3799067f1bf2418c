# SPDX-License-Identifier: Apache-2.0
"""Batches that make one update: the gradient of one batch of all their rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import train_process
import training_batches as tb

from specstream_jax import config
from specstream_jax.modeling import build, heads as heads_lib, params
from specstream_jax.training import (
  accumulation,
  checkpoints as checkpoints_lib,
  distillation,
  head_losses,
  loop,
  metric_files as metrics_lib,
  step as step_lib,
)

# Every term of the loss; all positions are anchors, so that none is drawn.
OBJECTIVE = config.ObjectiveConfig(
  stream_weight=0.5,
  teacher_weight=0.3,
  pruning_anchors=3,
  anchors_per_sequence=tb.LENGTH,
  chunk_size=29,
)
# (prompt, answer) lengths: long and short answers, one token, an empty row.
ROWS = (((2, 2),), ((1, 13),), ((3, 1),), ((2, 6), (1, 4)), (), ((4, 9),))


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def rows():
  return [tb.draw(sizes, seed) for seed, sizes in enumerate(ROWS)]


def streams(setup=None, optimizer=None):
  """(weights, base, (advance, measure, weigh)) of streams with coupling."""
  cfg = dataclasses.replace(tiny.STREAMS, num_streams=2, coupling_rank=2)
  built, base, adapter = tiny.model(train_process.CONFIG, cfg, tb.LORA)
  return adapter, base, loop.stream_steps(fake(built, base, adapter), optimizer)


def medusa_heads(optimizer):
  built, base, _ = tiny.model(train_process.CONFIG, None, None)
  heads = heads_lib.build(train_process.CONFIG, 2)
  weights = params.unflatten(
    {
      path: leaf + 0.1
      for path, leaf in params.flatten(heads_lib.init(heads, base)).items()
    }
  )
  steps = head_losses.steps(heads, fake(built, base, weights), optimizer)
  return weights, base, steps


def draft_model(optimizer):
  built, base, _ = tiny.model(train_process.CONFIG, None, None)
  cfg = dataclasses.replace(train_process.CONFIG, num_layers=1)
  weights = tiny.model(cfg, None, None, seed=5)[1]
  setup = fake(built, base, weights)
  return (
    weights,
    base,
    distillation.steps(setup, optimizer, draft=build.build(cfg)),
  )


def fake(built, base, adapter, objective=OBJECTIVE, **train):
  return loop.TrainSetup(
    built=built,
    base=base,
    adapter=adapter,
    train=dataclasses.replace(train_process.TRAIN, **train),
    objective=objective,
    optimizer=config.OptimizerConfig(),
    tree=config.TreeConfig(kind='chain', depth=2),
  )


def gradient(kind, batches):
  """The change that one update at rate -1 makes, from so many batches."""
  every = len(batches)
  optimizer = accumulation.accumulate(optax.sgd(-1.0), every, every)
  weights, base, (advance, _, weigh) = kind(optimizer=optimizer)
  advance, left = tb.jit(advance), iter(batches)
  state = step_lib.init_state(weights, optimizer)
  for share in accumulation.shares(
    lambda: next(left), tb.jit(weigh), start=0, num_steps=every, every=every
  ):
    state, _ = advance(state, base, share.batch, share.group)
  change = jax.tree.map(jnp.subtract, state.adapter, weights)
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(change)])


@pytest.mark.slow
@pytest.mark.parametrize('kind', [streams, medusa_heads, draft_model])
def test_gradient_of_a_group_is_that_of_the_whole_batch(kind):
  found = rows()
  whole = gradient(kind, [tb.pack(found)])
  parts = gradient(kind, [tb.pack(found[i : i + 2]) for i in (0, 2, 4)])
  norm = np.linalg.norm(whole)
  assert norm > 0.01
  np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * norm)
  # A mean of the means is another gradient.
  alone = [gradient(kind, [tb.pack(found[i : i + 2])]) for i in (0, 2, 4)]
  assert np.linalg.norm(np.mean(alone, axis=0) - whole) > 0.1 * norm


def test_batches_weigh_by_their_targets_without_a_group():
  optimizer = accumulation.accumulate(optax.sgd(-1.0), 2, 9)
  weights = {'a': jnp.zeros(3)}
  state, found = optimizer.init(weights), []
  for value, weight in ((1.0, 1.0), (5.0, 3.0), (2.0, 0.0), (7.0, 2.0)):
    updates, state = optimizer.update(
      {'a': jnp.full(3, value)}, state, weights, weight=weight
    )
    found.append(float(updates['a'][0]))
  assert found == [0.0, (1 * 1 + 5 * 3) / 4, 0.0, 7.0]


def test_the_last_group_may_be_smaller_and_is_not_lost():
  optimizer = step_lib.make_optimizer(
    config.OptimizerConfig(
      learning_rate=0.6,
      embedding_learning_rate=0.6,
      warmup_steps=0,
      accumulation_steps=2,
    ),
    num_steps=5,
  )
  weights = {'a': jnp.ones(3)}
  state, found = optimizer.init(weights), []
  for _ in range(5):
    updates, state = optimizer.update({'a': jnp.ones(3)}, state, weights)
    found.append(-float(updates['a'][0]))
  # Three updates, at a rate that falls to 0 after the third.
  np.testing.assert_allclose(found, [0, 0.6, 0, 0.4, 0.2], rtol=1e-4)


def test_groups_are_read_whole_and_end_with_the_run():
  batches = iter(range(7))
  found = list(
    accumulation.shares(
      lambda: next(batches),
      lambda batch, step: {'main': 10 * batch, 'step': step},
      start=4,
      num_steps=9,
      every=3,
    )
  )
  assert [share.batch for share in found] == [0, 1, 2, 3, 4]
  assert [share.is_last for share in found] == [False, False, True, False, True]
  assert found[0].group == {'main': 30, 'step': 4 + 5 + 6}
  assert found[4].group == {'main': 70, 'step': 7 + 8}
  alone = accumulation.shares(
    lambda: 1, lambda *_: 1 / 0, start=0, num_steps=1, every=1
  )
  assert [share.group for share in alone] == [None]


def run(folder, batches, every, num_steps, **changes):
  """Trains streams, resuming; the last weights and the steps on disk."""
  built, base, adapter = tiny.model(
    train_process.CONFIG, train_process.STREAMS, train_process.LORA
  )
  setup = dataclasses.replace(
    fake(
      built,
      base,
      adapter,
      num_steps=num_steps,
      **{'save_every': 100, 'eval_every': 100, **changes},
    ),
    optimizer=config.OptimizerConfig(
      warmup_steps=1, learning_rate=1e-3, accumulation_steps=every
    ),
  )
  checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints', keep=9)
  writer = metrics_lib.Writer(str(folder))
  outcome = loop.train(
    setup, batches, None, checkpoints, writer, progress=False
  )
  writer.close()
  checkpoints.close()
  saved = sorted(int(p.name) for p in (folder / 'checkpoints').iterdir())
  return outcome, saved


class Rows:
  """Batches of `size` of the rows, over and over; the place is a number."""

  def __init__(self, size, stop=0):
    self.size, self.stop, self.place = size, stop, 0

  def __next__(self):
    found = rows()[:4]
    picked = [found[(self.place + i) % 4] for i in range(self.size)]
    self.place += self.size
    if self.place == self.stop:
      train_process.os.kill(
        train_process.os.getpid(), train_process.signal.SIGTERM
      )
    return tb.pack(picked)

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


@pytest.mark.slow
def test_a_run_saves_between_groups_and_goes_on_to_the_same_weights(tmp_path):
  whole, saved = run(tmp_path / 'whole', Rows(2), every=1, num_steps=3)
  parts, saved = run(
    tmp_path / 'parts', Rows(1), every=2, num_steps=6, save_every=3
  )
  assert saved == [4, 6]  # the ends of the groups in which 3 and 6 lie
  same = functools.partial(np.testing.assert_allclose, rtol=0, atol=3e-5)
  jax.tree.map(same, parts.state.adapter, whole.state.adapter)
  # A signal in the midst of a group waits for its end.
  cut = Rows(1, stop=3)
  first, saved = run(tmp_path / 'cut', cut, every=2, num_steps=6)
  assert first.interrupted and saved == [4] and int(first.state.step) == 4
  rest, _ = run(tmp_path / 'cut', Rows(1), every=2, num_steps=6)
  jax.tree.map(same, rest.state.adapter, parts.state.adapter)
