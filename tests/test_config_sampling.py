# SPDX-License-Identifier: Apache-2.0
"""Sampling settings: what is accepted, and what they come to."""

import math

import pytest

from specstream_jax import config


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'temperature': -0.1}, r'temperature is -0\.1; it must be a number >= 0'),
    ({'temperature': math.nan}, 'temperature is nan; accepted: a number'),
    ({'temperature': math.inf}, 'temperature is inf; it must be <= '),
    ({'top_k': -1}, 'top_k is -1; it must be an integer >= 0'),
    ({'top_k': 2.5}, r'top_k is 2\.5; accepted: an integer'),
    ({'top_p': 0.0}, r'top_p is 0\.0; accepted: 0 < top_p <= 1'),
    ({'top_p': 1.1}, r'top_p is 1\.1; accepted'),
    ({'min_p': 1.1}, r'min_p is 1\.1; accepted: 0 <= min_p <= 1'),
    ({'min_p': -0.1}, r'min_p is -0\.1; it must be'),
    (
      {'repetition_penalty': 0.0},
      r'repetition_penalty is 0\.0; it must be > 0',
    ),
    ({'repetition_penalty': math.inf}, 'repetition_penalty is inf; it must'),
    ({'min_new_tokens': -1}, 'min_new_tokens is -1; it must be an integer'),
    (
      {'ignore_eos': 'no'},
      "ignore_eos is the text 'no'; accepted: True or False",
    ),
    (
      {'suppress_tokens': 'abc'},
      "suppress_tokens is 'abc'; accepted: a list of token",
    ),
    (
      {'suppress_tokens': (1, -2)},
      'entry of SamplingConfig.suppress_tokens is',
    ),
    (
      {'logit_bias': 3},
      'logit_bias is 3; accepted: a dict, or a list of pair',
    ),
    ({'logit_bias': {1: 'x'}}, "logit_bias is {1: 'x'}; accepted: a dict"),
    ({'logit_bias': {1: math.inf}}, 'logit_bias is {1: inf}; accepted: a dict'),
    ({'logit_bias': {1: 10**400}}, 'logit_bias is {1: 10.*; accepted: a dict'),
    ({'logit_bias': {1: 1e39}}, 'logit_bias is .*number that float32 holds'),
    ({'repetition_penalty': 1e-40}, 'repetition_penalty is 1e-40; it must be'),
    ({'logit_bias': {1: True}}, 'logit_bias is {1: True}; accepted: a dict'),
    ({'logit_bias': ((1,),)}, r'logit_bias is \(\(1,\),\); accepted: a dict'),
    ({'logit_bias': {-1: 2.0}}, 'entry of SamplingConfig.logit_bias is -1'),
    ({'logit_bias': ((1, 2.0), (1, 3.0))}, 'names token id 1 twice; once'),
  ],
)
def test_values_that_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    config.SamplingConfig(**values)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'suppress_tokens': (5, 11)}, 'suppress_tokens names token id 11; accep'),
    ({'logit_bias': {11: 1.0}}, 'logit_bias names token id 11; accepted: 0 to'),
    ({'suppress_tokens': range(11)}, 'names all 11 tokens of the vocabulary'),
  ],
)
def test_token_ids_must_fit_the_vocabulary(values, message):
  values = {k: list(v) if k[0] == 's' else v for k, v in values.items()}
  cfg = config.SamplingConfig(**values)
  cfg.check_fits(12)
  with pytest.raises(ValueError, match=message):
    cfg.check_fits(11)


def test_a_dict_and_a_list_of_pairs_are_the_same():
  one = config.SamplingConfig(logit_bias={7: 1, 2: -3.5})
  other = config.SamplingConfig(logit_bias=[[2, -3.5], [7, 1.0]])
  assert one == other and hash(one) == hash(other)
  assert one.logit_bias == ((2, -3.5), (7, 1.0))
  assert config.from_json(config.SamplingConfig, config.to_json(one)) == one


def test_suppressed_tokens_have_no_chance_whatever_their_bias():
  cfg = config.SamplingConfig(logit_bias={7: 1.0, 2: 5.0}, suppress_tokens=(2,))
  assert cfg.biases == {7: 1.0, 2: -math.inf}


@pytest.mark.parametrize(
  ('values', 'is_plain'),
  [
    ({}, True),
    ({'top_k': 3, 'top_p': 0.5, 'min_p': 0.1}, True),  # of greedy: nothing
    ({'ignore_eos': True}, True),
    ({'temperature': 1e-40}, False),
    ({'repetition_penalty': 1.1}, False),
    ({'logit_bias': {1: 1.0}}, False),
    ({'suppress_tokens': (1,)}, False),
    ({'min_new_tokens': 1}, False),
  ],
)
def test_what_is_plainly_greedy(values, is_plain):
  cfg = config.SamplingConfig(**values)
  assert cfg.is_plain_greedy == is_plain
  assert cfg.changes() == {
    k: tuple(v.items()) if isinstance(v, dict) else v for k, v in values.items()
  }
