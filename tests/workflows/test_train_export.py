# SPDX-License-Identifier: Apache-2.0
"""Which step becomes the adapter."""

import types

import numpy as np
import pytest

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.training import step as step_lib
from specstream_jax.workflows import train, train_run


class _Checkpoints:
  """Checkpoints whose best step is given; the adapter names its step."""

  def __init__(self, best):
    self.best, self.is_open = best, True

  def best_step(self):
    return self.best

  def restore(self, state, step):
    del state
    return _state(step), {'batch': step}

  def close(self):
    self.is_open = False


def _state(step):
  return step_lib.TrainState(
    adapter={'of_step': np.array(step)}, opt_state=(), step=np.array(step)
  )


@pytest.mark.parametrize(
  ('export', 'stream_weight', 'best', 'step'),
  [
    ('best', 0.25, 3, 3),
    ('best', 0.25, 5, 5),
    ('best', 0.25, None, 5),  # never evaluated
    ('last', 0.25, 3, 5),
    # Plain LoRA: evaluations rank streams, which were not trained.
    ('best', 0.0, 3, 5),
  ],
)
def test_the_step_that_is_exported(export, stream_weight, best, step):
  recipe = ss.Recipe(
    objective=config.ObjectiveConfig(stream_weight=stream_weight)
  )
  checkpoints = _Checkpoints(best)
  part = types.SimpleNamespace(gather=lambda adapter: adapter)
  chosen, place = train_run.chosen(
    checkpoints, _state(5), train._ranks(recipe, export), part
  )
  assert place == {'batch': step}
  assert int(chosen.adapter['of_step']) == int(chosen.step) == step
  assert not checkpoints.is_open
