# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's Markdown says of groups of prompts."""

import evaluation_samples as samples

from specstream_jax.report import bench_table


def table_after(text, heading):
  """Cells of the table below a line."""
  lines = text.partition(heading + '\n\n')[2].split('\n')
  rows = [line for line in lines[: lines.index('')] if '---' not in line]
  return [[c.strip() for c in row.strip('|').split('|')] for row in rows]


def test_prompt_lengths_are_in_order_and_gaps_are_marked():
  runs = (
    samples.run(name='a', by_prompt_length={'1024': 1.5, '128': 2.25}),
    samples.run(name='b', by_prompt_length={'256': 3.0}),
    samples.run(name='c'),
  )
  text = bench_table.markdown(samples.document(*runs))
  found = table_after(text, 'Tokens per call by prompt length, tokens up to:')
  assert found == [
    ['drafter', '128', '256', '1024'],
    ['`a`', '2.25', '–', '1.50'],
    ['`b`', '–', '3.00', '–'],
  ]


def test_groups_say_how_many_prompts_they_have():
  run = samples.run(
    by_prompt_length={'128': 1.5, '256': 2.0},
    prompts_by_length={'256': 1, '128': 10},
  )
  text = bench_table.markdown(samples.document(run))
  found = table_after(text, 'Tokens per call by prompt length, tokens up to:')
  assert found[1] == ['*prompts*', '10', '1']


def test_one_group_needs_no_table():
  run = samples.run(by_prompt_length={'128': 2.0}, by_category={'qa': 2.0})
  text = bench_table.markdown(samples.document(run))
  assert 'Tokens per call by' not in text
