# SPDX-License-Identifier: Apache-2.0
"""Streams that tell what each call added, and the page that shows it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import serving_models
from starlette import testclient

from specstream_jax import config
from specstream_jax.decoding import seen
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


@pytest.mark.parametrize('name', ['tuned', 'free'])
def test_a_step_shows_its_tree_and_the_branch_that_was_accepted(client, name):
  trees = {'include_trees': True}
  events = _events(_post(client, model=name, stream_options=trees))
  texts = lambda found: [event['choices'][0]['text'] for event in found]
  cost = [e['metrics']['speculative_decoding'] for e in events[:-1]]
  steps = {'include_steps': True}
  plain = _events(_post(client, model=name, stream_options=steps))
  assert texts(events) == texts(plain)
  assert not any('tree' in json.dumps(event) for event in plain)
  first, *calls = (one for one in cost if one['num_tokens'])
  assert 'tree' not in first
  tree = serving_models.TREE
  for call in calls:
    found = call['tree']
    parents, path = found['parents'], found['path']
    assert len(parents) == len(found['tokens']) == len(found['texts'])
    assert 1 < len(parents) <= tree.num_nodes and not parents[0]
    assert all(above < node for node, above in enumerate(parents[1:], 1))
    assert len(path) == call['num_tokens'] - 1
    assert [parents[node] for node in path] == [0, *path][: len(path)]
  assert any(call['tree']['path'] for call in calls)


@pytest.mark.parametrize('temperature', [0.0, 1.3])
def test_the_tokens_of_a_branch_are_those_of_the_answer(temperature):
  engine, made = serving_models.engine(), []
  for has_trees in (True, False):
    asked = requests.Request(
      (5, 6),
      'tuned',
      14,
      config.SamplingConfig(temperature, ignore_eos=True),
      has_steps=True,
      has_trees=has_trees,
    )
    # Beside somebody who did not ask.
    beside = dataclasses.replace(asked, prompt=(7, 8, 9), has_trees=False)
    handles = [engine.submit(asked), engine.submit(beside)]
    while engine.step():
      pass
    made.append([(handle.take(), handle.result(0)) for handle in handles])
  assert [x.tokens for _, x in made[0]] == [x.tokens for _, x in made[1]]
  [(pieces, one), (others, _)], _ = made
  assert not any(piece.tree for piece in others)
  last, lengths = pieces[0].tokens[-1], []
  for number, piece in enumerate(pieces[1:], 2):
    tree = piece.tree
    assert tree.tokens[0] == last
    path = tree.path(piece.tokens[:-1])
    assert [tree.tokens[node] for node in path] == piece.tokens[:-1]
    # What was drawn at its end is no draft, but where the limit cut it.
    end = path[-1] if path else 0
    if number < len(pieces):
      assert not any(
        (above, token) == (end, piece.tokens[-1])
        for above, token in zip(tree.parents[1:], tree.tokens[1:], strict=True)
      )
    last = piece.tokens[-1]
    lengths.append(len(path))
  assert tuple(lengths) == one.metrics.accept_lengths and any(lengths)


def test_a_tree_without_unused_nodes_and_a_path_in_it():
  drafts = seen.Drafts(
    np.array([[9] * 6, [5, 7, -1, 3, 7, 3]]),
    np.array([[0] * 6, [0, 0, 0, 0, 3, 4]]),
  )
  tree = drafts.of_slot(1)
  assert tree == ([5, 7, 3, 7, 3], [0, 0, 0, 2, 3])
  assert tree.path([3, 7, 3, 4]) == [2, 3, 4]
  assert tree.path([7, 3]) == [1] and tree.path([4, 7]) == []


def test_who_asks_for_trees_asks_for_steps():
  with pytest.raises(
    ValueError, match='has_trees is True but has_steps is not'
  ):
    requests.Request((1,), has_trees=True)


def test_a_row_without_drafts_has_no_branch(client):
  trees = {'include_trees': True}
  events = _events(_post(client, drafts=False, stream_options=trees))
  cost = [e['metrics']['speculative_decoding'] for e in events[:-1]]
  shown = [one['tree'] for one in cost if 'tree' in one]
  assert shown and all(t['parents'] == [0] and not t['path'] for t in shown)


def test_the_page_needs_no_key_and_nothing_from_outside(client):
  answer = client.get('/')
  assert answer.status_code == 200 and answer.text == page.text()
  assert answer.headers['content-type'].startswith('text/html')
  policy = answer.headers['content-security-policy']
  assert policy.startswith("default-src 'self';")
  links = re.findall(r'https?://[^\'"\s]+', answer.text)
  assert links == ['http://www.w3.org/2000/svg']  # the name of a namespace
  assert 'localStorage' not in answer.text and 'cookie' not in answer.text
