# SPDX-License-Identifier: Apache-2.0
"""Layers that pass through memory give the tokens of layers that stay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import layer_folders
import numpy as np
import pytest
import tiny

from specstream_jax import config
from specstream_jax.config import drafting
from specstream_jax.decoding import (
  decoder,
  plain,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import prompt_lookup, streams
from specstream_jax.modeling import cache as cache_lib
from specstream_jax.streaming import (
  decoder as streamed_lib,
  driver,
  passes,
  weights as weights_lib,
)

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
DECODE = config.DecodeConfig(
  max_new_tokens=23, prompt_bucket=8, eos_ids=(5,), stop_sequences=((7, 7),)
)
TREE = config.TreeConfig('best_first', 3, 3, 7)
PRUNED = config.TreeConfig('best_first', 3, 3, 11, keep_nodes=5)
GREEDY = config.SamplingConfig()
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)


@pytest.fixture
def opened(tmp_path):
  """(base) -> the rest of it, and its layers, of which one stays."""
  made = []

  def open_layers(base, **settings):
    rest = layer_folders.write(tmp_path / 'layers', base)
    settings = {'resident_layers': 1} | settings
    cfg = config.StreamedWeightsConfig(**settings)
    made.append(weights_lib.LayerWeights(str(tmp_path / 'layers'), cfg))
    return rest, made[-1]

  yield open_layers
  for one in made:
    one.close()


def drafter_of(name, tree):
  if name == 'streams':
    return streams.Streams(tree, tiny.STREAMS.num_streams)
  if name == 'prompt_lookup':
    tree = config.TreeConfig('chain', depth=3)
    return prompt_lookup.PromptLookup(
      drafting.DrafterConfig('prompt_lookup', tree)
    )
  return plain.NoDraft()


@functools.cache
def wanted(mode, sampling):
  """Tokens of plain decoding with resident weights."""
  built, base, adapter = tiny.model(
    streams=dataclasses.replace(tiny.STREAMS, mode=mode)
  )
  made = decoder.Decoder(
    transformer_fns.model_fns(built), plain.NoDraft(), DECODE, sampling
  )
  return made.generate(transformer_fns.Params(base, adapter), PROMPTS, seed=3)


@pytest.mark.parametrize(
  ('name', 'schedule', 'tree', 'mode', 'sampling'),
  [
    ('streams', 'deferred', TREE, 'lossless', GREEDY),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('none', 'deferred', TREE, 'fine_tuned', GREEDY),
        ('streams', 'parallel', PRUNED, 'fine_tuned', SAMPLED),
        ('streams', 'likely', TREE, 'lossless', SAMPLED),
        ('streams', 'deferred', PRUNED, 'fine_tuned', GREEDY),
        ('prompt_lookup', 'deferred', TREE, 'fine_tuned', GREEDY),
      )
    ),
  ],
)
def test_tokens_equal_plain_decoding(
  opened, name, schedule, tree, mode, sampling
):
  built, base, adapter = tiny.model(
    streams=dataclasses.replace(tiny.STREAMS, mode=mode)
  )
  rest, weights = opened(base)
  fns = functools.partial(transformer_fns.model_fns, built)
  keep = tree.keep_nodes if name == 'streams' else 0
  made = streamed_lib.StreamedDecoder(
    fns(schedule, keep, likely_nodes=2),
    drafter_of(name, tree),
    dataclasses.replace(DECODE, schedule=schedule),
    weights,
    sampling,
    prompt_model=fns(is_prompt=True),
  )
  result = made.generate(transformer_fns.Params(rest, adapter), PROMPTS, seed=3)
  want = wanted(mode, sampling)
  assert result.tokens == want.tokens
  assert result.finish_reasons == want.finish_reasons
  assert weights.counts.taken > 0
  assert weights.counts.bytes_read >= (
    weights.counts.taken * weights.layout.num_bytes
  )
  if name == 'streams':
    assert result.calls.sum() < want.calls.sum()


@pytest.mark.slow
def test_a_pass_gives_what_resident_layers_give(opened):
  built, base, adapter = tiny.model()
  rest, weights = opened(base, buffers=1)
  fns = transformer_fns.model_fns(built, 'parallel', 5)
  runs = passes.Passes(fns.recipe, weights)
  tokens = tiny.tokens(3, (2, 7))
  length = jnp.array([4, 9], jnp.int32)
  keys = [
    jax.random.normal(jax.random.key(i), (2, 2, 24, 10)) for i in range(6)
  ]
  cache = lambda: cache_lib.Cache(
    *(tuple(map(jnp.copy, part)) for part in (keys[:3], keys[3:])), length
  )
  parents = jnp.array([[0, 0, 0, 1, 1, 2, 3]] * 2)
  mask = tree_lib.ancestor_mask(parents)
  positions = length[:, None] + mask.sum(axis=2) - 1
  whole = transformer_fns.Params(base, adapter)
  want = fns.forward(whole, tokens, positions, mask, cache(), with_streams=True)
  shell, adapters = driver.apart(transformer_fns.Params(rest, adapter))
  weights.expect(range(3))
  found = runs.forward(
    shell, adapters, tokens, positions, mask, cache(), with_streams=True
  )
  assert found.pruned.num_early_layers == want.pruned.num_early_layers
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found._replace(pruned=found.pruned.survivors),
    want._replace(pruned=want.pruned.survivors),
  )
