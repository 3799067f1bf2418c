# SPDX-License-Identifier: Apache-2.0
"""What /metrics says of requests, by hand."""

import dataclasses

from prometheus_client import parser
import pytest

from specstream_jax.decoding import prefixes
from specstream_jax.serving import engine, measures, requests

IDLE = engine.Stats(0, 0, 0, 4, {}, 0, prefixes.Counts(0, 0, 0, 0, 0), 1, False)
RUNS = dataclasses.replace(
  IDLE, running_by={'': 1, 'one': 2}, waiting_by={'one': 2, 'two': 1}
)


def _values(made, now=IDLE):
  """Samples by their name and labels other than the model."""
  found = {}
  for family in parser.text_string_to_metric_families(made.text(now).decode()):
    for one in family.samples:
      labels = dict(one.labels)
      key = one.name.removeprefix('vllm:'), labels.pop('model_name')
      found[*key, *labels.values()] = one.value
  return found


def test_what_a_request_came_to():
  made = measures.Measures('base')
  cost = requests.Metrics(
    5, 9, (2, 0, 3, 0), 7, 0.5, 1.0, 5.0, num_cached_tokens=3, num_plain_calls=1
  )
  made.add('one', requests.Completion([], None, 'stop', cost))
  made.add('one', requests.Completion([], None, 'length', cost))
  found = _values(made)
  want = {
    'prompt_tokens': 5,
    'generation_tokens': 9,
    'prefix_cache_queries': 5,
    'prefix_cache_hits': 3,
    'spec_decode_num_drafts': 3,
    'spec_decode_num_draft_tokens': 21,
    'spec_decode_num_accepted_tokens': 5,
  }
  for name, value in want.items():
    assert found[f'{name}_total', 'one'] == 2 * value, name
  for reason in ('stop', 'length'):
    assert found['request_success_total', 'one', reason] == 1
  # Bounds that a slow request does not leave.
  buckets = [
    float(key[2])
    for key in found
    if key[:2] == ('e2e_request_latency_seconds_bucket', 'one')
  ]
  assert buckets[0] == 0.001 and buckets[-2:] == [2000.0, float('inf')]
  assert found['e2e_request_latency_seconds_bucket', 'one', '5.0'] == 2
  assert found['e2e_request_latency_seconds_bucket', 'one', '2.0'] == 0
  name = 'spec_decode_num_accepted_tokens_per_pos_total'
  places = [found[name, 'one', str(place)] for place in range(3)]
  assert places == [4, 4, 2] and (name, 'one', '3') not in found
  seconds = {
    'request_queue_time': 0.5,
    'time_to_first_token': 1.0,
    'time_per_output_token': 4 / 8,
    'e2e_request_latency': 5.0,
  }
  for name, value in seconds.items():
    assert found[f'{name}_seconds_sum', 'one'] == 2 * value, name
    assert found[f'{name}_seconds_count', 'one'] == 2


def test_a_token_alone_has_none_after_it():
  made = measures.Measures('base')
  one = requests.Metrics(5, 1, (), 0, 0.0, 1.0, 1.0)
  made.add('one', requests.Completion([0], None, 'eos', one))
  none = requests.Metrics(5, 0, (), 0, 0.25, None, 1.0)
  made.add('none', requests.Completion([], None, 'timeout', none))
  found = _values(made)
  assert found['time_to_first_token_seconds_count', 'one'] == 1
  assert ('time_per_output_token_seconds_count', 'one') not in found
  assert ('time_to_first_token_seconds_count', 'none') not in found
  assert found['request_queue_time_seconds_sum', 'none'] == 0.25


@pytest.mark.parametrize(
  ('reason', 'name'),
  [
    ('eos', 'stop'),
    ('stop', 'stop'),
    ('length', 'length'),
    ('cache', 'length'),
    ('cancelled', 'abort'),
    ('timeout', 'abort'),
    ('not_finite', 'error'),
    (None, 'abort'),
  ],
)
def test_ends_are_named_as_elsewhere(reason, name):
  made = measures.Measures('base')
  cost = requests.Metrics(5, 1, (), 0, 0.0, 1.0, 1.0)
  one = requests.Completion([0], None, reason, cost) if reason else None
  made.add('one', one)
  found = _values(made)
  ends = [key[2] for key in found if key[0] == 'request_success_total']
  assert ends == [name]


def test_what_the_engine_is_doing():
  made = measures.Measures('base')
  found = _values(made, RUNS)
  for name, running, waiting in (('base', 1, 0), ('one', 2, 2), ('two', 0, 1)):
    assert found['num_requests_running', name] == running
    assert found['num_requests_waiting', name] == waiting
    assert found['kv_cache_usage_perc', name] == running / 4
  found = _values(made, IDLE)
  for name in ('base', 'one', 'two'):
    assert found['num_requests_running', name] == 0
