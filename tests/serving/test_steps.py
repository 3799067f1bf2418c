# SPDX-License-Identifier: Apache-2.0
"""Streams that tell what each call added, and the page that shows it."""

import json
import re

import pytest
import serving_models
from starlette import testclient

from specstream_jax import config
from specstream_jax.drafters import streams
from specstream_jax.serving import http, page, requests


@pytest.fixture(scope='module')
def client():
  server = http.Server(
    serving_models.engine(max_waiting=8), http.Options('tiny', api_key='k')
  )
  with testclient.TestClient(server.app()) as made:
    yield made


def _post(client, **values):
  body = {
    'model': 'tuned', 'prompt': 'ab', 'max_tokens': 14, 'temperature': 0,
    'ignore_eos': True, 'stream': True,
  }  # fmt: skip
  return client.post(
    '/v1/completions',
    json=body | values,
    headers={'Authorization': 'Bearer k'},
  )


def _events(answer):
  lines = [line for line in answer.text.split('\n\n') if line][:-1]
  return [json.loads(line.removeprefix('data: ')) for line in lines]


@pytest.mark.parametrize('name', ['tuned', 'free', 'tiny'])
def test_a_piece_is_what_one_call_added(client, name):
  steps = {'include_steps': True}
  events = _events(_post(client, model=name, stream_options=steps))
  plain = _events(_post(client, model=name))
  text = lambda found: ''.join(e['choices'][0]['text'] for e in found)
  assert text(events) == text(plain)
  assert not any('metrics' in event for event in plain[:-1])
  cost = [e['metrics']['speculative_decoding'] for e in events]
  end = cost.pop()
  counts = [one['num_tokens'] for one in cost if one['num_tokens']]
  assert counts[0] == 1 and sum(counts) == 14
  if name == 'tiny':  # which has no drafts
    assert counts == [1] * 14 and not end['num_spec_steps']
    return
  assert len(counts) == 1 + end['num_spec_steps']
  histogram = [0] * len(end['acceptance_histogram'])
  for count in counts[1:]:
    histogram[count - 1] += 1
  assert histogram == end['acceptance_histogram']


def test_a_stop_ends_the_last_piece():
  engine = serving_models.engine()
  whole = requests.Request((5, 6), max_new_tokens=12, has_steps=True)
  handle = engine.submit(whole)
  while engine.step():
    pass
  made = handle.result(0)
  pieces = handle.take()
  assert [t for piece in pieces for t in piece.tokens] == made.tokens
  assert ''.join(piece.text for piece in pieces) == made.text


def test_steps_are_true_or_false(client):
  answer = _post(client, stream_options={'include_steps': 1})
  assert answer.status_code == 400
  assert 'include_steps is 1; accepted' in answer.json()['error']['message']


def test_the_tree(client):
  key = {'Authorization': 'Bearer k'}
  assert client.get('/v1/specstream/tree').status_code == 401
  tree = serving_models.TREE
  assert client.get('/v1/specstream/tree', headers=key).json() == {
    'kind': 'best_first',
    'num_nodes': tree.num_nodes,
    'depth': tree.depth,
    'parents': None,
  }


def test_the_parents_of_a_tree_of_one_shape():
  cfg = config.TreeConfig('full', depth=2, branching=2)
  found = page.tree(streams.Streams(cfg, 2))
  assert found['parents'] == [0, 0, 0, 1, 1, 2, 2]
  assert (found['num_nodes'], found['depth']) == (7, 2)


def test_the_page_needs_no_key_and_nothing_from_outside(client):
  answer = client.get('/')
  assert answer.status_code == 200 and answer.text == page.text()
  assert answer.headers['content-type'].startswith('text/html')
  policy = answer.headers['content-security-policy']
  assert policy.startswith("default-src 'self';")
  links = re.findall(r'https?://[^\'"\s]+', answer.text)
  assert links == ['http://www.w3.org/2000/svg']  # the name of a namespace
  assert 'localStorage' not in answer.text and 'cookie' not in answer.text
