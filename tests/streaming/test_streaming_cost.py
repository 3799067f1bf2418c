# SPDX-License-Identifier: Apache-2.0
"""The time of a call is the larger of reading and computing, layer by layer."""

import pytest

from specstream_jax.streaming import cost


def layers(resident=(), read=10.0, buffers=2):
  return cost.Layers(2, 1, resident, read, buffers)


@pytest.mark.parametrize(
  ('compute', 'where', 'seconds'),
  [
    (cost.Compute(3, 3, 1), layers((0,)), 14),
    (cost.Compute(3, 3, 1), layers(), 21),
    (cost.Compute(3, 3, 1), layers((0, 1)), 7),
    (cost.Compute(3, 12, 1), layers(), 23),
    (cost.Compute(3, 3, 1), layers(buffers=1), 27),
    (cost.Compute(3, 3, 1, again=2), layers((0,)), 24),
    (cost.Compute(3, 3, 1, again=2), layers((1,)), 16),
  ],
)
def test_seconds_of_a_call(compute, where, seconds):
  assert cost.call_seconds(compute, where) == seconds


def test_where_reading_binds_more_nodes_pay():
  compute = {
    'none': cost.Compute(1, 1, 0),
    'few': cost.Compute(2, 2, 0),
    'many': cost.Compute(9, 9, 0),
  }
  tokens = {'none': 1.0, 'few': 2.5, 'many': 4.0}
  assert cost.best(tokens, compute, layers((0, 1))) == 'few'
  assert cost.best(tokens, compute, layers()) == 'many'
  assert cost.best({'none': 1.0}, compute, layers()) == 'none'
  with pytest.raises(ValueError, match='measure some'):
    cost.best({}, compute, layers())
