# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/serve_load.py against a server of a tiny model."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import experiments
import notebooks
import pytest


@pytest.fixture
def server(tmp_path):
  """(process, url) of a server of a model and an adapter, ready."""
  model, adapter = notebooks.write_tiny(tmp_path)
  made = subprocess.Popen(
    [
      *(sys.executable, '-m', 'specstream_jax.cli.main', 'serve'),
      *(f'--model={model}', f'--adapter=own={adapter}', '--port=0'),
      *('--num_slots=2', '--cache_length=64', '--max_new_tokens=20'),
      *('--batch_sizes=2', '--max_drafting_rows=2'),
    ],
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert made.stderr is not None
  port = re.search(r':(\d+)/v1', made.stderr.readline())
  assert port is not None
  url = f'http://127.0.0.1:{port[1]}'
  for _ in range(600):
    try:
      urllib.request.urlopen(f'{url}/health')
      break
    except urllib.error.URLError:
      time.sleep(0.2)
  yield made, url
  made.kill()
  made.wait()


@pytest.mark.slow
def test_clients_are_served_with_drafts_and_without(server, tmp_path):
  made, url = server
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "ab"}\n{"prompt": "a longer one"}\n')
  done = experiments.run(
    'serve_load.py',
    f'--url={url}',
    f'--prompts=own={path}',
    f'--prompts=model={path}',
    f'--pid={made.pid}',
    f'--output_dir={tmp_path}/out',
    *('--clients=1,3', '--seconds=1', '--rounds=2', '--new_tokens=5,9'),
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'out' / 'serve_load.json').read_text())
  kinds = [(row['clients'], row['drafts']) for row in found['rows']]
  assert kinds == [(1, 'on'), (1, 'off'), (3, 'on'), (3, 'off')]
  for row in found['rows']:
    assert row['errors'] == 0 and row['requests'] > 2
    assert row['tokens_per_second'] > 0
    assert row['first_token_ms'][0] > 0
  assert set(found['left'].values()) == {0.0}
  assert min(found['memory_mb']) > 50


@pytest.mark.slow
def test_what_a_server_refuses_is_counted(server, tmp_path):
  _, url = server
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "ab"}\n')
  done = experiments.run(
    'serve_load.py',
    f'--url={url}',
    f'--prompts=nobody={path}',
    f'--output_dir={tmp_path}/out',
    *('--clients=1', '--seconds=0.3', '--rounds=1'),
  )
  assert done.returncode == 0, done.stderr
  [row, _] = json.loads((tmp_path / 'out' / 'serve_load.json').read_text())[
    'rows'
  ]
  assert row['errors'] == row['requests'] > 0
  assert row['said'][0].startswith('404')
