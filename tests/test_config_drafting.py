# SPDX-License-Identifier: Apache-2.0
"""Drafters from text: what each reads, and what it refuses."""

import pytest

from specstream_jax import config, config_drafting
from specstream_jax.decoding.drafters import lookahead, prompt_lookup


def test_settings_go_to_the_drafter_or_its_tree():
  found = config_drafting.parse('streams:num_nodes=5,depth=2,coupling=False')
  assert found.name == 'streams' and found.coupling is False
  assert found.tree == config.TreeConfig(num_nodes=5, depth=2)
  assert config_drafting.parse('streams').tree is None


@pytest.mark.parametrize(
  'text',
  [
    'prompt_lookup:ngram=4,num_guesses=3,depth=2',
    'lookahead:window=3,pool_size=8,ngram=3',
    'medusa:path=a,verifier=typical,typical_epsilon=0.2',
    'draft_model:path=a,noise_weight=0.5,kind=chain',
    'streams:vocabulary=adapter,vocabulary_size=9,ngram_table=t,ngram_weight=2',
  ],
)
def test_a_drafter_takes_what_it_reads(text):
  name, _, settings = text.partition(':')
  found = config_drafting.parse(text)
  assert found.name == name
  for setting in settings.split(','):
    key, _, value = setting.partition('=')
    holder = found if hasattr(found, key) else found.tree
    assert str(getattr(holder, key)) in (value, f'{value}.0')


@pytest.mark.parametrize(
  ('text', 'unread'),
  [
    ('prompt_lookup:coupling=False', 'coupling'),
    ('lookahead:noise_weight=0.5,window=2', 'noise_weight'),
    ('medusa:path=a,window=2', 'window'),
    ('draft_model:path=a,ngram=3,coupling=True', 'coupling, ngram'),
    ('streams:pool_size=3', 'pool_size'),
    ('none:ngram=3,depth=2', 'ngram, depth'),
  ],
)
def test_a_setting_that_nothing_reads_is_refused(text, unread):
  name = text.partition(':')[0]
  with pytest.raises(ValueError, match=f"'{name}' does not read {unread}; it"):
    config_drafting.parse(text)


def test_default_trees_have_widths_that_a_cpu_likes():
  look_up = prompt_lookup.PromptLookup(config_drafting.parse('prompt_lookup'))
  assert (look_up.size, look_up.max_depth) == (8, 7)
  guessed = config_drafting.parse('prompt_lookup:num_guesses=2,depth=4')
  assert prompt_lookup.PromptLookup(guessed).size == 9
  ahead = lookahead.Lookahead(config_drafting.parse('lookahead'))
  assert ahead.size == 8
