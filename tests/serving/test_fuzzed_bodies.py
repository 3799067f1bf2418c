# SPDX-License-Identifier: Apache-2.0
"""Whatever somebody sends, the answer is a completion or says what is wrong."""

import asyncio
import dataclasses
import json
import types

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import serving_models
from starlette import testclient

from specstream_jax.checkpoints import chat_format
from specstream_jax.serving import (
  bodies,
  engine as engine_lib,
  http,
  protocol,
  scoring,
  shelf,
  tokens,
  waiting,
)


class _Engine(engine_lib.Engine):
  """Takes what an engine takes, and says the same token to everything."""

  def __init__(self):
    self.model = serving_models.with_template(serving_models.base())
    self.cfg = serving_models.CFG
    drafter = types.SimpleNamespace(size=6)
    served = {
      name: types.SimpleNamespace(eos_ids=(0,), has_drafts=True, num_drafts=5)
      for name in ('', 'tuned')
    }
    setup = types.SimpleNamespace(drafter=drafter, path_length=3)
    self._weights = types.SimpleNamespace(served=served, setup=setup)
    self.error = self._thread = None
    self._waiting = waiting.Waiting(self.cfg)

  def submit_all(self, asked, on_end=None):
    made = []
    for request in asked:
      row = self._row(request)
      row.take([66], 'length')
      row.finish([])
      made.append(row.handle)
    return made

  def check_number(self, count):
    pass

  def scorer(self, adapter=''):
    self._served(adapter)

    def score(text):
      count = max(len(text) - 1, 0)
      ones = np.ones((count, 20), np.float32)
      return scoring.Scores(-ones[:, 0], ones.astype(np.int32), -ones)

    return score

  def start(self):
    pass

  def close(self, timeout=None):
    return True


def _read(path):
  raise ValueError(f'{path} holds no adapter')


@pytest.fixture(name='client', scope='module')
def _client(tmp_path_factory):
  root = tmp_path_factory.mktemp('secret')
  (root / 'adapter').mkdir()
  made = shelf.Shelf(_read, {'given': '/secret/given'}, str(root))
  app = http.Server(_Engine(), http.Options('tiny'), made).app()
  with testclient.TestClient(app, raise_server_exceptions=False) as made:
    yield made


MESSAGES = [{'role': 'user', 'content': 'ab'}]
VALID = {
  '/v1/completions': {'model': 'tuned', 'prompt': 'ab'},
  '/v1/chat/completions': {'model': 'tiny', 'messages': MESSAGES},
  '/tokenize': {'prompt': 'ab'},
  '/detokenize': {'tokens': [1, 2]},
  '/v1/load_lora_adapter': {'lora_name': 'x', 'lora_path': 'adapter'},
  '/v1/unload_lora_adapter': {'lora_name': 'x'},
}
NAMES = sorted(
  {*protocol.COMPLETION, *protocol.CHAT, *bodies.ASKS_NOTHING, *tokens.FIELDS}
  | {'load_inplace', 'lora_name', 'lora_path', 'functions', '', '\ud800'}
)
NUMBERS = st.one_of(
  st.integers(-3, 70),
  st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 10**400]),
  st.floats(allow_nan=False),
)
TEXTS = st.one_of(
  st.sampled_from(['', 'ab', 'tuned', '../..', '<eos>', '\0', '\ud800', '1']),
  st.text(max_size=5),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
  PLAIN,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4),
    st.dictionaries(
      st.sampled_from(['type', 'text', 'role', 'content', 'user', '1', 'x']),
      inner,
      max_size=3,
    ),
  ),
  max_leaves=8,
)
BODIES = st.one_of(
  st.binary(max_size=30),
  VALUES.map(lambda value: json.dumps(value).encode()),
  st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4),
)


FIELDS = {
  '/v1/completions': protocol.COMPLETION,
  '/v1/chat/completions': protocol.CHAT,
  '/tokenize': tokens.FIELDS - {'tokens'},
}


def _check(client, path, body, is_known):
  """Sends a body, or a valid one with some of it changed."""
  if isinstance(body, dict):
    known = FIELDS.get(path, VALID[path])
    body = {k: v for k, v in body.items() if k in known or not is_known}
    body = json.dumps(VALID[path] | body).encode()
  answer = client.post(
    path, content=body, headers={'Content-Type': 'application/json'}
  )
  assert answer.status_code in (200, 400, 404, 413), (body, answer.text)
  assert 'secret' not in answer.text and 'Traceback' not in answer.text
  if answer.status_code != 200:
    error = answer.json()['error']
    assert error['message'] and error['code'] == answer.status_code
    assert len(error['message']) < 2000


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
  path=st.sampled_from(sorted(VALID)), body=BODIES, is_known=st.booleans()
)
def test_some_bodies(client, path, body, is_known):
  _check(client, path, body, is_known)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000, deadline=None)
@hypothesis.given(
  path=st.sampled_from(sorted(VALID)), body=BODIES, is_known=st.booleans()
)
def test_many_bodies(client, path, body, is_known):
  _check(client, path, body, is_known)


COMMON = {
  'n': 2,
  'max_tokens': 3,
  'temperature': 0.7,
  'top_p': 0.9,
  'top_k': 5,
  'min_p': 0.1,
  'seed': 3,
  'stop': ['x', 'y'],
  'stop_token_ids': [7],
  'logit_bias': {'5': -1},
  'repetition_penalty': 1.1,
  'presence_penalty': 0.1,
  'frequency_penalty': 0.1,
  'min_tokens': 1,
  'ignore_eos': True,
  'timeout': 5,
  'drafts': False,
  'user': 'x',
  'response_format': {'type': 'text'},
  'best_of': 1,
  'stream': False,
}


@pytest.mark.parametrize(
  ('path', 'more'),
  [
    ('/v1/completions', {'echo': True, 'logprobs': 2, 'suffix': ''}),
    (
      '/v1/chat/completions',
      {
        'max_completion_tokens': 3,
        'logprobs': True,
        'top_logprobs': 2,
        'tools': [{'type': 'function', 'function': {'name': 'f'}}],
        'tool_choice': 'auto',
      },
    ),
  ],
)
def test_all_parameters_together(path, more, client):
  answer = client.post(path, json=VALID[path] | COMMON | more)
  assert answer.status_code == 200, answer.text
  assert len(answer.json()['choices']) == 2


@pytest.mark.parametrize(
  'more',
  [
    {'response_format': {'type': 'json_schema', 'json_schema': {}}},
    {'tool_choice': 'required'},
    {'functions': []},
    {'function_call': 'auto'},
    {'suffix': 'x'},
    {'best_of': 2},
    {'modalities': ['audio']},
    {'reasoning_effort': 'high'},
    {'guided_json': {}},
    {'prompt_logprobs': 1},
    {'use_beam_search': True},
    {'service_tier': 'flex'},
  ],
)
def test_what_is_not_supported_is_refused_by_name(more, client):
  [name] = more
  for path in ('/v1/completions', '/v1/chat/completions'):
    answer = client.post(path, json=VALID[path] | more)
    error = answer.json()['error']
    assert answer.status_code == 400 and error['param'] == name
    assert error['message'] == f'{name!r} is not supported here; leave it out'
    assert error['type'] == 'invalid_request_error'


@pytest.mark.parametrize('token', [-1, 999, 2**32, 2**63, 10**400, -(10**400)])
def test_numbers_that_are_no_tokens(token, client):
  for path, more in (
    ('/v1/completions', {'prompt': [1, token]}),
    ('/v1/completions', {'stop_token_ids': [token]}),
    ('/v1/completions', {'logit_bias': {str(token): 1}}),
    ('/detokenize', {'tokens': [token]}),
  ):
    answer = client.post(path, json=VALID[path] | more)
    assert answer.status_code == 400, answer.text
    assert str(token) in answer.json()['error']['message']


def test_a_template_that_refuses_does_not_say_where_it_lies(client):
  engine = _Engine()
  template = chat_format.Template(
    "{{ raise_exception('no such role') }}",
    {},
    origin='/secret place/model/chat_template.jinja',
  )
  engine.model = dataclasses.replace(engine.model, chat_template=template)
  app = http.Server(engine, http.Options('tiny')).app()
  path = '/v1/chat/completions'
  answer = testclient.TestClient(app).post(path, json=VALID[path])
  assert answer.status_code == 400
  message = answer.json()['error']['message']
  assert message == "chat template of 'chat_template.jinja': no such role"


@pytest.mark.parametrize(
  ('message', 'want'),
  [
    ("'/a b/c/x.json' is odd", "'x.json' is odd"),
    ('cannot read /a/b/x.json (why)', 'cannot read x.json (why)'),
    ('at /a/x, and "/a/b/y"', 'at x, and "y"'),
    ('1/2 of a/b, https://x.y/z', '1/2 of a/b, https://x.y/z'),
  ],
)
def test_folders_are_nobodys_business(message, want):
  assert bodies.public(ValueError(message)) == want


def test_a_client_that_leaves_in_the_middle_of_its_body(client, caplog):
  parts = [{'type': 'http.request', 'body': b'{', 'more_body': True}]
  parts.append({'type': 'http.disconnect'})
  sent = []

  async def receive():
    return parts.pop(0)

  async def send(message):
    sent.append(message)

  path = '/v1/completions'
  headers = [(b'content-type', b'application/json')]
  scope = {'type': 'http', 'method': 'POST', 'path': path, 'headers': headers}
  asyncio.run(client.app(scope | {'query_string': b''}, receive, send))
  assert sent[0]['status'] == 499
  assert 'failed' not in caplog.text


def test_bodies_that_are_fine(client):
  for path, body in VALID.items():
    status = client.post(path, json=body).status_code
    assert status == (200 if 'lora' not in path else status) < 500
  assert client.get('/health').status_code == 200
