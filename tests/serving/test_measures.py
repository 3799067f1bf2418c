# SPDX-License-Identifier: Apache-2.0
"""What /metrics says of requests, by hand."""

from prometheus_client import parser

from specstream_jax.decoding import prefixes
from specstream_jax.serving import engine, measures, requests

IDLE = engine.Stats(0, 0, 0, 4, {}, 0, prefixes.Counts(0, 0, 0, 0, 0), 1, False)
RUNS = engine.Stats(3, 1, 2, 4, {}, 0, prefixes.Counts(0, 0, 0, 0, 0), 4, True)


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


def test_what_the_engine_is_doing():
  made = measures.Measures('base')
  found = _values(made, RUNS)
  assert found['num_requests_running', 'base'] == 3
  assert found['num_requests_waiting', 'base'] == 3
  assert found['kv_cache_usage_perc', 'base'] == 0.75
