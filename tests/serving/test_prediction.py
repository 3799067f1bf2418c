# SPDX-License-Identifier: Apache-2.0
"""Rows that copy, and what a client predicts of the answer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import serving_models
from starlette import testclient

from specstream_jax.serving import (
  admission,
  bodies,
  engine as engine_lib,
  http,
  payloads,
  protocol,
  requests,
)

CFG = dataclasses.replace(serving_models.CFG, max_waiting=20, prefix_cache_mb=0)
OPTIONS = http.Options('tiny', shutdown_timeout=5)
NAMES = ('', 'plain', 'tuned')


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def _engine():
  kinds = serving_models.kinds()
  adapters = {name: kinds[name] for name in NAMES if name}
  model = serving_models.with_template(serving_models.base())
  return engine_lib.Engine(model, CFG, drafter='mix', adapters=adapters)


def _run(asked):
  handles = [_engine().submit(request) for request in asked]
  while _engine().step():
    pass
  return [handle.result(0) for handle in handles]


def _asked():
  rng = np.random.default_rng(3)
  return [
    requests.Request(
      tuple(rng.integers(1, 257, 7).tolist()), name, 24, has_drafts=False
    )
    for name in NAMES
  ]


@pytest.mark.slow
def test_rows_with_streams_and_without_copy_their_predictions():
  plain = _run(_asked())
  assert not any(one.metrics.num_accepted for one in plain)
  drafting = [dataclasses.replace(one, has_drafts=True) for one in _asked()]
  count = _engine().stats().num_compilations
  # Of one of them a wrong prediction, which costs nothing but calls.
  guesses = [one.tokens for one in plain[:2]] + [plain[0].tokens[::-1]]
  predicting = [
    dataclasses.replace(one, prediction=tuple(guess))
    for one, guess in zip(drafting, guesses)
  ]
  made = _run([*drafting, *predicting])
  assert _engine().stats().num_compilations == count
  for one, want in zip(made, [*plain, *plain], strict=True):
    assert one.tokens == want.tokens
  without, right = made[0].metrics, made[3].metrics
  assert right.num_calls < without.num_calls
  # The prompt's pass gives a token, and each call one that is no draft.
  left, size = right.num_new_tokens - 1, _engine().drafter.size
  assert right.num_calls == -(-left // size)
  assert right.num_foreseen == right.num_accepted and not without.num_foreseen


@pytest.mark.slow
def test_no_row_has_more_than_there_is_room_for():
  room, request = CFG.max_new_tokens, _asked()[0]
  with pytest.raises(ValueError, match=r'prediction has 33 tokens.*at most 32'):
    _engine().submit(dataclasses.replace(request, prediction=(1,) * (room + 1)))
  with pytest.raises(ValueError, match='prediction'):
    _engine().submit(dataclasses.replace(request, prediction=(999,)))


def test_who_copies_nothing_takes_no_prediction():
  request = dataclasses.replace(_asked()[0], prediction=(1,))
  with pytest.raises(ValueError, match='prediction is not supported'):
    admission.check(request, serving_models.base(), 24, 0)


def _ask(client, path, **more):
  asked = {'prompt': 'ab'} if path == 'completions' else {}
  if not asked:
    asked = {'messages': [{'role': 'user', 'content': 'ab'}]}
  body = {'model': 'tiny', 'max_tokens': 6, **asked, **more}
  return client.post(f'/v1/{path}', json=body)


@pytest.mark.slow
def test_predictions_of_a_client():
  """The last test, as the server closes the engine."""
  with testclient.TestClient(http.Server(_engine(), OPTIONS).app()) as client:
    for path in ('completions', 'chat/completions'):
      _check_answers(client, path)


def _check_answers(client, path):
  """With a prediction and without."""
  parts = [{'type': 'text', 'text': 'he'}, {'type': 'text', 'text': 'llo'}]
  prediction = {'type': 'content', 'content': parts}
  answers = [
    _ask(client, path, temperature=0, prediction=given).json()
    for given in (None, prediction)
  ]
  choices = [answer['choices'] for answer in answers]
  assert choices[0] == choices[1]
  usage = [answer['usage'] for answer in answers]
  assert 'completion_tokens_details' not in usage[0]
  counts = usage[1]['completion_tokens_details']
  assert sum(counts.values()) == 5
  for wrong in ('he', {'type': 'text', 'content': 'he'}, {'content': 1}):
    error = _ask(client, path, prediction=wrong).json()['error']
    assert error['code'] == 400 and error['param'] == 'prediction'


BODY = {'model': 'tiny', 'prompt': 'ab', 'n': 2}


def test_bodies_with_predictions():
  model, read = serving_models.base(), protocol.read_completion
  parts = [{'type': 'text', 'text': 'he'}, {'type': 'text', 'text': 'llo'}]
  for content in (parts, 'hello'):
    asked = {'prediction': {'type': 'content', 'content': content}}
    for request in read(BODY | asked, model, {'tiny': ''}).requests:
      assert list(request.prediction) == model.encode('hello')
  for wrong in ('he', {'type': 'content'}, {'type': 'text', 'content': 'he'}):
    with pytest.raises(bodies.ApiError, match='prediction is') as error:
      read(BODY | {'prediction': wrong}, model, {'tiny': ''})
    assert error.value.param == 'prediction'


def test_usage_counts_what_was_predicted():
  model = serving_models.base()
  call = protocol.read_completion(BODY, model, {'tiny': ''})
  shape = payloads.Shape(payloads.TEXT, call, 4, model)
  cost = requests.Metrics(2, 9, (3, 2, 1), 5, 0.0, 0.0, 0.0)
  predicted = dataclasses.replace(cost, num_predicted=7, num_foreseen=4)
  made = [requests.Completion([1], '', 'eos', x) for x in (cost, predicted)]
  assert shape.whole(made)['usage']['completion_tokens_details'] == {
    'accepted_prediction_tokens': 4,
    'rejected_prediction_tokens': 3,
  }
  assert 'completion_tokens_details' not in shape.whole(made[:1])['usage']
