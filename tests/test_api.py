# SPDX-License-Identifier: Apache-2.0
"""What the Python interface takes, and what it answers to the rest."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runtime

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.checkpoints import chat_format
from specstream_jax.config import (
  checks as config_checks,
  drafting as config_drafting,
)
from specstream_jax.workflows import (
  bench,
  check,
  distill,
  evaluate,
  generate,
  prompts,
)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('abc', "prompts is the text 'abc'; pass a list of texts, of lists of"),
    (b'abc', r"prompts is bytes b'abc'; pass a list"),
    ({'prompt': 'a'}, 'prompts is dict .*; pass a list'),
    (7, 'prompts is int 7; pass a list'),
    (None, 'prompts is NoneType None; pass a list'),
    ([b'abc'], "prompt 0 is bytes b'abc'; accepted: a text, a list of"),
    (['a', bytearray(b'a')], 'prompt 1 is bytearray'),
    (['a', None], 'prompt 1 is NoneType None'),
    ([5], 'prompt 0 is int 5; accepted'),
    ([{1, 2}], 'prompt 0 is set'),
    ([{'role': 'user', 'content': 'a'}], 'prompt 0 is dict'),
    (np.array([1, 2]), 'prompt 0 is int64 .*1'),
    ([[1.5]], 'prompt 0 holds 1.5, which is no token id; accepted: a text'),
    ([np.ones(2)], 'prompt 0 holds 1.0, which is no token id'),
    ([[1, True]], 'prompt 0 holds True, which is no token id'),
    ([['a']], "prompt 0 holds 'a', which is no token id"),
    ([[1, None]], 'prompt 0 holds None, which'),
    ([[[1]]], r'prompt 0 holds \[1\], which is no token id'),
    ([[{'role': 'user', 'content': 'a'}, 3]], r'prompt 0 holds \{'),
    ([[1], [257]], 'prompt 1 holds token id 257; accepted: 0 to 256'),
    ([[-1]], 'prompt 0 holds token id -1; accepted: 0 to 256'),
    (
      ['ok', 'a\ud83d'],
      r"prompt 1 is not valid UTF-8: character 2 is '\\ud83d'",
    ),
    (['\udcff'], r"prompt 0 is not valid UTF-8: character 1 is '\\udcff'"),
  ],
)
def test_prompts_that_are_none(model, given, message):
  with pytest.raises(ValueError, match=message):
    ss.generate(model, given)
  with pytest.raises(ValueError, match=message):
    next(ss.stream(model, given))


def test_prompts_in_every_form(model):
  ids = model.encode('ab')
  forms = ['ab', ids, tuple(ids), np.array(ids, np.uint16), jnp.array(ids)]
  assert prompts.encode(model, forms) == [ids] * len(forms)
  assert prompts.encode(model, np.array([ids, ids])) == [ids, ids]
  assert prompts.encode(model, (text for text in forms)) == [ids] * len(forms)
  assert prompts.encode(model, [range(2, 4)]) == [[2, 3]]
  assert type(prompts.encode(model, [np.array(ids)])[0][0]) is int


def test_chats_as_prompts(model):
  expected = model.encode('<user>ab<assistant>')
  model = dataclasses.replace(model, bos_id=9)
  messages = [{'role': 'user', 'content': 'ab'}]
  text = chat_format.Text('<user>ab<assistant>')
  assert prompts.encode(model, [messages, text]) == [expected] * 2
  assert prompts.encode(model, ['ab'], is_chat=True) == [expected]
  assert prompts.encode(model, ['ab']) == [[9, *model.encode('ab')]]
  (row,) = ss.generate(model, ['ab'], chat=True, max_new_tokens=4)
  (same,) = ss.generate(model, [messages], max_new_tokens=4)
  (plain,) = ss.generate(model, ['ab'], max_new_tokens=4)
  assert row.tokens == same.tokens != plain.tokens
  bare = dataclasses.replace(model, chat_template=None)
  with pytest.raises(ValueError, match='the model has no chat template'):
    ss.generate(bare, ['ab'], chat=True)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'stop': 3}, 'stop is 3; accepted: a text, or a list of texts'),
    ({'stop': (b'a',)}, r"an entry of stop is b'a'; it must be text"),
    ({'stop': ('',)}, 'an entry of stop is empty; leave it out'),
    ({'stop': 'a\ud800'}, 'an entry of stop is not valid UTF-8'),
    ({'drafter': 'streems'}, "DrafterConfig.name is 'streems'; accepted"),
    ({'drafter': 'streams:depht=2'}, "'depht=2' is no setting"),
    ({'drafter': 3}, 'drafter is 3; it must be a text or a DrafterConfig'),
    ({'tree': 'chain'}, "tree is 'chain'; it must be a TreeConfig"),
    ({'sampling': 0.7}, 'sampling is 0.7; it must be a SamplingConfig'),
    ({'chat': 'yes'}, "chat is 'yes'; accepted: True, False"),
    ({'seed': 2**64}, 'seed is 18446744073709551616; it must be an integer'),
    ({'seed': 1.5}, 'seed is 1.5; it must be an integer from -2147483648 to'),
    (
      {'max_new_tokens': 99999999999},
      'max_new_tokens is 99999999999; it must be at most 16777216',
    ),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0; it must be an integer'),
    ({'max_new_tokens': 2.5}, 'max_new_tokens is 2.5; accepted: an integer'),
  ],
)
def test_options_of_the_wrong_kind(model, options, message):
  with pytest.raises(ValueError, match=message):
    ss.generate(model, ['a'], **options)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda m: ss.generate(m, ['a'], max_tokens=5),
      r"generate has no option 'max_tokens'; did you mean 'max_new_tokens'\? "
      'accepted: chat, drafter',
    ),
    (
      lambda m: ss.stream(m, ['a'], stops=('a',)),
      r"stream has no option 'stops'; did you mean 'stop'\?",
    ),
    (
      lambda m: ss.stream_text(m, ['a'], max_new_token=3),
      r"stream_text has no option 'max_new_token'; did you mean 'max_new_tok",
    ),
    (lambda m: ss.stream_text('x', ['a']), "the model is 'x'; load one first"),
    (
      lambda m: ss.generate(m, ['a'], temperature=0.5),
      "generate has no option 'temperature'; it is a field of SamplingConfig: "
      r'pass sampling=ss.SamplingConfig\(temperature=0.5\)',
    ),
    (
      lambda m: ss.generate(m, ['a'], depth=2),
      r'pass tree=ss.TreeConfig\(depth=2\)',
    ),
    (
      lambda m: ss.evaluate(m, num_prompt=3),
      r"evaluate has no option 'num_prompt'; did you mean 'num_prompts'\?",
    ),
    (
      lambda m: ss.load('x', adaptor='y'),
      r"load has no option 'adaptor'; did you mean 'adapter'\?",
    ),
    (
      lambda m: ss.train('x', 'y', 'z', receipt=1),
      r"train has no option 'receipt'; did you mean 'recipe'\?",
    ),
    (
      lambda m: ss.SamplingConfig(temprature=1),
      r"SamplingConfig has no option 'temprature'; did you mean 'temperature'",
    ),
    (lambda m: ss.TreeConfig(nodes=8), r"TreeConfig .*mean 'num_nodes'"),
    (lambda m: ss.StreamConfig(zzz=8), r"StreamConfig has .*'zzz'; accepted"),
    (lambda m: ss.DrafterConfig(nam='a'), r"DrafterConfig .*mean 'name'"),
    (lambda m: ss.Recipe(steam=1), r"Recipe .*mean 'stream'"),
    (lambda m: ss.Execution(rematerialise=1), r"Execution .*'rematerialise'"),
  ],
)
def test_options_that_are_not_there(model, call, message):
  with pytest.raises(ValueError, match=message):
    call(model)


@pytest.mark.parametrize(
  'call',
  [
    lambda: ss.generate('smollm2', ['a']),
    lambda: ss.stream('smollm2', ['a']),
    lambda: ss.evaluate('smollm2'),
  ],
)
def test_a_name_is_no_model(call):
  message = r"the model is 'smollm2'; load one first: ss.load\(…\)"
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize('value', [None, 3, b'a', ['a']])
def test_names_that_are_none(value):
  with pytest.raises(
    ValueError, match=r'the model is .*; it must be a name or'
  ):
    ss.load(value)
  if value is not None:
    with pytest.raises(ValueError, match=r'the adapter is .*; it must be'):
      ss.load('x', adapter=value)


def test_one_text_as_stop(model):
  assert generate.Options(stop='abc').stop == ('abc',)
  assert generate.Options(stop=['a', 'b']).stop == ('a', 'b')


@pytest.mark.parametrize(
  ('function', 'workflow', 'cls'),
  [
    (ss.generate, 'generate', generate.Options),
    (ss.stream, 'stream', generate.Options),
    (ss.stream_text, 'stream_text', generate.Options),
    (ss.evaluate, 'evaluate', evaluate.Options),
  ],
)
def test_signatures_say_every_option_and_pass_it_on(
  model, monkeypatch, function, workflow, cls
):
  module = evaluate if cls is evaluate.Options else generate
  passed = lambda *args, **_: args[-1]
  monkeypatch.setattr(module, workflow, passed)
  found = inspect.signature(function).parameters
  fields = dataclasses.fields(cls)
  assert {f.name: found[f.name].default for f in fields} == {
    f.name: f.default for f in fields
  }
  given = {
    'max_new_tokens': 7, 'drafter': 'none', 'tree': ss.TreeConfig(depth=2),
    'schedule': 'parallel', 'sampling': ss.SamplingConfig(0.5), 'seed': 3,
    'generation_config': 'none', 'stop': ('a',), 'chat': True, 'task': 't',
    'split': 's', 'data_dir': 'd', 'num_prompts': 5, 'batch': 2, 'repeats': 4,
    'shard': 1, 'num_shards': 6,
  }  # fmt: skip
  given = {f.name: given[f.name] for f in fields}
  prompts = () if cls is evaluate.Options else (['a'],)
  assert function(model, *prompts, **given) == cls(**given)


def test_a_drafter_as_the_command_line_spells_it(model):
  text = 'streams:num_nodes=3,depth=2,branching=2'
  parsed = config_drafting.parse(text)
  assert generate.Options(drafter=text).drafter == text
  assert evaluate.Options(drafter=text).drafter == text
  decode = config.DecodeConfig(max_new_tokens=3)
  assert model.decoder(text, decode) is model.decoder(parsed, decode)
  assert model.params(text) is model.params(parsed)
  expected = ss.generate(model, ['ab'], max_new_tokens=3, drafter=parsed)
  assert ss.generate(model, ['ab'], max_new_tokens=3, drafter=text) == expected
  assert ss.DrafterConfig is config_drafting.DrafterConfig
  assert 'DrafterConfig' in dir(ss)


@pytest.mark.parametrize(
  ('eos_ids', 'message'),
  [
    ((257,), 'eos_ids holds 257, which the model does not have; .* 0 to 256'),
    ((-1,), 'an entry of DecodeConfig.eos_ids is -1; it must be an integer'),
    (
      (1.5,),
      r'DecodeConfig.eos_ids is \(1.5,\); accepted: a tuple of integers',
    ),
  ],
)
def test_eos_ids_that_no_model_has(model, eos_ids, message):
  wrong = dataclasses.replace(model, eos_ids=eos_ids)
  with pytest.raises(ValueError, match=message):
    ss.generate(wrong, ['a'])


@pytest.mark.parametrize('value', [-(2**31) - 1, 2**32, 2**64, True, '1', None])
def test_seeds_that_are_none(value):
  with pytest.raises(ValueError, match=r'x is .*; it must be an integer from'):
    config_checks.seed('x', value)


@pytest.mark.parametrize('value', [-(2**31), 0, 2**32 - 1, np.int64(5)])
def test_seeds_that_are_some(value):
  config_checks.seed('x', value)


@pytest.mark.parametrize(
  'make',
  [
    lambda seed: generate.Options(seed=seed),
    lambda seed: evaluate.Options(seed=seed),
    lambda seed: bench.Options(seed=seed),
    lambda seed: check.Options(seed=seed),
    lambda seed: distill.Options(seed=seed),
    lambda seed: config.TrainConfig(seed=seed),
  ],
)
def test_every_seed_is_checked(make):
  make(4294967295)
  with pytest.raises(ValueError, match=r'seed is 4294967296; it must be an'):
    make(2**32)


def test_text_that_no_file_could_hold(model):
  with pytest.raises(ValueError, match=r'the text is not valid UTF-8: char.*2'):
    model.encode('a\ud800b')
