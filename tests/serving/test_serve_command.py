# SPDX-License-Identifier: Apache-2.0
"""`specstream serve` as a process."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import byte_model
import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, '-m', 'specstream_jax.cli.main', 'serve']


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--adapter=x'], "--adapter is 'x'; accepted: NAME=FOLDER"),
    (['--adapter=a=x', '--adapter=a=y'], "--adapter: the name 'a' is taken"),
    (['--batch_sizes=1,x'], "--batch_sizes is '1,x'; accepted: numbers such"),
    (['--fold'], '--fold serves one adapter alone, and 0 are given'),
  ],
)
@pytest.mark.slow
def test_flags_that_are_refused(flags, message):
  done = subprocess.run(
    [*COMMAND, *flags], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 1 and message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_it_answers_and_ends_in_good_order(tmp_path):
  byte_model.write_model(tmp_path / 'tiny', byte_model.model_config())
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  sizes = ['--num_slots=2', '--cache_length=64', '--max_new_tokens=40']
  server = subprocess.Popen(
    [*COMMAND, f'--model={tmp_path / "tiny"}', f'--port={port}', *sizes],
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  try:
    _wait(port, server)
    body = {'model': 'tiny', 'prompt': 'ab', 'max_tokens': 40, 'stream': True}
    answer = _post(port, body | {'ignore_eos': True})
    first = answer.readline()
    server.send_signal(signal.SIGTERM)
    rest = answer.read()
    assert first.startswith(b'data: ') and rest.endswith(b'data: [DONE]\n\n')
    assert b'"finish_reason": "length"' in rest
    assert server.wait(60) == 0
    assert 'this machine only' in server.stderr.read()
  finally:
    server.kill()


def _post(port, body):
  return urllib.request.urlopen(
    urllib.request.Request(
      f'http://127.0.0.1:{port}/v1/completions', json.dumps(body).encode()
    ),
    timeout=60,
  )


def _wait(port, server):
  for _ in range(1200):
    assert server.poll() is None
    try:
      urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=5)
      return
    except OSError:
      time.sleep(0.2)
  raise TimeoutError
