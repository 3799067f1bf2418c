# SPDX-License-Identifier: Apache-2.0
"""What drafters propose, apart from the loop."""

import jax.numpy as jnp
import numpy as np
import pytest
import table_lm

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import interface
from specstream_jax.drafters import none, streams

ROOT, LEAF_POSITIONS = jnp.array([5, 3]), jnp.array([7, 11])
LOGITS = jnp.asarray(
  np.random.default_rng(0).normal(size=(2, table_lm.NUM_STREAMS, 13))
)


def _propose(drafter, settings):
  context = interface.DraftContext(
    root=ROOT,
    hidden=None,
    stream_state=None,
    cache=None,
    leaf_positions=LEAF_POSITIONS,
    tokens=None,
    num_tokens=None,
    row_keys=sampling.row_keys(0, [2, 6]),
    settings=settings,
    stream_logits=lambda: interface.StreamLogits(LOGITS),
  )
  tree, state = drafter.propose({}, context, drafter.init({}, None, None))
  assert state == ()
  return tree


@pytest.mark.parametrize('temperature', [0.0, 1.3])
def test_streams_draft_with_the_targets_own_noise(temperature):
  """Were the streams right, the best draft is what the target will draw."""
  settings = sampling.row_settings([config.SamplingConfig(temperature)])
  drafter = streams.Streams(
    config.TreeConfig('chain', depth=2),
    3,
    config_drafting.DrafterConfig(noise_weight=1.0),
  )
  tree = _propose(drafter, settings)
  positions = LEAF_POSITIONS[:, None] + jnp.array([[2, 3]])
  drawn = sampling.draw(
    LOGITS[:, :2], sampling.row_keys(0, [2, 6]), positions, settings
  )
  np.testing.assert_array_equal(tree.tokens[:, 1:], drawn)
  np.testing.assert_array_equal(tree.tokens[:, 0], ROOT)


def test_no_draft_is_the_root():
  drafter = none.NoDraft()
  # More nodes, or streams, would be paid for and never read.
  assert (drafter.size, drafter.max_depth) == (1, 0)
  assert drafter.with_streams is False
  tree = _propose(drafter, None)
  assert tree.tokens.tolist() == [[5], [3]]
  assert tree.parents.tolist() == tree.depths.tolist() == [[0], [0]]
