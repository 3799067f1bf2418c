# SPDX-License-Identifier: Apache-2.0
"""The time of a call is the larger of reading and computing, layer by layer."""

import pytest

from specstream_jax.streaming import cost, gauge


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


@pytest.mark.parametrize(
  ('seen', 'calls', 'want'),
  [
    ([(0, 3.0), (1, 5.0)] * 2, 2, cost.Compute(3, 5, 2)),
    ([(0, 3.0), (1, 5.0), (1, 1.0)] * 2, 2, cost.Compute(3, 5, 1, 1)),
    # The last call needs no streams any more.
    ([(0, 3.0), (1, 5.0), (1, 2.0), (0, 3.0), (1, 5.0)], 2, (3, 5, 1, 2)),
  ],
)
def test_what_calls_took_by_group_of_layers(seen, calls, want):
  assert gauge.split(seen, 1, 20.0, calls) == want


def test_a_second_pass_through_all_layers_is_told_from_the_first():
  seen = [(0, 4.0), (1, 4.0), (0, 1.0), (1, 1.0)] * 3
  assert gauge.split(seen, 0, 36.0, 3) == cost.Compute(0, 4, 2, 1)
