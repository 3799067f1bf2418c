# SPDX-License-Identifier: Apache-2.0
"""Token ids of prompt and answer -> the arrays of a training batch, in numpy.

B rows, T positions, J streams. `decoder_target_tokens[t]` is the token that
follows `decoder_input_tokens[t]` in the same segment; the loss weight is 1
where that target belongs to the answer (EOS included). Segment 0 is padding.
"""

from collections.abc import Sequence

import numpy as np

DTYPES = {
  'decoder_input_tokens': np.int32,
  'decoder_target_tokens': np.int32,
  'decoder_loss_weights': np.float32,
  'decoder_positions': np.int32,
  'decoder_segment_ids': np.int32,
}
TOKEN_FEATURES = (
  'decoder_input_tokens',
  'decoder_target_tokens',
  'decoder_loss_weights',
)
Arrays = dict[str, np.ndarray]


def num_positions(num_inputs: int, num_targets: int) -> int:
  """Positions an example takes: the last token is a target only."""
  return max(num_inputs + num_targets - 1, 0)


def segment(inputs: np.ndarray, targets: np.ndarray) -> Arrays:
  """The token features of one example, without padding.

  Args:
    inputs: prompt ids, int32 [I].
    targets: answer ids, EOS included, int32 [A].

  Returns:
    `TOKEN_FEATURES`, each [I + A - 1].

  >>> arrays = segment(np.array([5, 6]), np.array([7, 2]))
  >>> {name: array.tolist() for name, array in arrays.items()}
  {'decoder_input_tokens': [5, 6, 7], 'decoder_target_tokens': [6, 7, 2],
   'decoder_loss_weights': [0.0, 1.0, 1.0]}
  """
  tokens = np.concatenate([inputs, targets]).astype(np.int32)
  length = num_positions(len(inputs), len(targets))
  is_answer = np.arange(1, length + 1) >= len(inputs)
  return {
    'decoder_input_tokens': tokens[:length],
    'decoder_target_tokens': tokens[1:],
    'decoder_loss_weights': is_answer.astype(np.float32),
  }


def empty_row(sequence_length: int) -> Arrays:
  """A row of padding, each array [T]."""
  return {
    name: np.zeros(sequence_length, dtype) for name, dtype in DTYPES.items()
  }


def row(segments: Sequence[Arrays], sequence_length: int) -> Arrays:
  """Lays segments one after the other into a padded row.

  Args:
    segments: outputs of `segment`, at most T positions together.
    sequence_length: T.

  Raises:
    ValueError: the segments need more than T positions.
  """
  needed = sum(len(s['decoder_input_tokens']) for s in segments)
  if needed > sequence_length:
    raise ValueError(
      f'examples need {needed} positions but sequence_length is '
      f'{sequence_length}; use sequence_length >= {needed} or shorter examples'
    )
  arrays, start = empty_row(sequence_length), 0
  for index, tokens in enumerate(segments, start=1):
    length = len(tokens['decoder_input_tokens'])
    place = slice(start, start + length)
    for name in TOKEN_FEATURES:
      arrays[name][place] = tokens[name]
    arrays['decoder_positions'][place] = np.arange(length)
    arrays['decoder_segment_ids'][place] = index
    start += length
  return arrays


def first_fit(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
  """Puts each length into the first row with room; returns indices per row.

  >>> first_fit([3, 4, 2], 5)
  [[0, 2], [1]]
  """
  rows, room = [], []
  for index, length in enumerate(lengths):
    fits = next((r for r, free in enumerate(room) if length <= free), None)
    if fits is None:
      rows.append([])
      room.append(sequence_length)
      fits = len(rows) - 1
    rows[fits].append(index)
    room[fits] -= length
  return rows


def convert(
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  *,
  sequence_length: int,
  packed: bool,
) -> Arrays:
  """Converts (inputs ids, targets ids) to one batch, each array [B, T].

  Args:
    examples: int32 [I] and int32 [A] each.
    sequence_length: T.
    packed: several examples to a row (first-fit), or one.
  """
  segments = [segment(*example) for example in examples]
  lengths = [len(s['decoder_input_tokens']) for s in segments]
  rows = [[i] for i in range(len(segments))]
  if packed:
    rows = first_fit(lengths, sequence_length)
  return stack(
    [row([segments[i] for i in r], sequence_length) for r in rows], len(rows)
  )


def stack(rows: Sequence[Arrays], batch_size: int) -> Arrays:
  """Stacks rows to [B, T]; missing rows become padding."""
  padding = [empty_row(len(rows[0]['decoder_positions']))]
  rows = list(rows) + padding * (batch_size - len(rows))
  return {
    name: np.stack([r[name] for r in rows]).astype(dtype)
    for name, dtype in DTYPES.items()
  }


def stream_targets(
  batch: Arrays, num_streams: int
) -> tuple[np.ndarray, np.ndarray]:
  """Targets of the speculative streams (paper, eq. 5).

  Stream j at position t predicts the token at t + 1 + j. Its weight is 0
  where that token is not an answer token of the same segment.

  Args:
    batch: arrays [B, T].
    num_streams: J.

  Returns:
    targets int32 [B, T, J] and weights float32 [B, T, J]; index j - 1 of the
    last axis is stream j.
  """
  tokens = batch['decoder_target_tokens']
  segments = batch['decoder_segment_ids']
  targets = np.zeros((*tokens.shape, num_streams), np.int32)
  weights = np.zeros((*tokens.shape, num_streams), np.float32)
  for j in range(1, min(num_streams, tokens.shape[1] - 1) + 1):
    same = (segments[:, j:] == segments[:, :-j]) & (segments[:, :-j] > 0)
    targets[:, :-j, j - 1] = np.where(same, tokens[:, j:], 0)
    weights[:, :-j, j - 1] = batch['decoder_loss_weights'][:, j:] * same
  return targets, weights
