# SPDX-License-Identifier: Apache-2.0
"""What /metrics says, in Prometheus' format and under vLLM's names.

| name | kind | what |
|---|---|---|
| vllm:num_requests_running, vllm:num_requests_waiting | gauge | now |
| vllm:kv_cache_usage_perc | gauge | share of all slots that are taken |
| vllm:prompt_tokens, vllm:generation_tokens | counter | tokens in and out |
| vllm:prefix_cache_queries | counter | tokens of prompts |
| vllm:prefix_cache_hits | counter | of them, those that were not read again |
| vllm:request_success | counter | requests by finished_reason: stop, length,
abort (given up by the client, by its timeout or at the end), error |
| vllm:request_queue_time_seconds | histogram | in the queue |
| vllm:time_to_first_token_seconds | histogram | from the request on |
| vllm:time_per_output_token_seconds | histogram | mean of each request |
| vllm:e2e_request_latency_seconds | histogram | whole requests |
| vllm:spec_decode_num_drafts | counter | calls that verified drafts |
| vllm:spec_decode_num_draft_tokens | counter | drafted tokens |
| vllm:spec_decode_num_accepted_tokens | counter | accepted ones |
| vllm:spec_decode_num_accepted_tokens_per_pos | counter | by position |

Each has the label model_name, which is the adapter's where there is one, so that
the sum over models is the server's; counters end in _total, as Prometheus has it.
Requests are counted when they end, whoever still waits for them.
"""

from collections.abc import Iterable
import itertools

import prometheus_client as prometheus

from specstream_jax.serving import engine as engine_lib, requests

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
# Ends as vLLM names them.
_REASONS = {'eos': 'stop', 'cache': 'length', 'not_finite': 'error'}
_REASONS |= {'cancelled': 'abort', 'timeout': 'abort'}
# From a token on a fast device to a request of half an hour, in seconds.
_BUCKETS = tuple(
  digit * 10.0**power
  for power, digit in itertools.product(range(-3, 4), (1, 2, 5))
  if digit * 10.0**power <= 2000
)


class Measures:
  """Counters of one server."""

  def __init__(self, base: str):
    """Counts nothing yet.

    Args:
      base: name of the base model in the API.
    """
    self._base, self._names = base, {base}
    self._registry = prometheus.CollectorRegistry()
    self._gauges = {
      name: self._make(prometheus.Gauge, name, text)
      for name, text in (
        ('num_requests_running', 'Rows that decode.'),
        ('num_requests_waiting', 'Requests in the queue.'),
        ('kv_cache_usage_perc', 'Share of the slots that are taken.'),
      )
    }
    self._counters = {
      name: self._make(prometheus.Counter, name, text)
      for name, text in (
        ('prompt_tokens', 'Tokens of prompts.'),
        ('generation_tokens', 'New tokens.'),
        ('prefix_cache_queries', 'Tokens of prompts that were looked up.'),
        ('prefix_cache_hits', 'Of them, tokens that were not read again.'),
        ('spec_decode_num_drafts', 'Calls that verified drafts.'),
        ('spec_decode_num_draft_tokens', 'Drafted tokens.'),
        ('spec_decode_num_accepted_tokens', 'Accepted draft tokens.'),
      )
    }
    self._seconds = {
      name: self._make(prometheus.Histogram, name, text, buckets=_BUCKETS)
      for name, text in (
        ('request_queue_time_seconds', 'In the queue.'),
        ('time_to_first_token_seconds', 'To the first token.'),
        ('time_per_output_token_seconds', 'A token after it, on average.'),
        ('e2e_request_latency_seconds', 'Whole requests.'),
      )
    }
    self._done = self._make(
      prometheus.Counter, 'request_success', 'Requests.', 'finished_reason'
    )
    self._by_place = self._make(
      prometheus.Counter,
      'spec_decode_num_accepted_tokens_per_pos',
      'Accepted draft tokens by place in the draft.',
      'position',
    )

  def _make(self, kind, name, text, *labels, **more):
    names = ('model_name', *labels)
    return kind(f'vllm:{name}', text, names, registry=self._registry, **more)

  def add(self, model: str, made: requests.Completion | None) -> None:
    """Counts a request that has ended.

    Args:
      model: its name in the API.
      made: what it came to; None if the engine ended before.
    """
    if made is None:
      self._done.labels(model_name=model, finished_reason='abort').inc()
      return
    cost, labels = made.metrics, {'model_name': model}
    for name, value in (
      ('prompt_tokens', cost.num_prompt_tokens),
      ('generation_tokens', cost.num_new_tokens),
      ('prefix_cache_queries', cost.num_prompt_tokens),
      ('prefix_cache_hits', cost.num_cached_tokens),
      (
        'spec_decode_num_drafts',
        cost.num_drafting_calls,
      ),
      ('spec_decode_num_draft_tokens', cost.num_drafted),
      ('spec_decode_num_accepted_tokens', cost.num_accepted),
    ):
      self._counters[name].labels(**labels).inc(value)
    reason = _REASONS.get(made.finish_reason, made.finish_reason)
    self._done.labels(finished_reason=reason, **labels).inc()
    for length in cost.accept_lengths:
      for place in range(length):
        self._by_place.labels(position=str(place), **labels).inc()
    seconds = {
      'request_queue_time_seconds': cost.waited,
      'e2e_request_latency_seconds': cost.total,
      'time_to_first_token_seconds': cost.first_token,
    }
    if cost.first_token is not None and cost.num_new_tokens > 1:
      rest = (cost.total - cost.first_token) / (cost.num_new_tokens - 1)
      seconds['time_per_output_token_seconds'] = rest
    for name, value in seconds.items():
      if value is not None:
        self._seconds[name].labels(**labels).observe(value)

  def text(self, now: engine_lib.Stats, adapters: Iterable[str] = ()) -> bytes:
    """All of it, for Prometheus.

    Args:
      now: what the engine is doing.
      adapters: that it serves.
    """
    # With those that have gone, whose gauges are to fall to 0.
    self._names |= {*adapters, *now.running_by, *now.waiting_by} - {''}
    for model in list(self._names):
      name = '' if model == self._base else model
      running = now.running_by.get(name, 0)
      for gauge, value in (
        ('num_requests_running', running),
        ('num_requests_waiting', now.waiting_by.get(name, 0)),
        ('kv_cache_usage_perc', running / now.num_slots),
      ):
        self._gauges[gauge].labels(model_name=model).set(value)
    return prometheus.generate_latest(self._registry)
