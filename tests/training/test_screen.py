# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself."""

import io

import pytest
import tqdm

from specstream_jax.outputs import progress
from specstream_jax.training import screen


@pytest.mark.parametrize(
  ('means', 'line'),
  [
    (
      {
        'loss/main': 0.5119,
        'loss/stream_1': 3.0,
        'top1/main': 0.984,
        'top1/stream_1': 0.23,
        'top1/stream_2': 0.2,
        'top1/pruning': 0.7,
        'tokens_per_second': 812.4,
      },
      'loss 0.512, top-1 0.98 | 0.23 0.20, 812 tokens/s',
    ),
    (
      {'top1/coupled_1': 0.4, 'top1/main': 0.7, 'top1/stream_1': 0.15},
      'top-1 0.70 | 0.40',
    ),
    ({'loss/main': 1.0, 'top1/main': 0.5}, 'loss 1.000, top-1 0.50'),
    (
      {'loss/total': 2.0, 'top1/stream_1': 0.5, 'tokens_per_call': 1.816},
      'loss 2.000, top-1 0.50, 1.82 tokens per call',
    ),
    (
      {'tokens_per_call': 2.0, 'predicted_speedup': 1.25},
      '2.00 tokens per call, predicted speed-up 1.25',
    ),
  ],
)
def test_line_has_what_there_is(means, line):
  assert screen.line(means) == line


@pytest.mark.parametrize('shown', [True, False])
def test_lines_appear_where_the_bar_does(shown, capsys):
  with tqdm.tqdm(disable=not shown, file=io.StringIO()) as bar:
    progress.say(bar, 'evaluation at step 3')
  assert capsys.readouterr().err == 'evaluation at step 3\n' * shown
