# SPDX-License-Identifier: Apache-2.0
"""Weights in 8 bits: another model, which decodes as exactly as any."""

import dataclasses
import json

import family_models
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config, runtime
from specstream_jax.bench import external
from specstream_jax.checkpoints import draft_vocabulary, loading
from specstream_jax.modeling import build, int8, layers, lora, params

LENGTH = 8
DECODE = config.DecodeConfig(max_new_tokens=10, prompt_bucket=LENGTH)


def oracle(matrix):
  """(Q, s) of [I, O], one number after the other."""
  narrow, scale = np.zeros(matrix.shape, int), np.ones(matrix.shape[1])
  for o in range(matrix.shape[1]):
    largest = max(abs(float(w)) for w in matrix[:, o])
    if largest:
      scale[o] = largest / 127
    for i in range(matrix.shape[0]):
      narrow[i, o] = round(float(matrix[i, o]) / scale[o])
  return narrow, scale


def test_each_output_channel_has_a_scale_of_its_own():
  rng = np.random.default_rng(0)
  matrix = rng.normal(size=(11, 7)).astype(np.float32)
  matrix *= 10.0 ** np.arange(-3, 4)
  matrix[:, 2] = 0.0
  narrow, scale = oracle(matrix)
  for axis, given in ((0, matrix), (1, matrix.T)):
    found, scales = int8.quantize(given, axis)
    assert found.dtype == np.int8 and np.abs(found).max() == 127
    np.testing.assert_array_equal(found if axis == 0 else found.T, narrow)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
  # No weight is off by more than half a step of its channel.
  assert (np.abs(narrow * scale - matrix) <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize(
  'dtype, exact', [('float32', 1e-6), ('bfloat16', 2e-4)]
)
@pytest.mark.parametrize('num_rows', [1, 5, 131])  # by digits, and by numbers
@pytest.mark.parametrize('layout', layers.LAYOUTS)
def test_a_product_is_that_of_the_weights_it_stands_for(
  layout, num_rows, dtype, exact
):
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(13, 5)).astype(np.float32)
  narrow, scale = int8.quantize(matrix, 0)
  x = rng.normal(size=(1, num_rows, 13)) * 10.0 ** rng.integers(
    -3, 3, size=(1, num_rows, 1)
  )
  x[:, num_rows // 2, :] *= num_rows == 1  # a row of zeros
  x = jnp.asarray(x, dtype)
  kernel = narrow if layout == 'in_out' else narrow.T
  found = layers.scaled(x, jnp.asarray(kernel), jnp.asarray(scale), layout)
  assert found.dtype == jnp.float32 and found.shape == (1, num_rows, 5)
  wide = np.asarray(x, np.float64)
  expected = wide @ (narrow * scale.astype(np.float64))
  largest = np.abs(wide).max(-1, keepdims=True) * np.abs(matrix).sum(0)
  assert (np.abs(found - expected) <= exact * largest).all()


def test_logits_are_those_of_the_weights_it_stands_for():
  made = family_models.load('opt')
  cfg = dataclasses.replace(made.cfg, weights_dtype='int8')
  flat = dict(int8.stored(made.flat, cfg))
  assert flat['layers/0/mlp/up/kernel'].dtype == np.int8
  plain = int8.dequantize(flat, cfg)
  assert plain.keys() == made.flat.keys()
  path = 'layers/0/attention/out/kernel'
  assert (plain[path] != made.flat[path]).any()  # another model
  logits = []
  for sizes, weights in ((cfg, flat), (made.cfg, plain)):
    model = build.build(sizes).merge(
      params.unflatten({k: jnp.asarray(v) for k, v in weights.items()}), {}
    )
    hidden = family_models.train_pass(model, made.text).main
    logits.append(np.asarray(model.logits(hidden)))
  np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def decode(model, drafter, prompts):
  decoder = model.decoder(drafter, DECODE)
  return decoder.generate(decoder.params, prompts)


STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)


def load(made):
  """A family's model in 8 bits, with streams."""
  model = runtime.load(made.folder, weights_dtype='int8')
  return runtime.with_random_streams(model, STREAM)


def test_drafts_change_no_token(tmp_path):
  made = family_models.load('opt')
  model, prompts = load(made), made.text[:, :LENGTH].tolist()
  vocabulary = {'format': draft_vocabulary.FORMAT, 'ids': [5, 3, 8, 1, 2, 4]}
  path = tmp_path / 'ids.json'
  path.write_text(json.dumps(vocabulary))
  drafter = f'streams:depth=2,num_nodes=3,vocabulary={path}'
  head = model.params(drafter).drafter.head
  assert head.rows.dtype == jnp.int8 and head.scale.shape == (6,)
  plain = decode(model, 'none', prompts).tokens
  assert decode(model, drafter, prompts).tokens == plain


@pytest.mark.slow
@pytest.mark.parametrize('name', family_models.NAMES)
def test_drafts_change_no_token_of_any_family(name):
  made = family_models.load(name)
  model, prompts = load(made), made.text[:, :LENGTH].tolist()
  plain = decode(model, 'none', prompts).tokens
  assert decode(model, 'streams:depth=2,num_nodes=3', prompts).tokens == plain
  # The draft model is in 8 bits as well: it is the model.
  drafter = f'draft_model:path={made.folder},kind=chain,depth=2'
  found = decode(model, drafter, prompts)
  assert found.tokens == plain
  assert (found.calls < len(plain[0]) // 2).all()


def test_lora_is_folded_in_before():
  made = family_models.load('opt')
  rng = np.random.default_rng(2)
  path = 'layers/0/mlp/up/kernel'
  rank_two = {
    f'layers/0/mlp/up/lora_{k}': rng.normal(size=shape).astype(np.float32)
    for k, shape in zip(
      'ab', [(made.flat[path].shape[0], 2), (2, made.flat[path].shape[1])]
    )
  }
  cfg = dataclasses.replace(made.cfg, weights_dtype='int8')
  folded = lora.Folded(made.flat, rank_two, config.LoraConfig(2, 4.0))
  found = int8.stored(folded, cfg)
  np.testing.assert_array_equal(found[path], int8.quantize(folded[path], 0)[0])
  assert not np.array_equal(found[path], int8.stored(made.flat, cfg)[path])


def test_rivals_get_the_weights_it_stands_for():
  made = family_models.load('phi')
  model = runtime.load(made.folder, weights_dtype='int8')
  flat = external.plain_weights(model)
  assert flat.keys() == loading.load_model(made.folder).params.keys()
  path = 'layers/0/mlp/down/kernel'
  scale = np.asarray(model.base['layers'][0]['mlp']['down']['kernel_scale'])
  off = np.abs(flat[path] - made.flat[path])
  assert off.max() > 0 and (off <= scale / 2 * (1 + 1e-4)).all()


def test_what_it_does_not_know_is_refused():
  made = family_models.load('phi')
  with pytest.raises(ValueError, match=r"weights_dtype.*'int4'"):
    runtime.load(made.folder, weights_dtype='int4')
