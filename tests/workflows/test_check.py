# SPDX-License-Identifier: Apache-2.0
"""`specstream check` passes what is lossless, and fails what is not."""

import dataclasses
import json

import jax
import pytest
import tiny_runtime

from specstream_jax import config, runtime
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import verify
from specstream_jax.workflows import check

OPTIONS = check.Options(
  drafters=('streams:num_nodes=3,depth=2,branching=2', 'prompt_lookup'),
  num_prompts=3,
  max_new_tokens=8,
  batch=2,
  laws=False,
)


@pytest.fixture
def model():
  return tiny_runtime.model()


def run(model, options=OPTIONS, **kwargs):
  return {found.name: found for found in check.check(model, options, **kwargs)}


@pytest.mark.slow
def test_lossless_decoding_passes_every_property(model):
  found = run(model)
  assert all(p.passed for p in found.values())
  assert sum(name.startswith('tokens of') for name in found) == 4
  assert 'main logits with streams on and off' in found
  assert 'base weights before and after' in found


def test_a_verifier_that_accepts_too_much_fails(model, monkeypatch):
  honest = verify.verify

  def careless(tree, target_tokens, *, path_length):
    """Takes the first child, whatever the target drew at the root."""
    wanted = tree.tokens[:, 1]
    return honest(
      tree, target_tokens.at[:, 0].set(wanted), path_length=path_length
    )

  monkeypatch.setattr(verify, 'verify', careless)
  found = run(model, dataclasses.replace(OPTIONS, temperatures=(0.0,)))
  name = f'tokens of {OPTIONS.drafters[0]} at temperature 0'
  assert found[name].passed is False
  assert found[name].line().startswith('FAIL')


@pytest.mark.slow
def test_changed_weights_fail(model, monkeypatch):
  decode = check._decode

  def decode_and_spoil(model, *args):
    tokens = decode(model, *args)
    model.base = jax.tree.map(lambda leaf: leaf * 2, model.base)
    return tokens

  monkeypatch.setattr(check, '_decode', decode_and_spoil)
  found = run(model, dataclasses.replace(OPTIONS, temperatures=(0.0,)))
  assert found['base weights before and after'].passed is False


@pytest.mark.slow
def test_weights_and_tokens_are_held_against_the_model_on_disk(model):
  found = run(model, read_again=lambda given: tiny_runtime.model())
  assert found[
    'weights that decoded and those of model and adapter on disk'
  ].passed
  base = dataclasses.replace(model, adapter={}, stream=None, lora=None)
  streams = dataclasses.replace(model.stream, mode='lossless')
  lossless = dataclasses.replace(model, stream=streams)
  found = run(lossless, read_again=lambda given: model if given else base)
  assert found[
    'weights that decoded and those of the model without streams on disk'
  ].passed
  for temperature in OPTIONS.temperatures:
    name = f'tokens of the model without streams at temperature {temperature:g}'
    assert found[name].passed


@pytest.mark.slow
def test_an_adapter_that_changed_the_base_fails(model):
  streams = dataclasses.replace(model.stream, mode='lossless')
  lossless = dataclasses.replace(model, stream=streams)
  other = dataclasses.replace(
    model,
    base=jax.tree.map(lambda leaf: leaf[..., ::-1], model.base),
    adapter={}, stream=None, lora=None,
  )  # fmt: skip
  options = dataclasses.replace(OPTIONS, temperatures=(0.8,))
  found = run(lossless, options, read_again=lambda given: other)
  assert not found[
    'weights that decoded and those of the model without streams on disk'
  ].passed
  name = 'tokens of the model without streams at temperature 0.8'
  assert not found[name].passed


@pytest.mark.slow
def test_lossy_rules_are_reported_and_cannot_pass(model):
  lossy = 'streams:kind=chain,depth=2,verifier=typical'
  options = dataclasses.replace(OPTIONS, drafters=(lossy,), temperatures=(0.8,))
  (found,) = [p for n, p in run(model, options).items() if 'typical' in n]
  assert found.passed is None and '(lossy)' in found.detail


def test_only_float32_is_held_equal(model):
  cfg = dataclasses.replace(model.config, dtype='bfloat16')
  with pytest.raises(ValueError, match=r'bfloat16; .* float32'):
    run(dataclasses.replace(model, config=cfg))


@pytest.mark.slow
def test_bfloat16_divergence_is_placed_and_measured(model):
  """Rows that a spoilt drafter changes at token 2 part there."""
  options = dataclasses.replace(OPTIONS, drafters=('prompt_lookup',))
  prompts = check._prompts(model, options)
  plain = check._decode(model, 'none', prompts, 0.0, options)
  spoilt = [[*row[:2], (row[2] + 1) % 257, *row[3:]] for row in plain[:1]]
  fast = spoilt + plain[1:]
  found = check._divergence('x', model, prompts, plain, fast)
  assert found.values['diverging'] == [(0, 2)]
  # Greedy: the token that was taken has the largest logit.
  assert found.values['margins'][0] > 0
  assert '1 of 3 rows diverge, first at token 2' in found.detail
  options = dataclasses.replace(options, temperatures=(0.0,))
  named = run(model, options, bfloat16=model)
  assert named['bfloat16 tokens of prompt_lookup'].passed is None


def test_what_does_not_fit_is_told_before_the_work(model):
  options = dataclasses.replace(
    OPTIONS, drafters=('prompt_lookup', 'streams:depth=9,num_nodes=12')
  )
  with pytest.raises(ValueError, match='draft tree has depth 9'):
    next(check.check(model, options))


@pytest.mark.parametrize('num_streams', [1, 2, 3, 4, 5])
def test_drafters_by_default_are_as_deep_as_the_adapter(model, num_streams):
  stream = dataclasses.replace(model.stream, num_streams=num_streams)
  plain = dataclasses.replace(model, stream=None, adapter={})
  own = runtime.with_random_streams(plain, stream)
  texts = check.default_drafters(own)
  depths = {}
  for text in texts:
    drafter = config_drafting.parse(text, own.tree)
    made = own.decoder(drafter, config.DecodeConfig())
    depths[text] = made.setup.drafter.max_depth
  assert depths['streams'] == own.tree.depth == min(num_streams, 4)
  assert max(depths.values()) >= min(num_streams, 3)
  assert {'prompt_lookup', 'lookahead'} < set(texts)


def test_without_streams_there_are_other_drafters(model):
  plain = dataclasses.replace(model, stream=None, adapter={})
  assert check.default_drafters(plain) == ('prompt_lookup', 'lookahead')


@pytest.mark.slow
def test_the_check_takes_the_defaults(model):
  options = dataclasses.replace(OPTIONS, drafters=None, laws=True)
  found = check.check(model, options)
  assert next(found).name.startswith('law of')  # two streams: all trees fit


def test_an_empty_list_of_drafters_checks_nothing():
  with pytest.raises(ValueError, match='drafters is empty, so nothing'):
    check.Options(drafters=())
  with pytest.raises(ValueError, match='temperatures is empty, so nothing'):
    check.Options(temperatures=(), laws=False)


@pytest.mark.parametrize('name', ['batch', 'max_new_tokens'])
def test_options_out_of_range(name):
  with pytest.raises(ValueError, match=f'{name} is 0'):
    dataclasses.replace(OPTIONS, **{name: 0})


@pytest.mark.slow
def test_laws_are_part_of_the_check(model):
  options = dataclasses.replace(OPTIONS, laws=True, temperatures=())
  found = run(model, options)
  laws = [p for name, p in found.items() if name.startswith('law of')]
  assert len(laws) >= 6 and all(p.passed for p in laws)


def test_a_check_that_was_stopped_has_not_passed(tmp_path):
  check.write(tmp_path / 'c', [check.Property('a', True, '')], finished=False)
  assert json.loads((tmp_path / 'c').read_text())['passed'] is False


def test_json_beside_the_lines(model, tmp_path):
  properties = [
    check.Property('a', True, 'fine'),
    check.Property('b', None, 'seen'),
    check.Property('c', False, 'wrong', {'rows': 3}),
  ]
  check.write(tmp_path / 'check.json', properties, command='specstream check')
  document = json.loads((tmp_path / 'check.json').read_text())
  assert document['command'] == 'specstream check'
  assert document['passed'] is False
  assert document['properties'][2]['values'] == {'rows': 3}
