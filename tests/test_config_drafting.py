# SPDX-License-Identifier: Apache-2.0
"""Drafters from text: what each reads, and what it refuses."""

import gin
import pytest

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.drafters import lookahead, prompt_lookup


def test_settings_go_to_the_drafter_or_its_tree():
  found = config_drafting.parse('streams:num_nodes=5,depth=2,coupling=False')
  assert found.name == 'streams' and found.coupling is False
  assert found.tree == config.TreeConfig(num_nodes=5, depth=2)
  assert config_drafting.parse('streams').tree is None


OWN = config.TreeConfig(depth=3, branching=7, num_nodes=9, keep_nodes=5)


@pytest.mark.parametrize(
  ('text', 'own', 'tree'),
  [
    (
      'streams:num_nodes=5',
      OWN,
      config.TreeConfig('best_first', 3, 7, 5, (), 5),
    ),
    ('streams:depth=2', OWN, config.TreeConfig('best_first', 2, 7, 9, (), 5)),
    ('streams:kind=full,branching=2', OWN, config.TreeConfig('full', 3, 2)),
    ('streams:kind=chain', OWN, config.TreeConfig('chain', 3)),
    (
      'streams:num_nodes=5',
      config.TreeConfig('fixed', choices=((0,), (0, 0))),
      config.TreeConfig('best_first', depth=2, num_nodes=5),
    ),
    # What others draft does not hang on the streams.
    ('lookahead:num_nodes=5', OWN, config.TreeConfig(num_nodes=5)),
  ],
)
def test_what_of_a_tree_is_left_out_comes_from_the_adapter(text, own, tree):
  assert config_drafting.parse(text, own).tree == tree


def test_without_tree_settings_the_adapters_tree_is_not_copied():
  assert config_drafting.parse('streams:coupling=False', OWN).tree is None


def test_gin_stands_between_the_text_and_the_adapter():
  gin.bind_parameter('TreeConfig.branching', 2)
  try:
    tree = config_drafting.parse('streams:num_nodes=5', OWN).tree
    assert (tree.branching, tree.num_nodes, tree.depth) == (2, 5, 3)
    tree = config_drafting.parse('streams:branching=4', OWN).tree
    assert tree.branching == 4
  finally:
    gin.clear_config()


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
