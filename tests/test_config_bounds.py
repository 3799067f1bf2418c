# SPDX-License-Identifier: Apache-2.0
"""Sizes beyond any model or draft are refused before anything is built."""

import dataclasses

import byte_model
import fuzzing
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import medusa, weights
from specstream_jax.config import drafting
from specstream_jax.tpu import programs
from specstream_jax.workflows import (
  bench,
  check,
  distill,
  evaluate,
  train_dart,
  train_draft_model,
  train_medusa,
)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: byte_model.model_config(num_layers=10**9),
      'ModelConfig.num_layers is 1000000000; it must be <= 1024',
    ),
    (
      lambda: byte_model.model_config(vocab_size=2**31),
      'ModelConfig.vocab_size is 2147483648; it must be <= 2147483647',
    ),
    (
      lambda: byte_model.model_config(rms_norm_eps=float('inf')),
      'ModelConfig.rms_norm_eps is inf; it must be <= 3e',
    ),
    (
      lambda: config.StreamConfig(num_streams=100000),
      'StreamConfig.num_streams is 100000; it must be <= 128',
    ),
    (
      lambda: config.TreeConfig(depth=129),
      'depth of TreeConfig is 129; it must be <= 128',
    ),
    (
      lambda: config.TreeConfig(branching=10**9),
      'TreeConfig.branching is 1000000000; it must be <= 1024',
    ),
    (
      lambda: config.TreeConfig(num_nodes=4097),
      'TreeConfig.num_nodes is 4097; it must be <= 4096',
    ),
    (
      lambda: config.TreeConfig('full', depth=128, branching=1024),
      'number of nodes of TreeConfig is .*; it must be <= 4096',
    ),
    (
      lambda: config.TreeConfig('fixed', choices=((10**9,),)),
      r'entry \(1000000000,\) is not a path of ranks >= 0 and < 1024',
    ),
    (
      lambda: config.LoraConfig(alpha=float('inf')),
      'LoraConfig.alpha is inf; it must be <= 3e',
    ),
    (
      lambda: medusa.MedusaConfig('m', '', (), '', 10**9),
      'num_heads is 1000000000; it must be <= 128',
    ),
    (
      lambda: medusa.MedusaConfig('m', '', (), '', 2, ((0, 1),)),
      r'TreeConfig.choices has \(0, 1\) but not its parent',
    ),
  ],
)
def test_sizes_beyond_any(make, message):
  with fuzzing.limits(), pytest.raises(ValueError, match=message):
    make()


def test_the_largest_are_taken():
  cfg = byte_model.model_config(num_layers=1024)
  config.StreamConfig(num_streams=128)
  assert config.TreeConfig('full', depth=5, branching=5).size == 3906
  assert config.TreeConfig('chain', depth=128).size == 129
  assert weights.count(cfg) == sum(
    shape[0] * (shape[1] if len(shape) > 1 else 1)
    for shape in weights.shapes(cfg).values()
  )


COUNTED = (
  *(config.LoraConfig, config.StreamConfig, config.TreeConfig),
  *(config.DecodeConfig, config.SamplingConfig, config.TrainConfig),
  *(config.DataConfig, config.ObjectiveConfig, config.OptimizerConfig),
  *(drafting.DrafterConfig, train_medusa.HeadsRecipe, train_dart.DartRecipe),
  *(train_draft_model.DraftRecipe, bench.Options, check.Options),
  *(evaluate.Options, distill.Options),
)
# The first so many, of what there is; layers are held against the model's.
HARMLESS = ('num_prompts', 'num_samples', 'num_msa_layers')


@pytest.mark.parametrize('cls', COUNTED)
def test_counts_beyond_use_are_refused_at_once(cls):
  is_count = lambda field: (
    type(field.default) is int or (field.type == 'int | None')
  )
  names = [field.name for field in dataclasses.fields(cls) if is_count(field)]
  assert names
  for name in names:
    for value in () if name in HARMLESS else (10**11, 2**63):
      with pytest.raises(
        ValueError, match=rf'{name}( of TreeConfig)? is {value};|shard is'
      ):
        cls(**{name: value})
    if name != 'seed':
      with pytest.raises(ValueError, match=rf'{name} is -1|shard is|of TreeC'):
        cls(**{name: -1})


def test_what_is_compiled_has_bounds():
  for name in ('decode_rows', 'prompt_length', 'max_new_tokens'):
    with pytest.raises(ValueError, match='is 100000000000; it must be <='):
      programs.Job(byte_model.model_config(), None, **{name: 10**11})
