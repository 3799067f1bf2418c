# SPDX-License-Identifier: Apache-2.0
"""The API, against an engine of a tiny model."""

import asyncio
import dataclasses
import functools
import json
import threading

import numpy as np
import pytest
import serving_models
from starlette import testclient
import uvicorn

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.serving import http, listening, requests, shelf

JSON = {'Content-Type': 'application/json'}


@functools.cache
def _engine():
  made = serving_models.engine(max_waiting=8)
  made.model = serving_models.with_template(made.model)
  return made


def _read(path):
  if not path.endswith('later'):
    raise ValueError(f'{path!r} cannot be read')
  return serving_models.fine_tuned(seed=8)


@pytest.fixture(name='app', scope='module')
def _app():
  options = http.Options('tiny', max_body_bytes=3000, shutdown_timeout=5)
  given = {'later': '/secret/later', 'bad': '/secret/bad'}
  server = http.Server(_engine(), options, shelf.Shelf(_read, given))
  return server.app()


@pytest.fixture(scope='module')
def client(app):
  with testclient.TestClient(app) as made:
    yield made


@pytest.fixture(scope='module')
def openai_client(app, client):
  """The openai package, which talks to the same server through a port."""
  del client  # has started it
  why = "pip install 'specstream-jax[serve-test]'"
  openai = pytest.importorskip('openai', reason=why)
  cfg = uvicorn.Config(app, log_level='warning', lifespan='off')
  server = uvicorn.Server(cfg)
  with listening.listen('127.0.0.1', 0) as port:
    thread = threading.Thread(target=server.run, kwargs={'sockets': [port]})
    thread.start()
    url = f'http://127.0.0.1:{port.getsockname()[1]}/v1'
    yield openai.OpenAI(base_url=url, api_key='none', max_retries=0)
    server.should_exit = True
    thread.join(30)


def _ask(**values):
  return {
    'model': 'tuned',
    'prompt': 'ab',
    'max_tokens': 12,
    'temperature': 0,
    'ignore_eos': True,
  } | values


def _complete(client, **values):
  answer = client.post('/v1/completions', json=_ask(**values))
  assert answer.status_code == 200, answer.text
  return answer.json()


def _events(answer):
  lines = [line for line in answer.text.split('\n\n') if line]
  assert all(line.startswith('data: ') for line in lines)
  assert lines[-1] == 'data: [DONE]'
  return [json.loads(line.removeprefix('data: ')) for line in lines[:-1]]


def test_a_completion(client):
  made = _complete(client)
  assert made['object'] == 'text_completion' and made['model'] == 'tuned'
  [choice] = made['choices']
  assert choice['finish_reason'] == 'length' and choice['index'] == 0
  endless = config.SamplingConfig(ignore_eos=True)
  ids = tuple(_engine().model.encode('ab'))
  request = requests.Request(ids, 'tuned', 12, endless)
  want = _engine().submit(request).result(30)
  assert choice['text'] == want.text
  assert made['usage'] == {
    'prompt_tokens': 2, 'completion_tokens': 12, 'total_tokens': 14,
    'prompt_tokens_details': {'cached_tokens': 0},
  }  # fmt: skip
  drafting = made['metrics']['speculative_decoding']
  steps = drafting['num_spec_steps']
  assert steps + drafting['num_accepted_draft_tokens'] == 11
  assert sum(drafting['acceptance_histogram']) == steps
  assert drafting['mean_acceptance_length'] == 11 / steps
  assert drafting['num_draft_tokens'] == 5 * steps


def test_every_form_of_prompt_is_the_same_text(client):
  [one] = _complete(client)['choices']
  ids = _engine().model.encode('ab')
  made = _complete(client, prompt=['ab', 'ab'])['choices']
  assert [c['text'] for c in made] == [one['text']] * 2
  assert _complete(client, prompt=ids)['choices'] == [one]
  made = _complete(client, prompt=[ids, ids], n=2)
  assert [c['index'] for c in made['choices']] == [0, 1, 2, 3]
  assert {c['text'] for c in made['choices']} == {one['text']}
  assert made['usage']['prompt_tokens'] == 4


def test_choices_draw_apart_and_a_seed_draws_again(client):
  values = dict(temperature=1.5, seed=7, n=3)
  made = [c['text'] for c in _complete(client, **values)['choices']]
  assert len(set(made)) == 3
  assert made == [c['text'] for c in _complete(client, **values)['choices']]
  [later] = _complete(client, temperature=1.5, seed=8)['choices']
  assert later['text'] == made[1]
  [other] = _complete(client, temperature=1.5, seed=7, drafts=False)['choices']
  assert other['text'] == made[0]


def test_a_stream_is_the_whole(client):
  whole = _complete(client, n=2, temperature=1.0, seed=3)
  options = dict(stream=True, stream_options={'include_usage': True})
  answer = client.post(
    '/v1/completions', json=_ask(n=2, temperature=1.0, seed=3, **options)
  )
  assert answer.headers['content-type'].startswith('text/event-stream')
  events = _events(answer)
  texts, reasons = ['', ''], {}
  for event in events[:-1]:
    [choice] = event['choices']
    texts[choice['index']] += choice['text']
    if choice['finish_reason']:
      reasons[choice['index']] = choice['finish_reason']
      assert 'num_spec_steps' in event['metrics']['speculative_decoding']
  assert texts == [choice['text'] for choice in whole['choices']]
  assert reasons == {0: 'length', 1: 'length'}
  assert events[-1]['choices'] == [] and events[-1]['usage'] == whole['usage']
  assert len(events) > 4


def test_a_chat_goes_through_the_template(client):
  body = {
    'model': 'tuned',
    'messages': [
      {'role': 'system', 'content': 'x'},
      {'role': 'user', 'content': [{'type': 'text', 'text': 'ab'}]},
    ],
    'max_completion_tokens': 9,
    'temperature': 0,
    'ignore_eos': True,
    'response_format': {'type': 'text'},
  }
  made = client.post('/v1/chat/completions', json=body).json()
  assert made['object'] == 'chat.completion'
  [choice] = made['choices']
  assert choice['message']['role'] == 'assistant'
  said = '<system>x<user>ab<assistant>'
  [want] = _complete(client, prompt=said, max_tokens=9)['choices']
  assert choice['message']['content'] == want['text']
  events = _events(
    client.post('/v1/chat/completions', json=body | {'stream': True})
  )
  deltas = [event['choices'][0]['delta'] for event in events]
  assert deltas[0] == {'role': 'assistant', 'content': ''}
  assert ''.join(d.get('content', '') for d in deltas) == want['text']
  assert events[-1]['choices'][0]['finish_reason'] == 'length'


def test_who_wants_no_tool_is_told_of_none(client, monkeypatch):
  template = '{{ tools }}{{ messages[0].content }}'
  model = dataclasses.replace(_engine().model, chat_template=template)
  monkeypatch.setattr(_engine(), 'model', model)
  body = {
    'model': 'tuned',
    'messages': [{'role': 'user', 'content': 'ab'}],
    'max_tokens': 3,
    'temperature': 0,
  }
  tools = {'tools': [{'type': 'function'}]}
  count = lambda **more: client.post(
    '/v1/chat/completions', json=body | more
  ).json()['usage']['prompt_tokens']
  bare = count()
  assert count(**tools) == count(**tools, tool_choice='auto') > bare
  assert count(**tools, tool_choice='none') == bare


def test_an_adapter_that_went_after_the_body_was_read_is_no_model(client):
  server = http.Server(
    _Busy(requests.NoAdapterError("there is no adapter 'later'")),
    http.Options('tiny'),
  )
  answer = testclient.TestClient(server.app()).post(
    '/v1/completions', json=_ask()
  )
  assert answer.status_code == 404
  error = answer.json()['error']
  assert error['param'] == 'model' and error['type'] == 'not_found_error'


def test_stops_are_no_part_of_the_answer(client):
  text = _complete(client)['choices'][0]['text']
  stop = text[3:5]
  [made] = _complete(client, stop=stop)['choices']
  assert made['text'] == text[: text.index(stop)]
  assert made['finish_reason'] == 'stop'


@pytest.mark.parametrize('adapter', ['tuned', 'free', 'tiny'])
def test_logprobs_are_those_of_the_model(adapter, client):
  ask = functools.partial(
    _complete, client, model=adapter, prompt='abcdefghijk', logprobs=3
  )
  [made] = ask(max_tokens=20)['choices']
  # All in ASCII but for what the model says, which has a name for each byte.
  names = {_name(i): i for i in range(257)}
  tokens = [names[name] for name in made['logprobs']['tokens']]
  prompt = _engine().model.encode('abcdefghijk')
  logprobs = serving_models.forward(adapter)([*prompt, *tokens])[
    len(prompt) - 1 :
  ]
  own = logprobs[range(20), tokens]
  found = made['logprobs']
  np.testing.assert_allclose(found['token_logprobs'], own, atol=1e-5)
  for top, all_ in zip(found['top_logprobs'], logprobs):
    assert {_name(i) for i in np.argsort(-all_)[:3]} <= set(top)
  [plain] = ask(max_tokens=20, drafts=False)['choices']
  assert plain == made
  # Whatever drew them.
  [warm] = ask(max_tokens=20, temperature=2.0, seed=3, min_p=0.001)['choices']
  tokens = [names[name] for name in warm['logprobs']['tokens']]
  own = serving_models.forward(adapter)([*prompt, *tokens])[
    range(10, 30), tokens
  ]
  found = warm['logprobs']['token_logprobs']
  np.testing.assert_allclose(found, own, atol=1e-5)


def _name(token):
  """What a token of the tiny model is called."""
  if not token:
    return '<eos>'
  data = _engine().model.pieces.spell(token)
  return chr(data[0]) if data[0] < 128 else f'bytes:\\x{data[0]:02x}'


@pytest.mark.parametrize('new', [0, 1])
def test_a_prompt_can_be_scored_alone(new, client):
  text = 'abcdefghijklmnopq'
  values = dict(echo=True, logprobs=1, max_tokens=new)
  body = _complete(client, prompt=[text, 'ab'], **values)
  ids = _engine().model.encode(text)
  assert body['usage']['completion_tokens'] == 2 * new
  assert body['usage']['prompt_tokens'] == len(ids) + 2
  made, short = body['choices']
  assert made['text'].startswith(text) and short['text'].startswith('ab')
  found = made['logprobs']
  assert found['tokens'][: len(text)] == list(text)
  assert found['text_offset'][: len(text)] == list(range(len(text)))
  assert found['token_logprobs'][0] is found['top_logprobs'][0] is None
  count = len(found['token_logprobs'])
  assert count == len(ids) + new
  own = serving_models.forward('tuned')(ids)[range(len(ids) - 1), ids[1:]]
  np.testing.assert_allclose(
    found['token_logprobs'][1 : len(ids)], own, atol=1e-5
  )
  again = _complete(client, prompt=[ids], **values)['choices']
  assert again[0] == made


def test_an_echo_can_be_streamed_and_has_no_logprobs_unless_asked(client):
  [whole] = _complete(client, echo=True)['choices']
  assert whole['text'].startswith('ab') and whole['logprobs'] is None
  body = _ask(echo=True, stream=True)
  events = _events(client.post('/v1/completions', json=body))
  said = [event['choices'][0]['text'] for event in events]
  assert said[0] == 'ab' and ''.join(said) == whole['text']
  [one] = _complete(client, echo=True, max_tokens=0, prompt='a')['choices']
  assert one['text'] == 'a' and one['finish_reason'] == 'length'
  values = dict(echo=True, max_tokens=0, prompt='a', logprobs=1)
  [one] = _complete(client, **values)['choices']
  assert one['logprobs']['token_logprobs'] == [None]


@pytest.mark.parametrize('echo', [False, True])
def test_a_stream_has_the_logprobs_of_the_whole(client, echo):
  values = dict(logprobs=2, echo=echo, max_tokens=6, n=2)
  whole = _complete(client, **values)['choices']
  body = _ask(stream=True, **values)
  events = _events(client.post('/v1/completions', json=body))
  for index, want in enumerate(whole):
    own = [
      choice
      for event in events
      for choice in event['choices']
      if choice['index'] == index
    ]
    assert ''.join(choice['text'] for choice in own) == want['text']
    *before, last = own
    assert all(choice['logprobs'] is None for choice in before)
    assert last['finish_reason'] and last['logprobs'] == want['logprobs']


def test_a_streamed_chat_has_the_logprobs_of_the_whole(client):
  body = {
    'model': 'tuned',
    'messages': [{'role': 'user', 'content': 'ab'}],
    'max_tokens': 6,
    'temperature': 0,
    'ignore_eos': True,
    'logprobs': True,
    'top_logprobs': 1,
  }
  [want] = client.post('/v1/chat/completions', json=body).json()['choices']
  events = _events(
    client.post('/v1/chat/completions', json=body | {'stream': True})
  )
  found = [
    choice['logprobs'] for event in events for choice in event['choices']
  ]
  assert [one for one in found if one] == [want['logprobs']]
  assert len(want['logprobs']['content']) == 6


def test_tokens_of_a_prompt_that_was_read_before_are_counted(client):
  prompt = 'the same beginning, and longer than a chunk '
  for end, cached in (('a', 0), ('b', 40)):
    usage = _complete(client, prompt=prompt + end)['usage']
    assert usage['prompt_tokens_details'] == {'cached_tokens': cached}
  usage = _complete(client, prompt=['x', prompt + 'c'], n=2)['usage']
  assert usage['prompt_tokens_details'] == {'cached_tokens': 40}


def test_a_chat_has_logprobs(client):
  body = {
    'model': 'tuned',
    'messages': [{'role': 'user', 'content': 'ab'}],
    'max_tokens': 6,
    'temperature': 0,
    'ignore_eos': True,
    'logprobs': True,
    'top_logprobs': 2,
  }
  [made] = client.post('/v1/chat/completions', json=body).json()['choices']
  said = '<user>ab<assistant>'
  [want] = _complete(client, prompt=said, max_tokens=6, logprobs=2)['choices']
  content, want = made['logprobs']['content'], want['logprobs']
  assert [one['token'] for one in content] == want['tokens']
  assert [one['logprob'] for one in content] == want['token_logprobs']
  for one, top in zip(content, want['top_logprobs']):
    assert len(one['top_logprobs']) == 2
    # The greedy token is the best.
    assert one['top_logprobs'][0]['logprob'] == one['logprob']
    assert {t['token']: t['logprob'] for t in one['top_logprobs']} == top
  body |= {'top_logprobs': None}
  [made] = client.post('/v1/chat/completions', json=body).json()['choices']
  assert [one['top_logprobs'] for one in made['logprobs']['content']] == [
    []
  ] * 6


def test_models_version_health_and_metrics(client):
  data = client.get('/v1/models').json()['data']
  assert data[0]['id'] == 'tiny' and data[0]['parent'] is None
  assert [m['id'] for m in data[1:]] == ['both', 'free', 'plain', 'tuned']
  assert {m['parent'] for m in data[1:]} == {'tiny'}
  for entry in data:
    assert client.get(f'/v1/models/{entry["id"]}').json() == entry
  answer = client.get('/v1/models/x/y')
  assert answer.status_code == 404
  assert "no model 'x/y'" in answer.json()['error']['message']
  assert client.get('/version').json() == {'version': ss.__version__}
  assert client.get('/health').json() == {'status': 'ok'}
  before = _values(client)
  made = _complete(client)
  after = _values(client)
  grown = lambda name: after[name] - before.get(name, 0)
  labels = '{model_name="tuned"}'
  drafting = made['metrics']['speculative_decoding']
  assert grown(f'vllm:generation_tokens_total{labels}') == 12
  assert grown(f'vllm:prompt_tokens_total{labels}') == 2
  for name, key in (
    ('num_drafts', 'num_spec_steps'),
    ('num_draft_tokens', 'num_draft_tokens'),
    ('num_accepted_tokens', 'num_accepted_draft_tokens'),
  ):
    name = f'vllm:spec_decode_{name}_total{labels}'
    assert grown(name) == drafting[key]
  name = f'vllm:e2e_request_latency_seconds_count{labels}'
  assert grown(name) == 1
  for name in ('tiny', 'tuned'):
    assert after[f'vllm:num_requests_running{{model_name="{name}"}}'] == 0


def test_what_nobody_waits_for_any_more_is_counted(client):
  end = 'vllm:request_success_total{finished_reason="abort",model_name="tuned"}'
  tokens = 'vllm:prompt_tokens_total{model_name="tuned"}'
  before = _values(client)
  answer = client.post('/v1/completions', json=_ask(timeout=0, n=2))
  assert [c['finish_reason'] for c in answer.json()['choices']] == [
    'timeout'
  ] * 2
  after = _values(client)
  assert after[end] - before.get(end, 0) == 2
  assert after[tokens] - before.get(tokens, 0) == 4


@pytest.mark.parametrize('is_stream', [False, True])
def test_a_client_that_has_gone_is_counted(is_stream, app, client):
  end = 'vllm:request_success_total{finished_reason="abort",model_name="tuned"}'
  before = _values(client)
  body = json.dumps(_ask(max_tokens=32, n=4, stream=is_stream)).encode()
  parts = [{'type': 'http.request', 'body': body}, {'type': 'http.disconnect'}]

  async def receive():
    return parts.pop(0) if len(parts) > 1 else parts[0]

  async def send(message):
    del message

  headers = [(b'content-type', b'application/json')]
  path = '/v1/completions'
  scope = {'type': 'http', 'method': 'POST', 'path': path, 'headers': headers}
  asyncio.run(app(scope | {'query_string': b''}, receive, send))
  pause = threading.Event()
  for _ in range(400):
    after = _values(client)
    if after.get(end, 0) > before.get(end, 0):
      break
    pause.wait(0.05)
  assert after[end] > before.get(end, 0)


def test_an_adapter_comes_and_goes_while_others_decode(client):
  ask = functools.partial(_complete, client, max_tokens=32)
  [want] = ask(model='free')['choices']
  handle = _engine().submit(
    requests.Request(
      tuple(_engine().model.encode('ab')),
      'free',
      32,
      config.SamplingConfig(ignore_eos=True),
    )
  )
  answer = client.post('/v1/load_lora_adapter', json={'lora_name': 'later'})
  assert answer.status_code == 200, answer.text
  assert answer.text == "Success: LoRA adapter 'later' added successfully."
  assert handle.result(30).text == want['text']
  programs = _engine().stats().num_compilations
  [made] = ask(model='later')['choices']
  assert made['text'] not in (want['text'], ask()['choices'][0]['text'])
  assert _engine().stats().num_compilations == programs
  names = [m['id'] for m in client.get('/v1/models').json()['data']]
  assert 'later' in names
  for path, status in (('load', 400), ('unload', 200), ('unload', 404)):
    answer = client.post(
      f'/v1/{path}_lora_adapter', json={'lora_name': 'later'}
    )
    assert answer.status_code == status, answer.text
  answer = client.post('/v1/completions', json=_ask(model='later'))
  assert answer.status_code == 404


def test_adapters_that_cannot_be_loaded_say_so_without_a_path(client):
  answer = client.post('/v1/load_lora_adapter', json={'lora_name': 'bad'})
  assert answer.status_code == 400
  assert answer.json()['error']['message'] == "'bad' cannot be read"


def test_nothing_is_loaded_unless_it_is_allowed():
  server = http.Server(_engine(), http.Options('tiny'))
  client = testclient.TestClient(server.app())
  for path in ('load', 'unload'):
    answer = client.post(f'/v1/{path}_lora_adapter', json={'lora_name': 'x'})
    assert answer.status_code == 403
    assert '--allow_runtime_adapters' in answer.json()['error']['message']


@pytest.mark.parametrize(
  ('body', 'text'),
  [
    ({'prompt': 'ab c'}, 'ab c'),
    ({'prompt': 'ab', 'add_special_tokens': False, 'model': 'tuned'}, 'ab'),
    (
      {'messages': [{'role': 'user', 'content': 'ab'}]},
      '<user>ab<assistant>',
    ),
    (
      {
        'messages': [{'role': 'user', 'content': 'ab'}],
        'add_generation_prompt': False,
      },
      '<user>ab',
    ),
  ],
)
def test_texts_and_tokens(body, text, client):
  body |= {'return_token_strs': True}
  made = client.post('/tokenize', json=body).json()
  assert made['tokens'] == _engine().model.encode(text)
  assert made['count'] == len(text) == len(made['token_strs'])
  assert made['max_model_len'] == 64
  answer = client.post('/detokenize', json={'tokens': made['tokens']})
  assert answer.json() == {'prompt': text}


def test_a_client_can_prepare_texts_itself(client):
  assert client.get('/tokenizer_info').json() == {
    'bos_token': None,
    'eos_token': '<eos>',
    'pad_token': None,
    'chat_template': _engine().model.chat_template,
  }


def test_special_tokens_have_their_names(client):
  answer = client.post('/detokenize', json={'tokens': [0]})
  assert answer.json() == {'prompt': '<eos>'}


@pytest.mark.parametrize(
  ('path', 'body', 'message'),
  [
    ('tokenize', {}, "'prompt' is missing"),
    ('tokenize', {'prompt': ['a']}, "prompt is ['a']; accepted: a text"),
    ('tokenize', {'prompt': '\ud800'}, 'not valid UTF-8'),
    ('tokenize', {'prompt': 'a', 'x': 1}, "'x' is not supported here"),
    ('tokenize', {'prompt': 'a', 'model': 'x'}, "no model 'x'; served"),
    ('tokenize', {'prompt': 'a', 'return_token_strs': 1}, 'true or false'),
    ('tokenize', {'messages': 3}, 'messages is 3; accepted: a list'),
    ('detokenize', {}, "'tokens' is missing"),
    ('detokenize', {'tokens': 'a'}, "tokens is 'a'; accepted: token ids"),
    ('detokenize', {'tokens': [True]}, 'accepted: token ids'),
    ('detokenize', {'tokens': [999]}, 'tokens: token 999 has'),
    ('detokenize', {'tokens': [1] * 65}, 'has 65 entries; accepted: at most'),
    ('v1/load_lora_adapter', {}, "'lora_name' is missing"),
    ('v1/load_lora_adapter', {'lora_name': 3}, 'lora_name is 3; accepted'),
  ],
)
def test_other_bodies_that_are_refused(path, body, message, client):
  answer = client.post(f'/{path}', content=json.dumps(body), headers=JSON)
  assert answer.status_code in (400, 404)
  assert message in answer.json()['error']['message'], answer.text


def _values(client):
  lines = client.get('/metrics').text.splitlines()
  pairs = [line.rsplit(' ', 1) for line in lines if not line.startswith('#')]
  return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize(
  ('values', 'status', 'message', 'param'),
  [
    ({'model': 'x'}, 404, "no model 'x'; served: 'tiny', 'both'", 'model'),
    ({'model': None}, 400, "'model' is missing", 'model'),
    ({'prompt': None}, 400, "'prompt' is missing", 'prompt'),
    ({'prompt': []}, 400, 'prompt is ', 'prompt'),
    ({'prompt': [1, 'a']}, 400, 'prompt is ', 'prompt'),
    ({'prompt': {'a': 1}}, 400, 'prompt is ', 'prompt'),
    ({'prompt': ''}, 400, 'the prompt is empty', 'prompt'),
    ({'prompt': [[999]]}, 400, '999', 'prompt'),
    ({'prompt': '\ud800'}, 400, 'not valid UTF-8', 'prompt'),
    ({'logprobs': 21}, 400, 'logprobs is 21; accepted: 0 to 20', 'logprobs'),
    (
      {'logprobs': True},
      400,
      'logprobs is True; accepted: a whole',
      'logprobs',
    ),
    ({'echo': 1}, 400, 'echo is 1; accepted: true or false', 'echo'),
    ({'echo': True, 'prompt': [-1]}, 400, 'token -1 has', 'prompt'),
    ({'best_of': 3}, 400, "'best_of' is not supported here", 'best_of'),
    ({'whatever': 3}, 400, "'whatever' is not supported here", 'whatever'),
    (
      {'stream_options': {'x': 1}},
      400,
      "'stream_options.x' is not supported here",
      'stream_options.x',
    ),
    ({'n': 0}, 400, 'make 0 choices; accepted: 1 to 128', 'n'),
    ({'n': 1.5}, 400, 'n is 1.5; accepted: a whole number', 'n'),
    ({'stream': 'yes'}, 400, "stream is 'yes'; accepted: true", 'stream'),
    (
      {'max_tokens': 0},
      400,
      'max_tokens is 0; accepted: at least',
      'max_tokens',
    ),
    ({'max_tokens': -1}, 400, 'max_tokens is -1; it must be', 'max_tokens'),
    ({'max_tokens': False}, 400, 'max_tokens is False', 'max_tokens'),
    (
      {'max_tokens': 33},
      400,
      'max_tokens is 33; accepted: 1 to 32',
      'max_tokens',
    ),
    ({'max_tokens': 'x'}, 400, "max_tokens is the text 'x'", 'max_tokens'),
    (
      {'prompt': [1] * 60},
      400,
      'the prompt has 60 tokens and 12 new',
      'prompt',
    ),
    ({'temperature': -1}, 400, 'temperature is -1', 'temperature'),
    ({'temperature': 'x'}, 400, "temperature is the text 'x'", 'temperature'),
    ({'top_p': 0}, 400, 'top_p is 0.0; accepted: 0 < top_p', 'top_p'),
    ({'top_k': -2}, 400, 'top_k is -2', 'top_k'),
    ({'min_tokens': 20}, 400, 'min_tokens is 20 but at most 12', 'min_tokens'),
    ({'min_tokens': -1}, 400, 'min_tokens is -1', 'min_tokens'),
    ({'seed': 'x'}, 400, "seed is the text 'x'", 'seed'),
    ({'logit_bias': {'a': 1}}, 400, 'logit_bias is ', 'logit_bias'),
    ({'logit_bias': [1]}, 400, 'logit_bias is [1]', 'logit_bias'),
    ({'stop': [1]}, 400, 'stop is ', 'stop'),
    ({'stop': ['']}, 400, 'an entry of stop is empty', 'stop'),
    ({'stop': ['x'] * 65}, 400, 'stop has 65 texts; accepted', 'stop'),
    ({'stop': 'x' * 1001}, 400, 'stop texts come to 1001 bytes', 'stop'),
    ({'stop_token_ids': [1, 2, 3, 4]}, 400, '4 token ids', 'stop_token_ids'),
    ({'stop_token_ids': [999]}, 400, 'stop_token_ids: token', 'stop_token_ids'),
    ({'stop_token_ids': ''}, 400, "stop_token_ids is ''", 'stop_token_ids'),
    ({'stop_token_ids': False}, 400, 'accepted: a list', 'stop_token_ids'),
    ({'stream_options': []}, 400, 'stream_options is []', 'stream_options'),
    ({'stream_options': {}}, 400, 'need stream; set it', 'stream_options'),
    ({'user': {'a': 1}}, 400, "user is {'a': 1}; accepted: a text", 'user'),
    ({'logit_bias': ''}, 400, "logit_bias is ''; accepted", 'logit_bias'),
    ({'logit_bias': {'66': 1, '066': 2}}, 400, 'logit_bias is ', 'logit_bias'),
    ({'logit_bias': {' 2_0 ': 1}}, 400, 'logit_bias is ', 'logit_bias'),
    ({'logit_bias': {'１': 1}}, 400, 'logit_bias is ', 'logit_bias'),
    ({'logit_bias': {'999': 1}}, 400, 'logit_bias names token', 'logit_bias'),
    ({'logprobs': False}, 400, 'logprobs is False', 'logprobs'),
    ({'stop': {}}, 400, 'stop is {}; accepted: a list', 'stop'),
    ({'timeout': -1}, 400, 'timeout is -1', 'timeout'),
    (
      {'n': 11},
      400,
      '11 texts are asked for at once; accepted: at most 10',
      'n',
    ),
  ],
)
def test_bodies_that_are_refused(values, status, message, param, client):
  answer = client.post(
    '/v1/completions', content=json.dumps(_ask(**values)), headers=JSON
  )
  assert answer.status_code == status, answer.text
  error = answer.json()['error']
  assert message in error['message'], error['message']
  assert error['param'] == param and error['code'] == status


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'messages': 'x'}, "messages is 'x'; accepted: a list"),
    ({'messages': [3]}, 'messages is 3; accepted: an object'),
    ({'messages': [{'content': 'x'}]}, 'a message has no role; name one'),
    ({'messages': [{'role': 'a', 'content': 3}]}, 'content is 3; accepted'),
    (
      {'messages': [{'role': 'a', 'content': [{'type': 'image_url'}]}]},
      "content of type 'image_url' is not supported; use text",
    ),
    ({'tools': 3}, 'tools is 3; accepted: a list'),
    ({'response_format': {'type': 'json_object'}}, "'response_format' is not"),
    ({'top_logprobs': 2}, 'top_logprobs needs logprobs; set it to true'),
    ({'logprobs': 1}, 'logprobs is 1; accepted: true or false'),
    ({'top_logprobs': 0}, 'top_logprobs needs logprobs; set it to true'),
    ({'top_logprobs': False}, 'top_logprobs needs logprobs'),
    ({'logprobs': True, 'top_logprobs': ''}, "top_logprobs is ''; accepted"),
    ({'tool_choice': 'required'}, "'tool_choice' is not supported here"),
    ({'parallel_tool_calls': False}, "'parallel_tool_calls' is not supported"),
    ({'max_tokens': 0}, 'max_tokens is 0; it must be'),
    ({'max_completion_tokens': 0}, 'max_completion_tokens is 0; it must be'),
    (
      {'max_completion_tokens': 5, 'max_tokens': 2},
      'max_tokens is 2 and max_completion_tokens is 5; give one of them',
    ),
    (
      {'messages': [{'role': 'a', 'content': [{'type': 'text', 'text': 3}]}]},
      'accepted: parts that have a text each',
    ),
    ({'logprobs': True, 'top_logprobs': 21}, 'accepted: 0 to 20'),
    ({'echo': True}, "'echo' is not supported here"),
  ],
)
def test_chats_that_are_refused(values, message, client):
  body = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'x'}]}
  answer = client.post('/v1/chat/completions', json=body | values)
  assert answer.status_code == 400
  assert message in answer.json()['error']['message'], answer.text


@pytest.mark.parametrize(
  ('content', 'status', 'message'),
  [
    (b'{', 400, 'the body is no JSON'),
    (b'\xff\xfe', 400, 'the body is no JSON'),
    (b'[1]', 400, 'the body is no JSON object'),
    (b'{"temperature": NaN}', 400, 'NaN is no number of JSON'),
    (b'[' * 2000, 400, 'the body is no JSON'),
    (b' ' * 3001, 413, 'the body is larger than 3000 bytes; send less'),
  ],
)
def test_bodies_that_are_no_request(content, status, message, client):
  answer = client.post('/v1/completions', content=content, headers=JSON)
  assert answer.status_code == status
  assert message in answer.json()['error']['message']


def test_paths_that_are_not_there(client):
  answer = client.get('/v1/x')
  assert answer.status_code == 404
  assert answer.json()['error']['message'] == "there is no '/v1/x'"
  answer = client.get('/v1/completions')
  assert answer.status_code == 405
  assert answer.json()['error']['message'].endswith('takes no GET')


class _Busy:
  """An engine that takes nothing."""

  def __init__(self, error):
    self._error = error

  def __getattr__(self, name):
    return getattr(_engine(), name)

  def submit_all(self, asked, on_end):
    raise self._error

  def start(self):
    pass

  def close(self, timeout):
    pass


@pytest.mark.parametrize(
  ('error', 'status', 'retry', 'message'),
  [
    (requests.RefusedError('full', 7), 429, '7', 'full'),
    (requests.RefusedError('closing'), 503, None, 'closing'),
    (TypeError('/secret/path'), 500, None, 'internal error'),
  ],
)
def test_engines_that_take_nothing(error, status, retry, message):
  server = http.Server(_Busy(error), http.Options('tiny'))
  client = testclient.TestClient(server.app())
  answer = client.post('/v1/completions', json=_ask())
  assert answer.status_code == status
  assert answer.headers.get('retry-after') == retry
  assert answer.json()['error']['message'] == message


def test_a_key_is_needed_where_there_is_one():
  server = http.Server(_engine(), http.Options('tiny', 'geheim'))
  client = testclient.TestClient(server.app())
  for headers in ({}, {'Authorization': 'Bearer gehein'}):
    answer = client.get('/v1/models', headers=headers)
    assert answer.status_code == 401
    assert 'the API key is missing' in answer.json()['error']['message']
  headers = {'Authorization': 'Bearer geheim'}
  assert client.get('/v1/models', headers=headers).status_code == 200
  assert client.get('/health').status_code == 200
  assert 'geheim' not in repr(server.options)


def test_a_key_may_have_any_letters():
  server = http.Server(_engine(), http.Options('tiny', 'geheimß'))
  client = testclient.TestClient(server.app())
  for key, status in (('geheimß', 200), ('geheimss', 401), ('\xff', 401)):
    headers = {'Authorization': f'Bearer {key}'.encode()}
    assert client.get('/v1/models', headers=headers).status_code == status


@pytest.mark.parametrize(
  ('path', 'rest'),
  [
    ('/v1/completions', b'"model": "tuned", "prompt": "a"'),
    ('/detokenize', b'"tokens": [1]'),
  ],
)
def test_half_a_letter_in_a_name_is_named(path, rest):
  client = testclient.TestClient(
    http.Server(_engine(), http.Options('tiny')).app()
  )
  answer = client.post(
    path, content=b'{' + rest + rb', "\ud800": 1}', headers=JSON
  )
  assert answer.status_code == 400
  assert answer.json()['error']['param'] == '\ud800'


ASKED = dict(model='tuned', temperature=0, extra_body={'ignore_eos': True})
CHAT = [{'role': 'user', 'content': 'ab'}]


def test_openai_completions(openai_client):
  made = openai_client.completions.create(
    prompt='ab', max_tokens=9, logprobs=2, echo=True, n=2, **ASKED
  )
  one, two = made.choices
  assert one.text == two.text and one.text.startswith('ab')
  assert made.usage.completion_tokens == 18
  assert len(one.logprobs.token_logprobs) == 11
  assert one.logprobs.token_logprobs[0] is None
  steps = made.metrics['speculative_decoding']['num_spec_steps']
  assert 0 < steps <= 16
  pieces = openai_client.completions.create(
    prompt='ab', max_tokens=9, echo=True, stream=True, **ASKED
  )
  text = ''.join(piece.choices[0].text for piece in pieces)
  assert text == one.text


def test_openai_chats(openai_client):
  made = openai_client.chat.completions.create(
    messages=CHAT,
    max_completion_tokens=9,
    logprobs=True,
    top_logprobs=1,
    **ASKED,
  )
  [choice] = made.choices
  assert choice.finish_reason == 'length'
  best = [one.top_logprobs[0].logprob for one in choice.logprobs.content]
  assert best == [one.logprob for one in choice.logprobs.content]
  *pieces, usage = openai_client.chat.completions.create(
    messages=CHAT,
    max_completion_tokens=9,
    stream=True,
    stream_options={'include_usage': True},
    **ASKED,
  )
  said = [piece.choices[0].delta.content or '' for piece in pieces]
  assert ''.join(said) == choice.message.content
  assert usage.usage.completion_tokens == 9


def test_openai_models(openai_client):
  assert openai_client.models.retrieve('free').id == 'free'
  names = [model.id for model in openai_client.models.list()]
  assert names == ['tiny', 'both', 'free', 'plain', 'tuned']


def test_openai_errors(openai_client):
  openai = pytest.importorskip('openai')
  ask = openai_client.completions.create
  with pytest.raises(openai.NotFoundError, match="there is no model 'x'"):
    ask(model='x', prompt='ab')
  with pytest.raises(openai.BadRequestError, match="'best_of' is not") as error:
    ask(model='tiny', prompt='ab', best_of=3)
  assert error.value.param == 'best_of'
