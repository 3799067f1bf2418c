# SPDX-License-Identifier: Apache-2.0
"""The queue, the slots and the ends of requests."""

import dataclasses
import threading

import pytest
import serving_models

from specstream_jax import config, memory
from specstream_jax.config import serving
from specstream_jax.serving import engine as engine_lib, requests

CFG = serving_models.CFG
ENDLESS = config.SamplingConfig(ignore_eos=True)
PROMPT = (10, 20, 30)


@pytest.fixture
def engine():
  """One that is idle, before and after."""
  made = serving_models.engine()
  assert not made.step()
  yield made
  while made.step():
    pass
  assert made.stats().running == made.stats().waiting == 0


def _ask(**values):
  values = {
    'prompt': PROMPT,
    'max_new_tokens': 20,
    'sampling': ENDLESS,
  } | values
  return requests.Request(**values)


def _finish(engine, *handles):
  while engine.step():
    pass
  return [handle.result(0) for handle in handles]


def test_pieces_are_the_completion(engine):
  handle = engine.submit(_ask())
  [made] = _finish(engine, handle)
  pieces = list(handle)
  assert [t for piece in pieces for t in piece.tokens] == made.tokens
  assert ''.join(piece.text for piece in pieces) == made.text
  assert len(made.tokens) == 20 and made.finish_reason == 'length'
  assert made.text == engine.model.decode_text(
    made.tokens, PROMPT, ignore_eos=True
  )
  metrics = made.metrics
  assert metrics.num_prompt_tokens == 3 and metrics.num_new_tokens == 20
  assert metrics.num_calls + metrics.num_accepted == 19
  assert metrics.waited <= metrics.first_token <= metrics.total
  # The base has no drafts.
  assert metrics.num_plain_calls == metrics.num_calls
  assert sum(metrics.histogram(engine.path_length)) == 0


def test_metrics_by_hand():
  made = requests.Metrics(5, 9, (2, 0, 3), 7, 0.0, 0.1, 0.2)
  assert (made.num_calls, made.num_accepted, made.num_drafted) == (3, 5, 21)
  assert made.mean_acceptance_length == 1 + 5 / 3
  assert made.acceptance_rate == 5 / 21
  assert made.histogram(4) == [1, 0, 1, 1]
  plain = dataclasses.replace(made, num_plain_calls=1)
  assert (plain.num_calls, plain.num_drafted) == (3, 14)
  assert plain.mean_acceptance_length == 1 + 5 / 2
  assert plain.histogram(4) == [0, 0, 1, 1]
  nothing = requests.Metrics(5, 1, (), 0, 0.0, 0.1, 0.2)
  assert nothing.mean_acceptance_length == nothing.acceptance_rate == 0.0
  assert nothing.histogram(3) == [0, 0, 0]


def test_a_stop_text_ends_before_it_and_frees_the_slot(engine):
  [whole] = _finish(engine, engine.submit(_ask()))
  assert len(whole.text) > 12
  stop = whole.text[6:9]
  [made] = _finish(engine, engine.submit(_ask(stop=('never there', stop))))
  assert made.text == whole.text[: whole.text.index(stop)]
  assert made.finish_reason == 'stop'
  count = len(made.tokens)
  assert made.tokens == whole.tokens[:count] and count < 20
  metrics = made.metrics
  assert metrics.num_calls + metrics.num_accepted == count - 1


def test_a_stop_id_ends_on_the_device(engine):
  [whole] = _finish(engine, engine.submit(_ask()))
  token = whole.tokens[5]
  [made] = _finish(engine, engine.submit(_ask(stop_ids=(token,))))
  count = whole.tokens.index(token)
  assert made.tokens == whole.tokens[: count + 1]
  assert made.finish_reason == 'stop'
  assert made.text == engine.model.decode_text(
    whole.tokens[:count], PROMPT, ignore_eos=True
  )


def test_the_text_of_a_special_token_is_a_stop(engine):
  bias = config.SamplingConfig(logit_bias={0: 1000.0}, ignore_eos=True)
  [made] = _finish(engine, engine.submit(_ask(stop=('<eos>',), sampling=bias)))
  assert (made.tokens, made.text, made.finish_reason) == ([0], '', 'stop')


def test_a_cancelled_row_leaves_within_a_quantum(engine):
  handles = [engine.submit(_ask(max_new_tokens=32)) for _ in range(3)]
  engine.step()
  while engine.stats().running < 2:
    engine.step()
  assert engine.stats().waiting == 1
  handles[0].cancel()
  engine.step()
  assert handles[0].is_done
  assert engine.stats().waiting == 0
  done = _finish(engine, *handles)
  assert [made.finish_reason for made in done] == [
    'cancelled', 'length', 'length'
  ]  # fmt: skip
  assert done[1].tokens == done[2].tokens
  assert done[0].tokens == done[1].tokens[: len(done[0].tokens)]
  assert 0 < len(done[0].tokens) < 32


def test_what_waits_or_is_read_can_be_cancelled_or_late(engine):
  long = tuple(range(1, 30))
  busy = [engine.submit(_ask()), engine.submit(_ask(prompt=long))]
  engine.step()
  engine.step()
  assert engine.stats().reading == 1
  late = engine.submit(_ask(timeout=0.0))
  waiting = engine.submit(_ask())
  waiting.cancel()
  busy[1].cancel()
  engine.step()
  assert [h.result(0).finish_reason for h in (late, waiting, busy[1])] == [
    'timeout', 'cancelled', 'cancelled'
  ]  # fmt: skip
  assert late.result().tokens == [] and late.result().text == ''
  assert late.result().metrics.first_token is None
  [made] = _finish(engine, busy[0])
  assert made.finish_reason == 'length'


def test_a_long_prompt_holds_rows_up_by_a_chunk_a_quantum(engine):
  engine.submit(_ask(max_new_tokens=32))
  engine.step()
  running = next(iter(engine._rows.values()))
  engine.submit(_ask(prompt=tuple(range(101, 130))))
  seen = []
  while engine.stats().running < 2:
    before = running.num_seen
    engine.step()
    seen.append(running.num_seen - before)
  # Four chunks, and a quantum after each of them.
  assert len(seen) == 4 and min(seen) >= CFG.quantum


def test_a_full_queue_refuses_and_says_when_to_come_back(engine):
  # Two to decode, and three to wait.
  handles = [engine.submit(_ask(max_new_tokens=1)) for _ in range(5)]
  with pytest.raises(requests.RefusedError, match='5 requests wait') as error:
    engine.submit(_ask())
  assert error.value.retry_after >= 1
  assert [len(made.tokens) for made in _finish(engine, *handles)] == [1] * 5
  _finish(engine, engine.submit(_ask(max_new_tokens=1)))


def test_what_is_asked_together_is_taken_together_or_not_at_all(engine):
  one = _ask(max_new_tokens=1)
  taken = engine.submit_all([one] * 3)
  with pytest.raises(requests.RefusedError, match='no room for 3 more; try'):
    engine.submit_all([one] * 3)
  # What was refused stands in nobody's way.
  taken += engine.submit_all([one] * 2)
  bad = _ask(prompt=(999,))
  with pytest.raises(ValueError, match='the prompt: token 999'):
    engine.submit_all([one, bad])
  _finish(engine, *taken)
  with pytest.raises(
    ValueError,
    match='6 texts are asked for at once; accepted: at most 5, as 2 decode '
    'together and 3 may wait; ask for fewer',
  ):
    engine.submit_all([one] * 6)
  _finish(engine, *engine.submit_all([one] * 5))


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'prompt': ()}, 'the prompt is empty'),
    ({'prompt': (999,)}, 'the prompt: token 999 has'),
    ({'prompt': 'text'}, "prompt is the text 'text'; accepted"),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0; it must be'),
    ({'max_new_tokens': 33}, 'max_new_tokens is 33; accepted: 1 to 32'),
    (
      {'prompt': (1,) * 40, 'max_new_tokens': 20},
      'the prompt has 40 tokens and 20 new ones are asked for, which with a '
      'draft tree of 6 come to 66 positions, but there are 64 for each',
    ),
    ({'prompt': (1,) * 60, 'max_new_tokens': None}, 'has 60 tokens and 1 new'),
    ({'seed': 2**40}, 'seed is 1099511627776; it must'),
    ({'stop': ('',)}, 'an entry of stop is empty'),
    ({'stop': ('x',) * 65}, 'stop has 65 texts; accepted: at most 64'),
    ({'stop': ('ab', 'x' * 999)}, 'stop texts come to 1001 bytes; accepted'),
    ({'stop_ids': (1, 2, 3, 4)}, '4 token ids would end .* at most 3'),
    ({'stop_ids': (999,)}, 'stop_ids: token 999 has'),
    ({'timeout': -1.0}, r'timeout is -1\.0; it must be'),
    ({'adapter': 'x'}, "no adapter 'x'; loaded: 'both', 'free'"),
    (
      {'sampling': config.SamplingConfig(min_new_tokens=21)},
      'min_new_tokens is 21 but at most 20 new tokens',
    ),
    (
      {'sampling': config.SamplingConfig(logit_bias={999: 1.0})},
      'logit_bias names token id 999',
    ),
  ],
)
def test_requests_that_are_refused(values, message, engine):
  with pytest.raises(ValueError, match=message):
    engine.submit(_ask(**values))


def test_without_a_limit_a_request_takes_what_there_is(engine):
  handles = [
    engine.submit(_ask(max_new_tokens=None)),
    engine.submit(_ask(max_new_tokens=None, prompt=(1,) * 40)),
  ]
  done = _finish(engine, *handles)
  assert [len(made.tokens) for made in done] == [32, 64 - 6 - 40]


def test_a_thread_serves_many_and_drains():
  engine = serving_models.engine()
  engine.start()
  [want] = [engine.submit(_ask()).result(120).tokens]
  got = []

  def client():
    while True:
      try:
        handle = engine.submit(_ask())
        break
      except requests.RefusedError:
        continue
    got.append([t for piece in handle for t in piece.tokens])

  clients = [threading.Thread(target=client) for _ in range(6)]
  for one in clients:
    one.start()
  for one in clients:
    one.join(120)
  assert got == [want] * 6
  last = engine.submit(_ask())
  assert engine.close(120)
  assert last.result(0).tokens == want
  with pytest.raises(requests.RefusedError, match='the engine is closing'):
    engine.submit(_ask())


def test_a_failure_reaches_everybody(monkeypatch):
  engine = serving_models.engine()
  monkeypatch.setattr(threading, 'excepthook', lambda args: None)
  monkeypatch.setattr(engine, '_decode', lambda: 1 // 0)
  handle = engine.submit(_ask())
  engine.start()
  with pytest.raises(RuntimeError, match='no completion: integer division'):
    handle.result(120)
  with pytest.raises(RuntimeError, match='no completion'):
    list(handle)
  engine._thread.join(120)
  with pytest.raises(requests.RefusedError, match='engine has failed: integer'):
    engine.submit(_ask())
  assert not engine.close(120)


def test_closing_in_a_hurry_gives_up():
  engine = serving_models.engine()
  handles = [engine.submit(_ask(max_new_tokens=32)) for _ in range(3)]
  is_in, go_on = threading.Event(), threading.Event()
  decode = engine._decode

  def slow():
    is_in.set()
    go_on.wait(120)
    decode()

  engine._decode = slow
  engine.start()
  is_in.wait(120)
  threading.Timer(0.3, go_on.set).start()
  assert not engine.close(0.05)
  with pytest.raises(requests.RefusedError, match='the engine was closed'):
    handles[2].result(0)
  with pytest.raises(TimeoutError, match='not done after 0 seconds'):
    requests.Handle(_ask()).result(0)


def test_what_does_not_fit_is_said_before_anything_compiles(monkeypatch):
  monkeypatch.setattr(memory, 'available', lambda device: 1000)
  cfg = dataclasses.replace(CFG, batch_sizes=(1, 2))
  # Two slots, the one that they grow from, and the one that is read.
  message = (
    r'values of 5 slots of 64 positions, 256\.0 MB of shared prefixes and '
  )
  with pytest.raises(memory.OutOfMemoryError, match=message):
    engine_lib.Engine(serving_models.base(), cfg)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'num_slots': 0}, 'EngineConfig.num_slots is 0; it must be'),
    ({'cache_length': 100}, 'cache_length is 100; it must be a multiple of'),
    ({'max_new_tokens': 1024}, 'max_new_tokens is 1024; it must be less than'),
    ({'schedule': 'x'}, "schedule is 'x'; accepted"),
    ({'max_lora_rank': -1}, 'max_lora_rank is -1; it must be'),
    ({'prefix_cache_mb': -1}, 'prefix_cache_mb is -1; it must be'),
    ({'max_drafting_rows': -1}, 'max_drafting_rows is -1; it must be'),
    (
      {'batch_sizes': (1, 4)},
      r'batch_sizes is \(1, 4\); accepted: ascending .*num_slots, which is 8',
    ),
    ({'batch_sizes': (4, 2, 8)}, r'batch_sizes is \(4, 2, 8\); accepted'),
  ],
)
def test_configs_that_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    serving.EngineConfig(**values)


@pytest.mark.slow
def test_it_says_what_compiles():
  said = []
  cfg = dataclasses.replace(serving_models.CFG, batch_sizes=(1, 2))
  engine_lib.Engine(
    serving_models.base(),
    cfg,
    adapters=serving_models.kinds(),
    tell=lambda number, total: said.append((number, total)),
  )
  # A chunk, the last chunk, and steps: two sizes, greedy or not.
  assert said == [(number, 6) for number in range(1, 7)]
