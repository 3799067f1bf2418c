# SPDX-License-Identifier: Apache-2.0
"""Pages of other sites do not get a browser to ask for them."""

from typing import Any

import pytest
from starlette import testclient

from specstream_jax.serving import bodies, fields, guards, http, protocol

PATH = '/v1/unload_lora_adapter'
JSON = 'application/json'


class _Engine:
  """Has no adapters to unload."""

  adapters = ()

  def start(self):
    pass

  def close(self, timeout):
    pass


class _Shelf:
  def __init__(self):
    self.asked = []

  def unload(self, body, engine, base):
    self.asked.append(body)
    return 'gone'


def _ask(options, **headers):
  """The answer to who would unload an adapter, and whether it was tried."""
  engine: Any = _Engine()
  shelf: Any = _Shelf()
  app = http.Server(engine, http.Options('tiny', **options), shelf).app()
  client = testclient.TestClient(app)
  named = {name.replace('_', '-'): value for name, value in headers.items()}
  answer = client.post(PATH, content=b'{"lora_name": "x"}', headers=named)
  return answer, bool(shelf.asked)


@pytest.fixture(autouse=True)
def _unload(monkeypatch):
  monkeypatch.setattr(
    'specstream_jax.serving.shelf.Shelf.unload', _Shelf.unload
  )


@pytest.mark.parametrize(
  ('kind', 'status'),
  [
    (JSON, 200),
    ('Application/JSON; charset=utf-8', 200),
    ('text/plain', 415),
    ('application/x-www-form-urlencoded', 415),
    ('text/plain; application/json', 415),
    ('', 415),
  ],
)
def test_only_json_is_read(kind, status):
  answer, is_done = _ask({}, content_type=kind)
  assert answer.status_code == status and is_done == (status == 200)
  if status == 415:
    error = answer.json()['error']
    assert error['message'].startswith(f'Content-Type is {kind!r}; accepted: ')


@pytest.mark.parametrize(
  ('origin', 'host', 'status'),
  [
    ('http://localhost:8000', 'localhost:8000', 200),
    ('http://[::1]:8000', '[::1]:8000', 200),
    ('https://Chat.example', 'chat.example', 200),
    ('http://chat.example', 'chat.example:80', 200),
    ('https://allowed.example', 'localhost:8000', 200),
    ('http://allowed.example', 'localhost:8000', 403),
    ('http://localhost:3000', 'localhost:8000', 403),
    ('http://evil.example', 'localhost:8000', 403),
    ('http://localhost:8000.evil.example', 'localhost:8000', 403),
    ('http://localhost:x', 'localhost:x', 403),
    ('null', 'localhost:8000', 403),
    ('null', '', 403),
  ],
)
def test_pages_ask_where_they_come_from(origin, host, status):
  options = {'allowed_origins': ('https://allowed.example',)}
  answer, is_done = _ask(options, content_type=JSON, origin=origin, host=host)
  assert answer.status_code == status and is_done == (status == 200)
  if status == 403:
    assert f'--allowed_origin={origin}' in answer.json()['error']['message']


@pytest.mark.parametrize(
  ('host', 'status'),
  [
    ('localhost:8000', 200),
    ('a.localhost', 200),
    ('127.0.0.1:8000', 200),
    ('[::1]:8000', 200),
    ('allowed.example', 200),
    ('evil.example:8000', 403),
    ('localhost.evil.example', 403),
    ('127.0.0.1.evil.example', 403),
    ('', 403),
  ],
)
def test_a_name_for_this_machine_is_no_way_in(host, status):
  options = {'allowed_origins': ('https://allowed.example',)}
  for more, want in (
    ({'is_local': True}, status),
    ({'is_local': False}, 200),
  ):
    answer, is_done = _ask(options | more, content_type=JSON, host=host)
    assert answer.status_code == want and is_done == (want == 200)
  # Who knows the key is no page elsewhere.
  key = {'is_local': True, 'api_key': 'k'}
  answer, _ = _ask(key, content_type=JSON, host='x', authorization='Bearer k')
  assert answer.status_code == 200


def test_pages_that_may_ask_may_read_the_answer():
  asks = {'content_type': JSON, 'origin': 'https://a.example', 'host': 'x'}
  answer, _ = _ask({'allowed_origins': ('https://a.example',)}, **asks)
  allowed = 'access-control-allow-origin'
  assert answer.headers[allowed] == 'https://a.example'
  answer, _ = _ask({}, content_type=JSON)
  assert allowed not in answer.headers


@pytest.mark.parametrize(
  'origin', ['x.example', 'https://x.example/', 'https://x.example/a', '*']
)
def test_origins_are_as_browsers_name_them(origin):
  with pytest.raises(ValueError, match=r'allowed_origin is .* a scheme and a'):
    guards.Options(allowed_origins=(origin,))


def test_addresses_of_this_machine():
  for host in ('localhost', '127.0.0.1', '127.0.0.2', '::1'):
    assert guards.is_loopback(host)
  for host in ('0.0.0.0', '::', '10.0.0.1', 'example.org', ''):
    assert not guards.is_loopback(host)


@pytest.mark.parametrize(
  ('message', 'text', 'param'),
  [
    (
      'stop is [1]; accepted: a tuple of texts (write stop=())',
      'stop is [1]; accepted: a list of texts',
      'stop',
    ),
    (
      'an entry of SamplingConfig.logit_bias is -1; it must be >= 0',
      'an entry of logit_bias is -1; it must be >= 0',
      'logit_bias',
    ),
  ],
)
def test_errors_are_in_the_words_of_the_body(message, text, param):
  error = fields.as_sent(ValueError(message), {'stop': [1]})
  assert (str(error), error.param) == (text, param)


def test_an_id_has_one_spelling():
  with pytest.raises(bodies.ApiError, match='an object of token ids'):
    protocol._biases({'0': 1, '-0': 2}, 'logit_bias')
