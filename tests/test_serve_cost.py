# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/serve_cost.py on a tiny model."""

import json

import experiments
import notebooks
import pytest


@pytest.mark.slow
def test_adapters_and_clients_are_timed(tmp_path):
  model, adapter = notebooks.write_tiny(tmp_path)
  flags = (
    f'--model={model}',
    f'--adapter={adapter}',
    f'--output_dir={tmp_path}/out',
    *('--adapters=2', '--clients=3', '--num_slots=2', '--requests=4'),
    *('--cache_length=128', '--new_tokens=6', '--prompt_tokens=9'),
    '--rounds=1',
  )
  done = experiments.run('serve_cost.py', *flags)
  assert done.returncode == 0, done.stderr
  written = tmp_path / 'out' / 'serve_cost.json'
  rows = json.loads(written.read_text())['rows']
  gathered = [row for row in rows if row['part'] == 'gather']
  assert [row['adapters'] for row in gathered] == ['folded', 2]
  assert all(row['tokens_per_second'] > 0 for row in rows)
  loaded = [row for row in rows if row['part'] == 'load']
  assert [(row['clients'], row['drafts']) for row in loaded] == [
    (3, 'on'), (3, 'off')
  ]  # fmt: skip
  assert '| clients | drafts |' in (written.with_suffix('.md')).read_text()
