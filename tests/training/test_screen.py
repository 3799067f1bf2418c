# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself."""

import io

import pytest
import tqdm

from specstream_jax.outputs import progress
from specstream_jax.report import plots
from specstream_jax.training import metric_files, screen


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


def test_the_tenth_stream_comes_after_the_ninth():
  names = [f'top1/stream_{j + 1}' for j in range(16)]
  means = metric_files.Means()
  means.add({name: (j, 1.0) for j, name in enumerate(names)})
  found = means.result()
  assert list(found) == names
  assert screen.line(found) == 'top-1 ' + ' '.join(f'{j}.00' for j in range(16))
  curves = plots._curves([{'step': 1, **found}], 'top1')
  assert list(curves) == [name.partition('/')[2] for name in names]
