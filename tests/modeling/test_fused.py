# SPDX-License-Identifier: Apache-2.0
"""Kernels that are multiplied as one: same weights, same sums, same tokens."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
import tiny_runtime

from specstream_jax import config, partitioning
from specstream_jax.config import model as config_model
from specstream_jax.modeling import (
  build,
  fused,
  initialize,
  int8,
  layers,
  params,
)

PROMPTS = [[5, 6, 7], [9]]
BIASED = dataclasses.replace(
  tiny.CONFIG,
  attention=config_model.AttentionConfig(has_bias=True, has_out_bias=True),
  mlp=config_model.MlpConfig(has_bias=True),
)
UNGATED = dataclasses.replace(
  tiny.CONFIG, mlp=config_model.MlpConfig(is_gated=False)
)
INT8 = dataclasses.replace(BIASED, weights_dtype='int8')


def _flat(cfg):
  """Random weights [in, out], no bias zero."""
  plain = dataclasses.replace(cfg, weights_dtype='')
  flat = params.flatten(initialize.init_base(jax.random.key(0), plain))
  rng = np.random.default_rng(0)
  return {
    path: np.float32(rng.standard_normal(leaf.shape))
    if path.endswith('bias')
    else np.asarray(leaf)
    for path, leaf in flat.items()
  }


def _put(flat, cfg):
  return partitioning.local().put(int8.stored(flat, cfg), transposed=True)


@pytest.mark.parametrize('cfg', [tiny.CONFIG, BIASED, UNGATED, INT8])
def test_a_view_has_the_weights_that_the_model_asks_for(cfg):
  apart = _put(_flat(cfg), cfg)
  joined = _put(fused.Fused(_flat(cfg)), cfg)
  built = params.flatten(build.build(cfg, layout=fused.LAYOUT).base)
  assert {path: leaf.shape for path, leaf in joined.items()} == {
    path: leaf.shape for path, leaf in built.items()
  }
  assert any('query_key_value' in path for path in joined)
  # As many bytes, and the same ones.
  again = fused.split(joined, cfg)
  assert again.keys() == apart.keys()
  for path, leaf in apart.items():
    np.testing.assert_array_equal(again[path], leaf)
  untouched = fused.split(apart, cfg)
  assert untouched.keys() == apart.keys()


ROWS = layers.RowLora(rank=2, alpha=1.0)


@pytest.mark.parametrize(
  ('cfg', 'lora'),
  [
    (BIASED, config.LoraConfig(rank=2, modules=('key', 'up'))),
    (tiny.CONFIG, ROWS),
    pytest.param(tiny.CONFIG, tiny.LORA, marks=pytest.mark.slow),
    pytest.param(UNGATED, None, marks=pytest.mark.slow),
    pytest.param(INT8, tiny.LORA, marks=pytest.mark.slow),
  ],
)
def test_a_layer_gives_the_same_sums(cfg, lora):
  made = []
  x = jax.random.normal(jax.random.key(1), (2, 5, cfg.hidden_size))
  for flat, layout in (
    (_flat(cfg), 'out_in'),
    (fused.Fused(_flat(cfg)), fused.LAYOUT),
  ):
    built = build.build(cfg, tiny.STREAMS, lora, layout)
    adapter = params.flatten(built.adapter)
    keys = jax.random.split(jax.random.key(2), len(adapter))
    adapter = {
      # Of rows, LoRA differs from one to the other.
      path: jax.random.normal(key, _by_row(leaf.shape, lora, path))
      for key, (path, leaf) in zip(keys, adapter.items())
    }
    model = built.merge(
      params.unflatten(_put(flat, cfg)), params.unflatten(adapter)
    )
    layer = model.layers[-1]
    for lora_start in (0, 3):
      made += layer.attention._products(x, lora_start)
      made.append(layer.mlp(x, lora_start))
  half = len(made) // 2
  assert half == 8
  for one, other in zip(made[:half], made[half:], strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def _by_row(shape, lora, path):
  return (2, *shape) if lora is ROWS and 'lora_' in path else shape


@pytest.mark.parametrize(
  'drafter',
  [
    'streams:kind=best_first,depth=2,branching=3,num_nodes=6',
    pytest.param('none', marks=pytest.mark.slow),
    pytest.param('prompt_lookup', marks=pytest.mark.slow),
    pytest.param(
      'streams:kind=best_first,depth=2,branching=3,num_nodes=6,'
      'schedule=parallel',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_tokens_stay(drafter):
  model = tiny_runtime.model()
  flat = params.transpose_kernels(params.flatten(model.base))
  joined = dataclasses.replace(
    model,
    base=params.unflatten(_put(fused.Fused(flat), model.config)),
    layout=fused.LAYOUT,
    _decoders={},
  )
  decode = config.DecodeConfig(max_new_tokens=24)
  made = []
  for one, name in ((model, 'none'), (joined, drafter)):
    decoder = one.decoder(name, decode)
    made.append(decoder.generate(decoder.params, PROMPTS).tokens)
  assert made[0] == made[1]
