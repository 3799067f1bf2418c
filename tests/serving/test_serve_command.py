# SPDX-License-Identifier: Apache-2.0
"""`specstream serve` as a process."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
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
    (
      ['--allow_runtime_adapters'],
      '--allow_runtime_adapters needs room for adapters beside the model',
    ),
    (['--adapter_root=.'], 'add --allow_runtime_adapters'),
    (
      ['--allow_runtime_adapters', '--max_lora_rank=2', '--adapter_root=x'],
      "--adapter_root is 'x', which is no folder",
    ),
    (['--host=1.2.3.4'], '--host=1.2.3.4 --port=8000 cannot be listened on ('),
    (['--port=0', '--model=/no/model'], "'/no/model'"),
  ],
)
@pytest.mark.slow
def test_flags_that_are_refused(flags, message):
  done = subprocess.run(
    [*COMMAND, *flags], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 1 and message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.fixture(name='serve')
def _serve(tmp_path):
  """A function that starts a server of a tiny model; it is gone afterwards."""
  byte_model.write_model(tmp_path / 'tiny', byte_model.model_config())
  sizes = ['--num_slots=2', '--cache_length=64', '--max_new_tokens=40']
  servers = []

  def start(*flags):
    server = subprocess.Popen(
      [*COMMAND, f'--model={tmp_path / "tiny"}', '--port=0', *sizes, *flags],
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    servers.append(server)
    line = server.stderr.readline()
    assert 'this machine only' in line
    return server, int(re.search(r':(\d+)/v1', line)[1])

  yield start
  for server in servers:
    server.kill()
    server.wait()


ASKED = {'model': 'tiny', 'prompt': 'ab', 'max_tokens': 40, 'ignore_eos': True}


@pytest.mark.slow
def test_it_answers_and_ends_in_good_order(serve):
  server, port = serve()
  assert _get(port, '/health')[0] == 503
  _wait(port, server)
  answer = _post(port, ASKED | {'stream': True})
  first = answer.readline()
  server.send_signal(signal.SIGTERM)
  rest = answer.read()
  assert first.startswith(b'data: ') and rest.endswith(b'data: [DONE]\n\n')
  assert b'"finish_reason": "length"' in rest
  assert server.wait(60) == 0
  assert 'Traceback' not in server.stderr.read()


@pytest.mark.slow
def test_it_ends_while_it_compiles(serve):
  server, port = serve()
  assert _get(port, '/health') == (503, b'{"status":"warming up"}')
  server.send_signal(signal.SIGTERM)
  assert server.wait(60) == 0
  assert 'Traceback' not in server.stderr.read()


@pytest.mark.slow
def test_clients_that_misbehave_do_no_harm(serve):
  server, port = serve('--max_body_kb=8')
  _wait(port, server)
  want = json.load(_post(port, ASKED | {'temperature': 0}))['choices']
  body = json.dumps(ASKED | {'stream': True}).encode()
  head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
  head += b'Content-Type: application/json\r\nContent-Length: '
  whole = head + str(len(body)).encode() + b'\r\n\r\n' + body
  for sent, seen in [
    *[(whole, b'data: ')] * 8,  # gone with the first words
    (whole[:-5], b''),  # gone before the end of the body
    (b'\0\xff' * 40 + b'\r\n\r\n', b'400'),
    (head + b'99999999\r\n\r\n' + b' ' * 9000, b'413'),
    (head + b'x\r\n\r\n', b'400'),
    (b'GET /' + b'a' * 100_000 + b' HTTP/1.1\r\n\r\n', b'400'),
  ]:
    with socket.create_connection(('127.0.0.1', port), timeout=30) as client:
      client.sendall(sent)
      got = b''
      while seen not in got:
        part = client.recv(4096)
        assert part, got
        got += part
  for _ in range(100):
    text = _get(port, '/metrics')[1].decode()
    if 'vllm:num_requests_running{model_name="tiny"} 0.0' in text:
      break
    time.sleep(0.1)
  assert 'vllm:num_requests_running{model_name="tiny"} 0.0' in text
  assert 'vllm:num_requests_waiting{model_name="tiny"} 0.0' in text
  assert json.load(_post(port, ASKED | {'temperature': 0}))['choices'] == want
  server.send_signal(signal.SIGTERM)
  assert server.wait(60) == 0
  assert 'Traceback' not in server.stderr.read()


def _get(port, path):
  try:
    url = f'http://127.0.0.1:{port}{path}'
    answer = urllib.request.urlopen(url, timeout=30)
  except urllib.error.HTTPError as error:
    answer = error
  return answer.status, answer.read()


def _post(port, body):
  return urllib.request.urlopen(
    urllib.request.Request(
      f'http://127.0.0.1:{port}/v1/completions',
      json.dumps(body).encode(),
      {'Content-Type': 'application/json'},
    ),
    timeout=60,
  )


def _wait(port, server):
  for _ in range(1200):
    assert server.poll() is None
    if _get(port, '/health')[0] == 200:
      return
    time.sleep(0.2)
  raise TimeoutError
