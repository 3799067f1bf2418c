# SPDX-License-Identifier: Apache-2.0
"""GGUF files with counts, types and values that do not add up."""

import struct

import fuzzing
import gguf as gguf_format
import gguf_bytes
from hypothesis import strategies as st
import model_files
import numpy as np
import pytest

from specstream_jax.checkpoints import gguf, gguf_file, loading

SIZES = {
  'general.architecture': 'llama',
  'llama.block_count': 2,
  'llama.context_length': 29,
  'llama.embedding_length': 22,
  'llama.feed_forward_length': 13,
  'llama.attention.head_count': 6,
  'llama.attention.head_count_kv': 2,
  'llama.attention.key_length': 10,
  'llama.attention.value_length': 10,
  'llama.rope.freq_base': 1e5,
  'llama.rope.scaling.type': 'linear',
  'llama.rope.scaling.factor': 2.0,
  'llama.attention.layer_norm_rms_epsilon': 1e-5,
  'llama.vocab_size': 17,
}
OWN = {
  'tokenizer.ggml.eos_token_id': 2,
  'tokenizer.ggml.bos_token_id': 1,
  'tokenizer.ggml.add_bos_token': True,
  'tokenizer.ggml.token_type': [3, 3, 3, 1, 1, 1],
  'tokenizer.chat_template': 'T',
}
TOKENIZERS = {
  'gpt2': OWN
  | {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': ['<u>', '<s>', '</s>', 'a', 'b', 'ab'],
    'tokenizer.ggml.merges': ['a b'],
  },
  'llama': OWN
  | {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': ['<u>', '<s>', '</s>', '▁', 'a', '▁a'],
    'tokenizer.ggml.scores': [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    'tokenizer.ggml.unknown_token_id': 0,
    'tokenizer.ggml.add_space_prefix': True,
  },
}


def tensors():
  return model_files.gguf_tensors(model_files.random_params())


@st.composite
def damage(draw, metadata):
  """Wrong bytes in the header, or a sound header with wrong values."""
  if draw(st.booleans()):
    good = gguf_bytes.dump(metadata, tensors())
    head = good.index(b'output.weight') + 1000
    return draw(fuzzing.bytes_damage(good, head=head))
  wrong, names, what = draw(fuzzing.values(metadata))
  if names and isinstance(metadata.get(names[0]), list):
    names = ()  # One item says the type of all; the others may be left out.
  content = gguf_bytes.dump(wrong, tensors())
  return fuzzing.Damage(content, names=names, what=what)


@pytest.mark.parametrize('kind', list(TOKENIZERS))
@fuzzing.modes
def test_gguf(tmp_path, mode, kind):
  metadata = SIZES | TOKENIZERS[kind]
  path = tmp_path / 'm.gguf'
  path.write_bytes(gguf_bytes.dump(metadata, tensors()))

  def read():
    loading.load_model(path)
    gguf.read_tokenizer(gguf.open_file(path)).encode('ab a')

  fuzzing.attempt(mode, damage(metadata), path, read)


def test_reads_what_the_library_reads(tmp_path):
  path = tmp_path / 'm.gguf'
  metadata = (
    SIZES | TOKENIZERS['llama'] | {'general.x': [-1, -2], 'general.y': -3}
  )
  path.write_bytes(gguf_bytes.dump(metadata, tensors()))
  ours, found = gguf_file.read(str(path))
  theirs = gguf_format.GGUFReader(path)
  assert (
    ours
    == metadata
    == {
      key: field.contents()
      for key, field in theirs.fields.items()
      if not key.startswith('GGUF.')
    }
  )
  assert found.keys() == {tensor.name for tensor in theirs.tensors}
  for tensor in theirs.tensors:
    np.testing.assert_array_equal(found[tensor.name].data, tensor.data)
    assert found[tensor.name].shape == tuple(tensor.shape[::-1])


def head(num_tensors=0, num_keys=0, *, version=3, magic=b'GGUF'):
  return magic + struct.pack('<IQQ', version, num_tensors, num_keys)


def key(kind, value):
  return struct.pack('<Q', 1) + b'k' + struct.pack('<I', kind) + value


def tensor(num_dims, dims, kind=0, offset=0):
  name = struct.pack('<Q', 1) + b't'
  rest = struct.pack(f'<I{len(dims)}Q', num_dims, *dims)
  return name + rest + struct.pack('<IQ', kind, offset)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'it is empty'),
    (head(magic=b'GGML'), "begins with b'GGML', not b'GGUF'"),
    (head(version=1), 'its version is 1; accepted: 2, 3'),
    (head(version=3 << 24), 'version is 50,331,648, perhaps of the other byte'),
    (head(0, 2**64 - 1), 'metadata key 0 of 18,446,744,073,709,551,615'),
    (head(2**64 - 1), 'the name of tensor 0 of 18,446,744'),
    (head(0, 1) + struct.pack('<Q', 2**40), 'takes 1,099,511,627,776 bytes, 0'),
    (head(0, 1) + key(77, b''), "'k' is of type 77, which is not known"),
    (head(0, 2) + key(7, b'\1') * 2, "'k' stands there twice"),
    (head(0, 1) + key(8, struct.pack('<Q', 1) + b'\xff'), "'k' is not UTF-8"),
    (
      head(0, 1) + key(9, struct.pack('<IQ', 0, 2**62)),
      "'k' has 4,611,686,018,427,387,904 items; accepted: 4,194,304",
    ),
    (
      head(0, 1) + key(9, struct.pack('<IQ', 0, 2**20)),
      "'k' at byte 49 takes 1,048,576 bytes, 0 are left",
    ),
    (
      head(0, 1) + key(9, struct.pack('<IQ', 9, 1) * 3),
      "'k' is of type 9, which is not known",
    ),
    (head(1) + tensor(2**31, ()), "'t' has 2,147,483,648 dimensions"),
    (head(1) + tensor(1, (4,), 999), "'t' is of type 999"),
    (head(1) + tensor(2, (2**40, 2**40)), 'takes 4,835,703,278,458,516,698,'),
    (head(1) + tensor(1, (4,), 0, 2**63), 'takes 16 bytes from byte 9,223,372'),
    (head(1) + tensor(1, (5,), 2), 'rows of 5 elements, no multiple of the 32'),
    (head(2) + tensor(1, (0,)) * 2, "tensor 't' stands there twice"),
  ],
)
def test_what_does_not_add_up(tmp_path, content, message):
  path = tmp_path / 'm.gguf'
  path.write_bytes(content)
  with fuzzing.limits(), pytest.raises(ValueError, match=message) as error:
    gguf.open_file(path)
  assert f"m.gguf' ({len(content):,} bytes) is truncated" in str(error.value)


def test_more_layers_than_tensors(tmp_path):
  path = tmp_path / 'm.gguf'
  for count, message in (
    (900, '900 layers, but only 21'),
    (10**9, 'num_layers'),
  ):
    content = gguf_bytes.dump(SIZES | {'llama.block_count': count}, tensors())
    path.write_bytes(content)
    with fuzzing.limits(), pytest.raises(ValueError, match=message):
      gguf.open_file(path)


@pytest.mark.parametrize(
  ('kind', 'change', 'message'),
  [
    ('gpt2', {'merges': ['ab']}, "merges holds 'ab'; accepted: two tok"),
    ('gpt2', {'merges': ['a c']}, "merges holds 'a c'; accepted: two tok"),
    ('gpt2', {'merges': 5}, 'merges is 5; accepted: a list of texts'),
    ('gpt2', {'tokens': ['x'] * 18}, '18 tokens; accepted: .* the 17'),
    ('gpt2', {'bos_token_id': 6}, 'bos_token_id is 6; accepted: .* 0 to 5'),
    ('gpt2', {'add_bos_token': 1}, 'add_bos_token is 1; accepted: true'),
    ('llama', {'scores': [1.0]}, 'scores has 1 numbers; accepted: .* 6'),
    ('llama', {'unknown_token_id': 9}, 'unknown_token_id is 9; accepted'),
    ('llama', {'tokens': ['x' * 2000] * 6}, 'one of 2,000 characters'),
    ('llama', {'token_type': ['a']}, "token_type is .'a'.; accepted: a list"),
  ],
)
def test_tokenizers_that_are_none(tmp_path, kind, change, message):
  path = tmp_path / 'm.gguf'
  change = {f'tokenizer.ggml.{name}': value for name, value in change.items()}
  metadata = SIZES | TOKENIZERS[kind] | change
  path.write_bytes(gguf_bytes.dump(metadata, tensors()))
  with pytest.raises(ValueError, match=rf'tokenizer of GGUF .*{message}'):
    gguf.read_tokenizer(gguf.open_file(path))
