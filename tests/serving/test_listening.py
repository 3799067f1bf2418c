# SPDX-License-Identifier: Apache-2.0
"""The port is open before the engine is there, and until it has drained."""

import json
import signal
import threading
import types
import urllib.error
import urllib.request

import pytest

from specstream_jax.serving import http, listening, tokens


class _Engine:
  """Is closed when somebody says so."""

  def __init__(self):
    self.is_open, self.may_end = True, threading.Event()
    self.error = None

  def start(self):
    pass

  def close(self, timeout):
    self.is_open = False
    self.may_end.wait(timeout)

  def abort(self):
    self.may_end.set()


@pytest.fixture(name='running')
def _running(monkeypatch):
  """A function that serves what a function makes, in a thread."""
  threads = []

  class Loop(listening._Loop):
    def __init__(self, *args):
      super().__init__(*args)
      Running.loop = self

  class Running:
    loop: listening._Loop
    error = None
    timeout = 30

    def __init__(self, make):
      self.port = listening.listen('127.0.0.1', 0)
      self.thread = threading.Thread(target=self._serve, args=[make])
      self.thread.start()
      threads.append(self)

    def _serve(self, make):
      options = http.Options('tiny', shutdown_timeout=self.timeout)
      server = http.Server(None, options)
      try:
        listening.serve(server, self.port, make)
      except BaseException as error:
        self.error = error

    def get(self, path, body=None):
      port = self.port.getsockname()[1]
      data = body and json.dumps(body).encode()
      try:
        asked = urllib.request.Request(
          f'http://127.0.0.1:{port}{path}',
          data,
          {'Content-Type': 'application/json'},
        )
        answer = urllib.request.urlopen(asked, timeout=20)
      except urllib.error.HTTPError as error:
        answer = error
      return answer.status, json.load(answer)

    def end(self):
      self.thread.join(20)
      assert not self.thread.is_alive()

  monkeypatch.setattr(listening, '_Loop', Loop)
  yield Running
  for one in threads:
    one.loop.should_exit = True
    one.end()
    one.port.close()


def _until(condition):
  pause = threading.Event()
  for _ in range(400):
    if condition():
      return
    pause.wait(0.05)
  raise TimeoutError


def test_health_says_when_requests_are_taken(running):
  engine, is_made = _Engine(), threading.Event()
  server = running(lambda: is_made.wait(20) and engine)
  assert server.get('/health') == (503, {'status': 'warming up'})
  status, body = server.get('/v1/models')
  assert status == 503 and 'being loaded' in body['error']['message']
  is_made.set()
  _until(lambda: server.get('/health') == (200, {'status': 'ok'}))
  server.loop.handle_exit(signal.SIGTERM, None)
  _until(lambda: not engine.is_open)
  assert server.get('/health') == (503, {'status': 'closing'})
  engine.error = MemoryError('of /secret/path')
  failed = {'status': 'failed', 'error': 'MemoryError'}
  assert server.get('/health') == (503, failed)
  engine.may_end.set()
  server.end()
  assert server.error is None


def test_a_second_signal_does_not_wait(running):
  server = running(_Engine)
  _until(lambda: server.get('/health')[0] == 200)
  server.loop.handle_exit(signal.SIGINT, None)
  server.loop.handle_exit(signal.SIGINT, None)
  server.end()
  assert isinstance(server.error, KeyboardInterrupt)


class _Slow:
  """What somebody asks of an idle server, and what came of it."""

  def __init__(self, running, monkeypatch):
    self.is_asked, self.may_answer = threading.Event(), threading.Event()
    engine = _Engine()
    engine.may_end.set()
    engine.model, engine.adapters = None, []
    engine.cfg = types.SimpleNamespace(cache_length=9)
    monkeypatch.setattr(tokens, 'tokenize', self._make)
    monkeypatch.setattr(listening, '_LAST_BYTES', 0)
    monkeypatch.setattr(listening, '_LAST_WORDS', 0.1)
    self.server = running(lambda: engine)
    _until(lambda: self.server.get('/health')[0] == 200)
    self.got = []
    self.client = threading.Thread(target=self._ask)
    self.client.start()
    assert self.is_asked.wait(20)

  def _make(self, *args):
    del args
    self.is_asked.set()
    self.may_answer.wait(20)
    return {'count': 7}

  def _ask(self):
    self.got.append(self.server.get('/tokenize', {'prompt': 'ab'}))

  def end(self):
    """Lets it be answered after a while, and the server come to its end."""
    threading.Timer(1.0, self.may_answer.set).start()
    self.client.join(20)
    self.server.end()
    assert self.server.error is None
    return self.got[0]


def test_an_answer_that_is_made_has_the_whole_time_to_end(running, monkeypatch):
  slow = _Slow(running, monkeypatch)
  slow.server.loop.handle_exit(signal.SIGTERM, None)
  assert slow.end() == (200, {'count': 7})


@pytest.mark.parametrize('count', [1, 2])
def test_an_answer_that_is_given_up_is_503(count, running, monkeypatch, capfd):
  running.timeout = 0 if count == 1 else 30
  slow = _Slow(running, monkeypatch)
  for _ in range(count):
    slow.server.loop.handle_exit(signal.SIGTERM, None)
  status, body = slow.end()
  assert status == 503
  message = 'the server has ended before the answer'
  assert body['error']['message'] == message
  assert 'Traceback' not in capfd.readouterr().err


def test_what_cannot_be_made_ends_it(running):
  def make():
    raise ValueError('does not fit')

  server = running(make)
  server.end()
  assert str(server.error) == 'does not fit'


@pytest.mark.parametrize('host', ['127.0.0.1', '::1x', 'no.such.host.invalid'])
def test_ports_that_cannot_be_had(host):
  with listening.listen('127.0.0.1', 0) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=r'cannot be listened on \(.*; take'):
      listening.listen(host, port)


def test_a_number_that_is_no_port():
  with pytest.raises(ValueError, match='--port=99999 cannot be listened on'):
    listening.listen('127.0.0.1', 99999)
