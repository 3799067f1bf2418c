# SPDX-License-Identifier: Apache-2.0
"""Tiny random models with distinct prime sizes, shared by the tests."""

import functools

import jax

from specstream_jax import config
from specstream_jax.modeling import build, initialize, params

CONFIG = config.ModelConfig(
  vocab_size=53,
  hidden_size=22,
  intermediate_size=31,
  num_layers=3,
  num_heads=6,
  num_kv_heads=2,
  head_dim=10,
  tie_word_embeddings=True,
)
STREAMS = config.StreamConfig(num_streams=3, num_msa_layers=2, pruning_rank=2)
LORA = config.LoraConfig(rank=2, alpha=3.0)


@functools.cache
def model(cfg=CONFIG, streams=STREAMS, lora=LORA, seed=0):
  """(built, base, adapter) with every adapter weight away from zero."""
  built = build.build(cfg, streams, lora)
  base = initialize.init_base(jax.random.key(seed), cfg, scale=1.5)
  flat = params.flatten(built.adapter)
  keys = jax.random.split(jax.random.key(seed + 1), len(flat) + 1)
  noise = lambda key, leaf: 0.3 * jax.random.normal(key, leaf.shape)
  adapter = {p: noise(k, leaf) for k, (p, leaf) in zip(keys, flat.items())}
  return built, base, params.unflatten(adapter)


def tokens(seed, shape, vocab_size=CONFIG.vocab_size):
  """Random token ids."""
  return jax.random.randint(jax.random.key(seed), shape, 0, vocab_size)
