# SPDX-License-Identifier: Apache-2.0
"""The terminal table."""

import evaluation_samples as samples
import pytest

from specstream_jax.report import page, table


def test_the_three_ratios_stand_together():
  text = page.format_table([samples.run()])
  head, _, row = text.splitlines()[:3]
  cells = dict(zip(head.split('  '), row.split('  '), strict=False))
  assert cells['task'] == 'e2e_nlg/test'
  for number in ('1.79x', '1.62-1.93', '2.30', '1.25', '1.84', '100.0%'):
    assert number in row.split()
  for name in ('speedup', 'CR', 'step', 'equal'):
    assert name in head.split()
  assert 'rouge1 71.25 -> 71.25' in text
  assert '20.00 -> 25.00 ms/call' in text


def test_lossy_runs_say_so():
  text = table.format_table([samples.run(), samples.run(lossy=True)])
  outputs = [line.split()[-1] for line in text.splitlines()[2:4]]
  assert outputs == ['lossless', 'lossy']


def test_columns_are_aligned_and_fit_a_screen():
  runs = [samples.run(), samples.run(speedup=11.5, task='a')]
  lines = table.format_table(runs).splitlines()
  assert len({line.index('x  ') for line in lines[2:4]}) == 1
  assert max(map(len, lines)) <= 120
  assert len(lines) <= 24


@pytest.mark.parametrize(
  'share, text',
  [(1.0, '100.0%'), (0.99999, '>99.9%'), (0.985, '98.5%'), (0.0, '0.0%')],
)
def test_percent_never_rounds_up_to_all(share, text):
  assert table.percent(share) == text


def test_run_without_scores():
  run = samples.run(quality={'autoregressive': {}, 'speculative': {}})
  assert '->' in table.format_table([run])
  assert table.format_table([]) == 'no runs'
