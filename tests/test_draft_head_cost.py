# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/draft_head_cost.py on a tiny model."""

import json

import experiments
import notebooks
import pytest


@pytest.mark.slow
def test_three_heads_are_timed(tmp_path):
  model, adapter = notebooks.write_tiny(tmp_path)
  done = experiments.run(
    'draft_head_cost.py',
    f'--model={model}',
    f'--adapters={adapter},{adapter}',
    f'--output_dir={tmp_path}/out',
    *('--most=10', '--rounds=2', '--rows=2', '--streams=2'),
  )
  assert done.returncode == 0, done.stderr
  path = tmp_path / 'out' / 'draft_head_cost.json'
  rows = json.loads(path.read_text())['rows']
  whole, union, least = (row['tokens'] for row in rows)
  assert least == 10 < union <= whole
  assert all(0 < row['least_ms'] <= row['median_ms'] for row in rows)
