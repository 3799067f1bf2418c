# SPDX-License-Identifier: Apache-2.0
"""How tokens are drawn: who decides, what compiles, what cannot be drawn."""

import dataclasses
import itertools

from absl import flags, logging
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.cli import decoding_flags
from specstream_jax.workflows import evaluate, generate

WISHES = {'do_sample': True, 'temperature': 0.7, 'top_k': 9, 'num_beams': 2}
TREE = config.TreeConfig(num_nodes=4, depth=2, branching=2)
PROMPTS = ['ab', 'x']
_QUICK_NOT_FINITE = (
  (np.nan, 'streams', 0.8),
  (np.inf, 'none', 0.0),
  (np.inf, 'prompt_lookup', 0.0),
)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def _tokens(model, sampling=None, max_new_tokens=9, **options):
  options = generate.Options(
    max_new_tokens, tree=TREE, sampling=sampling, **options
  )
  return [row.tokens for row in generate.generate(model, PROMPTS, options)]


@pytest.fixture
def compilations():
  """Programs that were compiled since; a list that grows."""
  found = []

  def listen(event, seconds, **named):
    del seconds, named
    if event.endswith('backend_compile_duration'):
      found.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


def test_new_settings_compile_nothing(model, compilations):
  greedy, warm = config.SamplingConfig(), config.SamplingConfig(0.9)
  first = _tokens(model, greedy)
  _tokens(model, warm)
  assert compilations  # the listener hears something
  compilations.clear()
  others = [
    config.SamplingConfig(0.3),
    config.SamplingConfig(2.0, top_k=3, top_p=0.7, min_p=0.1),
    config.SamplingConfig(1.0, top_k=100),
    config.SamplingConfig(repetition_penalty=1.8),
    config.SamplingConfig(0.5, min_new_tokens=7, ignore_eos=True),
    config.SamplingConfig(logit_bias={3: 4.0}, suppress_tokens=(1, 2)),
  ]
  found = {str(_tokens(model, cfg, seed=seed)) for seed, cfg in
           enumerate(others)}  # fmt: skip
  assert len(found) == len(others)
  for max_new_tokens in (1, 5, 33, 64):
    for cfg in (greedy, warm):
      rows = _tokens(model, cfg, max_new_tokens)
      assert max(map(len, rows)) <= max_new_tokens
  assert _tokens(model, config.SamplingConfig(ignore_eos=True))
  assert _tokens(model, greedy) == first
  assert compilations == []


def test_the_model_decides_where_nobody_else_does(model, monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda *args: told.append(args[-1]))
  generate._tell.cache_clear()
  wishing = dataclasses.replace(model, generation=WISHES)
  want = _tokens(model, config.SamplingConfig(0.7, top_k=9))
  greedy = _tokens(model, config.SamplingConfig())
  assert want != greedy
  assert _tokens(wishing) == _tokens(wishing) == want
  (line,) = told  # once
  assert line.startswith(
    'generation_config.json: took temperature=0.7, top_k=9'
  )
  assert 'left out num_beams=2 (not supported)' in line
  assert _tokens(wishing, generation_config='none') == greedy
  assert _tokens(wishing, config.SamplingConfig()) == greedy
  assert _tokens(model) == greedy and len(told) == 1
  with pytest.raises(ValueError, match="generation_config is 'yes'; accepted"):
    _tokens(model, generation_config='yes')


@pytest.fixture
def parse():
  """Flags of a command, from its arguments."""
  values = flags.FlagValues()

  def parse(*args, generation_config='auto'):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(flags, 'FLAGS', values)
      for name, value in vars(flags).items():
        if name.startswith('DEFINE_'):
          patch.setattr(flags, name, _into(values, value))
      decoding_flags.define_sampling(generation_config=generation_config)
    values(['program', *args])
    return values

  return parse


def _into(values, define):
  return lambda *args, **named: define(*args, flag_values=values, **named)


def _sampling(values, model):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, 'FLAGS', values)
    return decoding_flags.sampling(model)


def test_flags_go_before_gin_before_the_model(model, parse, capsys):
  wishing = dataclasses.replace(model, generation=WISHES | {'top_p': 0.5})
  with gin.unlock_config():
    gin.bind_parameter('SamplingConfig.top_k', 5)
  try:
    found = _sampling(
      parse(
        '--temperature=0.2',
        '--suppress_tokens=4,2',
        '--logit_bias=7:-1.5',
        '--ignore_eos',
      ),
      wishing,
    )
    assert found == config.SamplingConfig(
      temperature=0.2, top_k=5, top_p=0.5, suppress_tokens=(4, 2),
      logit_bias={7: -1.5}, ignore_eos=True,
    )  # fmt: skip
  finally:
    gin.clear_config()
  assert 'took temperature=0.7, top_k=9, top_p=0.5' in capsys.readouterr().err


def test_commands_that_measure_do_not_ask_the_model(model, parse, capsys):
  wishing = dataclasses.replace(model, generation=WISHES)
  values = parse(generation_config='none')
  assert _sampling(values, wishing) == config.SamplingConfig()
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--suppress_tokens=a', "--suppress_tokens is 'a'; accepted: token ids"),
    ('--logit_bias=3', "--logit_bias is '3'; accepted: ID:NUMBER"),
    ('--logit_bias=a:3', "--logit_bias is 'a:3'; accepted: ID:NUMBER"),
    ('--repetition_penalty=0', 'repetition_penalty is 0.0; it must be > 0'),
  ],
)
def test_flags_that_make_no_sense(model, parse, flag, message):
  with pytest.raises(ValueError, match=message):
    _sampling(parse(flag), model)


def test_token_ids_that_the_model_does_not_have(model):
  outside = config.SamplingConfig(logit_bias={257: 1.0})
  message = 'logit_bias names token id 257; accepted: 0 to 256'
  with pytest.raises(ValueError, match=message):
    _tokens(model, outside)
  with pytest.raises(ValueError, match=message):
    evaluate.evaluate(model, evaluate.Options(sampling=outside, num_prompts=1))
  wishing = dataclasses.replace(model, generation={'suppress_tokens': [300]})
  with pytest.raises(
    ValueError,
    match=r'^generation_config\.json: .*suppress_tokens names token id 300',
  ):
    _tokens(wishing)


def test_more_tokens_than_allowed_cannot_be_the_least(model):
  sampling = config.SamplingConfig(min_new_tokens=10)
  with pytest.raises(
    ValueError, match='min_new_tokens is 10 but at most 9 new'
  ):
    _tokens(model, sampling)
  with pytest.raises(ValueError, match='max_new_tokens is 0; it must be'):
    _tokens(model, max_new_tokens=0)


@pytest.mark.parametrize(
  ('value', 'drafter', 'temperature'),
  [
    pytest.param(
      *case, marks=[] if case in _QUICK_NOT_FINITE else pytest.mark.slow
    )
    for case in itertools.product(
      (np.nan, np.inf), ('none', 'streams', 'prompt_lookup'), (0.0, 0.8)
    )
  ],
)
def test_logits_that_are_not_finite_are_told(
  model, drafter, temperature, value
):
  base = jax.tree.map(lambda x: x, model.base)
  base['final_norm']['scale'] = jnp.full_like(
    base['final_norm']['scale'], value
  )
  broken = dataclasses.replace(model, base=base)
  sampling = config.SamplingConfig(temperature)
  message = (
    'logits are not finite .* for prompt 0 after 0 new tokens, and for 2'
  )
  with pytest.raises(ValueError, match=message):
    _tokens(broken, sampling, drafter=drafter)
  options = generate.Options(5, drafter, TREE, sampling=sampling)
  with pytest.raises(ValueError, match='logits are not finite'):
    list(generate.stream(broken, PROMPTS, options))
