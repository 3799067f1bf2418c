# SPDX-License-Identifier: Apache-2.0
"""Batch arrays and stream targets against values worked out by hand."""

import data_testing
import numpy as np
import pytest

from specstream_jax.data import features

_EXAMPLES = (
  (np.array([5, 6, 7]), np.array([8, 2])),
  (np.array([9]), np.array([4, 3, 2])),
)


def test_packed_batch_by_hand():
  batch = features.convert(_EXAMPLES, sequence_length=8, packed=True)
  expected = {
    'decoder_input_tokens': [[5, 6, 7, 8, 9, 4, 3, 0]],
    'decoder_target_tokens': [[6, 7, 8, 2, 4, 3, 2, 0]],
    'decoder_loss_weights': [[0, 0, 1, 1, 1, 1, 1, 0]],
    'decoder_positions': [[0, 1, 2, 3, 0, 1, 2, 0]],
    'decoder_segment_ids': [[1, 1, 1, 1, 2, 2, 2, 0]],
  }
  assert set(batch) == set(expected)
  for name, values in expected.items():
    assert batch[name].dtype == features.DTYPES[name]
    np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_stream_targets_by_hand():
  batch = features.convert(_EXAMPLES, sequence_length=8, packed=True)
  targets, weights = features.stream_targets(batch, 2)
  np.testing.assert_array_equal(
    targets[0],
    [[7, 8], [8, 2], [2, 0], [0, 0], [3, 2], [2, 0], [0, 0], [0, 0]],
  )
  np.testing.assert_array_equal(
    weights[0],
    [[0, 1], [1, 1], [1, 0], [0, 0], [1, 1], [1, 0], [0, 0], [0, 0]],
  )


def test_stream_target_never_crosses_a_segment_end():
  examples = data_testing.make_examples(17)
  batch = features.convert(examples, sequence_length=23, packed=True)
  num_streams = 5
  targets, weights = features.stream_targets(batch, num_streams)
  seen = np.zeros_like(weights)
  for b, t in np.ndindex(batch['decoder_segment_ids'].shape):
    segment = batch['decoder_segment_ids'][b, t]
    if segment == 0:
      continue
    position = batch['decoder_positions'][b, t]
    name = batch['decoder_input_tokens'][b, t - position]
    inputs, answer = examples[name - 1000]
    tokens = np.concatenate([inputs, answer])
    for j in range(1, num_streams + 1):
      target = position + 1 + j
      if len(inputs) <= target < len(tokens):
        seen[b, t, j - 1] = 1
        assert targets[b, t, j - 1] == tokens[target]
  np.testing.assert_array_equal(weights, seen)


def test_more_streams_than_positions():
  batch = features.convert(_EXAMPLES[:1], sequence_length=4, packed=False)
  targets, weights = features.stream_targets(batch, 7)
  assert weights.shape == (1, 4, 7)
  # Tokens 5 6 7 | 8 2: stream 3 of the first position is told the last one.
  assert weights[0, :, :3].tolist() == [
    [0, 1, 1],
    [1, 1, 0],
    [1, 0, 0],
    [0] * 3,
  ]
  assert targets[0, 0, :3].tolist() == [7, 8, 2]
  assert weights[..., 3:].sum() == 0


def test_an_example_that_fills_a_row_up_goes_there():
  """The docstring's, with rows that end up full."""
  assert features.first_fit([3, 4, 2], 5) == [[0, 2], [1]]
  assert features.first_fit([5, 5, 1, 4], 5) == [[0], [1], [2, 3]]


def test_positions_of_an_example():
  counts = [(3, 2, 4), (0, 2, 1), (1, 0, 0), (0, 0, 0)]
  for num_inputs, num_targets, expected in counts:
    assert features.num_positions(num_inputs, num_targets) == expected


def test_row_names_positions_needed():
  with pytest.raises(ValueError, match='need 4 positions but sequence_length'):
    features.convert(_EXAMPLES, sequence_length=3, packed=False)
