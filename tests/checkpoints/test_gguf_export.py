# SPDX-License-Identifier: Apache-2.0
"""A GGUF file with other weights reads back as those weights."""

import dataclasses

import gguf as gguf_format
import jax.numpy as jnp
import model_files
import numpy as np
import pytest

from specstream_jax.checkpoints import gguf, gguf_export


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_weights_come_back_and_metadata_stay(tmp_path, dtype):
  add = [
    lambda writer: writer.add_array('tokenizer.ggml.tokens', ['a', 'b']),
    lambda writer: writer.add_string('general.name', 'tiny'),
  ]
  source = model_files.write_gguf(tmp_path / 'a.gguf', extra=add)
  rng = np.random.default_rng(5)
  flat = {
    path: rng.normal(size=leaf.shape).astype(np.float16).astype(np.float32)
    for path, leaf in model_files.random_params().items()
  }
  path = str(tmp_path / 'b.gguf')
  gguf_export.save(path, str(source), flat, dtype=dtype)
  header = gguf.open_file(path)
  assert header.config == model_files.CONFIG
  found = gguf.open_params(header)
  assert found.keys() == flat.keys()
  for name, leaf in flat.items():
    if dtype == 'bfloat16' and leaf.ndim > 1:
      leaf = leaf.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found[name], leaf, err_msg=name)
  fields = gguf_format.GGUFReader(path).fields
  assert fields['tokenizer.ggml.tokens'].contents() == ['a', 'b']
  assert fields['general.name'].contents() == 'tiny'


@pytest.mark.parametrize(('dtype', 'steps'), [('q8_0', 127), ('q4_0', 7)])
def test_quantised_matrices_come_back_near(tmp_path, dtype, steps):
  config = dataclasses.replace(model_files.CONFIG, hidden_size=32)
  source = model_files.write_gguf(tmp_path / 'a.gguf', cfg=config)
  rng = np.random.default_rng(5)
  flat = {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in model_files.random_params(config).items()
  }
  path = str(tmp_path / 'b.gguf')
  gguf_export.save(path, str(source), flat, dtype=dtype)
  found = gguf.open_params(gguf.open_file(path))
  for name, leaf in flat.items():
    if leaf.ndim < 2:
      np.testing.assert_array_equal(found[name], leaf, err_msg=name)
      continue
    error = np.abs(np.asarray(found[name]) - leaf).max()
    # Half a step of the largest number's block, and float16 of its scale; the
    # four bits' largest number has two steps on one side.
    assert 0 < error <= np.abs(leaf).max() / steps, name
  kinds = {
    tensor.name: tensor.tensor_type.name
    for tensor in gguf_format.GGUFReader(path).tensors
  }
  assert kinds['token_embd.weight'] == 'Q8_0'
  assert kinds['blk.0.attn_q.weight'] == dtype.upper()
  # Rows of 13 numbers are no whole blocks.
  assert kinds['blk.0.ffn_down.weight'] == 'F16'
