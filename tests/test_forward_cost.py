# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/forward_cost.py on a tiny model."""

import json

import byte_model
import experiments
import pytest


@pytest.mark.slow
def test_every_size_and_dtype_is_timed(tmp_path):
  byte_model.write_model(tmp_path / 'model', byte_model.model_config())
  flags = (
    f'--model={tmp_path}/model',
    f'--output_dir={tmp_path}/out',
    '--tokens=1,2,5',
    '--context=8',
    '--repeats=2',
  )
  done = experiments.run('forward_cost.py', *flags)
  assert done.returncode == 0, done.stderr
  document = json.loads((tmp_path / 'out' / 'forward_cost.json').read_text())
  assert document['context'] == 8
  for dtype in ('float32', 'bfloat16'):
    sizes, times = zip(*document['median_ms'][dtype])
    assert sizes == (1, 2, 5) and min(times) > 0
  assert '<svg' in (tmp_path / 'out' / 'forward_cost.svg').read_text()
