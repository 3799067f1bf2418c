# SPDX-License-Identifier: Apache-2.0
"""The paper's table from benchmark results."""

import subprocess
import sys

import evaluation_samples as samples
import pytest

from specstream_jax.bench import results
from specstream_jax.report import results_table

SCORES = {'rouge1': 71.25, 'rougeLsum': 60.5}


def document(**changes):
  quality = {'autoregressive': SCORES, 'speculative': SCORES}
  return samples.document(samples.run(**{'quality': quality, **changes}))


def rows(text):
  """method -> cells of the first table."""
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  return {row[0]: row[1:] for row in cells}


def test_table_has_the_three_qualities_and_every_rival():
  base = document(
    drafter='none',
    quality={'autoregressive': {'rouge1': 50.0, 'rougeLsum': 40.0}},
  )
  text = results_table.markdown(
    [document(name='streams 7', extra_parameters=960)],
    [base],
    [document()],
    [document(num_prompts=500)],
  )
  found = rows(text)
  assert found['method'][4] == 'rouge1 / rougeLsum' and 'paper' in text
  assert found['base model'][4] == '50.00 / 40.00 (2 prompts)'
  assert found['LoRA without streams'][4] == '71.25 / 60.50 (2 prompts)'
  assert found['LoRA with streams'][4] == '71.25 / 60.50 (500 prompts)'
  assert found['LoRA with streams, no drafts'][4] == '71.25 / 60.50'
  assert found['streams 7'] == [
    '1.79 (1.62–1.93)', '2.30 (0.00–0.00)', '1.25', '100.0 %',
    '71.25 / 60.50', '960',
  ]  # fmt: skip
  assert found['*paper: streams*'][1] == '3.72 / 3.69 / 3.55'


def test_lossy_rivals_say_so_and_tasks_have_tables_of_their_own():
  runs = samples.run(lossy=True, name='typical'), samples.run(task='mine/dev')
  text = results_table.markdown([samples.document(*runs)])
  assert '| typical (lossy) |' in text
  assert text.count('| method |') == text.count('### ') == 2
  own = text[text.index('### mine/dev') :]
  assert '*paper:' not in own  # the paper has no such task


def test_base_of_another_task_is_not_taken():
  text = results_table.markdown([document()], [document(task='other/test')])
  assert 'base model' not in rows(text)


def test_only_the_marked_block_is_replaced():
  first = results_table.insert('# Title\n\nBefore.\n', 'one\n')
  second = results_table.insert(first + '\nAfter.\n', 'two \\1\n')
  assert second.startswith('# Title\n\nBefore.\n')
  assert second.endswith('\nAfter.\n')
  assert 'two \\1' in second and 'one' not in second


def test_command_writes_the_file_and_keeps_what_is_around(tmp_path):
  results.write(str(tmp_path), document())
  output = tmp_path / 'RESULTS.md'
  output.write_text('# Results\n')
  code = 'from specstream_jax.cli import main; main.run()'
  args = ['results', f'--rivals={tmp_path}', f'--output={output}']
  for _ in range(2):
    subprocess.run([sys.executable, '-c', code, *args], check=True)
  text = output.read_text()
  assert text.startswith('# Results\n') and text.count('### e2e_nlg') == 1
  assert '1.79 (1.62–1.93)' in text


def test_no_runs_is_an_error():
  with pytest.raises(ValueError, match='there is no run among the results'):
    results_table.markdown([])
