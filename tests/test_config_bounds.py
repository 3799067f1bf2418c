# SPDX-License-Identifier: Apache-2.0
"""Sizes beyond any model or draft are refused before anything is built."""

import byte_model
import fuzzing
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import medusa, weights


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
      'number of nodes of TreeConfig is 4097; it must be <= 4096',
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
