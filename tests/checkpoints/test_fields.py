# SPDX-License-Identifier: Apache-2.0
"""JSON files and their fields: what is refused, and with which words."""

import json
import math
import os
import struct

import fuzzing
import pytest

from specstream_jax.checkpoints import (
  fields,
  files,
  tensor_files,
  tokenizer_errors,
  tokenizer_files,
)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'is not JSON \(Expecting value'),
    (b'{', r'is not JSON \(Expecting'),
    (b'[1]', 'holds a JSON list, not an object'),
    (b'\xff{}', r'is not UTF-8 text \(invalid start byte at byte 0\)'),
    (b'{"a": ' * 65 + b'1' + b'}' * 65, 'nested more than 64 deep'),
    (b'[' * 10**6, 'nested more than 64 deep'),
    (b'{"a": 1, "a": 2}', "'a' stands there twice, with different values"),
    (b'{"a": "\\ud800"}', r'is not JSON \(.*surrogates not allowed'),
    (b'{"a": ' + b'1' * 5000 + b'}', r'is not JSON \(Exceeds the limit'),
  ],
)
def test_files_that_hold_no_object(tmp_path, content, message):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with fuzzing.limits(), pytest.raises(ValueError, match=message) as error:
    files.read_json(path)
  assert str(path) in str(error.value)


def test_what_is_as_good_as_any_other_json(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"a": 1, "b": "\\ud83d\\ude00", "a": 1, "c": NaN}')
  found = files.read_json(path)
  assert (found['a'], found['b']) == (1, '😀') and math.isnan(found['c'])
  deep = '{"a": ' * 64 + '1' + '}' * 64
  assert json.dumps(files.loads(deep)) == deep


def test_places_that_are_no_files(tmp_path):
  with pytest.raises(ValueError, match=r"none' does not exist"):
    files.read_json(tmp_path / 'none')
  with pytest.raises(ValueError, match=r'cannot be read \(Is a directory\)'):
    files.read_text(tmp_path)
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  with pytest.raises(ValueError, match=r'cannot be read \(Too many levels'):
    files.read_text(tmp_path / 'loop')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read(tmp_path):
  (tmp_path / 'a').write_text('a')
  (tmp_path / 'a').chmod(0)
  with pytest.raises(ValueError, match=r'cannot be read \(Permission denied'):
    files.read_text(tmp_path / 'a')


@pytest.mark.parametrize(
  ('kind', 'good', 'bad'),
  [
    (fields.TEXT, ['', 'x'], [None, 5, ['x']]),
    (fields.BOOL, [True, False], [0, 1, 'true', None]),
    (fields.COUNT, [0, 2**31 - 1], [-1, 2**31, True, 1.0, '1', None]),
    (fields.SIZE, [1], [0]),
    (fields.integers(0, 6), [0, 6], [7]),
    (fields.NUMBER, [-1, 0.5, 10**300], [10**400, math.nan, math.inf, True]),
    (fields.POSITIVE, [1e-5, 3], [0, -1, 1e39, 1e-50, math.nan, None]),
    (fields.TEXTS, [[], ['a']], ['a', ['a', 1], {'a': 'b'}]),
    (fields.COUNTS, [[], [0, 5]], [[-1], [0.5], 5]),
    (fields.NUMBERS, [[0.5, 1]], [[math.nan], ['1']]),
  ],
)
def test_kinds(kind, good, bad):
  assert all(map(kind.fits, good))
  assert not any(map(kind.fits, bad))


def test_messages_name_file_field_value_and_what_is_accepted():
  read = lambda value, *default: fields.get(
    value, 'n', fields.SIZE, 'f.json', *default
  )
  assert read({'n': 3}) == 3 and read({'n': 3}, 7) == 3
  assert read({}, 7) == read({'n': None}, 7) == 7
  accepted = 'accepted: an integer >= 1 that fits 32 bits'
  with pytest.raises(ValueError, match=f'f.json has no n; {accepted}'):
    read({})
  with pytest.raises(ValueError, match=f"f.json: n is 'x'; {accepted}"):
    read({'n': 'x'}, 7)
  with pytest.raises(ValueError, match=f'f.json: n is None; {accepted}'):
    read({'n': None})
  with pytest.raises(ValueError, match=r'n is .{80}…; accepted'):
    read({'n': 'x' * 10**6})


def header(**tensor):
  text = json.dumps({'a': tensor}).encode()
  return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'\(0 bytes\) is truncated or corrupt'),
    (struct.pack('<Q', 2**63), 'is truncated or corrupt'),
    (
      header(dtype='F8_E4M3', shape=[8], data_offsets=[0, 8]) + bytes(8),
      "tensor 'a' is F8_E4M3; accepted: F64, F32",
    ),
  ],
)
def test_tensors_that_are_none(tmp_path, content, message):
  path = str(tmp_path / 'a.safetensors')
  (tmp_path / 'a.safetensors').write_bytes(content)
  with pytest.raises(ValueError, match=rf'a\.safetensors.*{message}.*; again'):
    tensor_files.read(path, 'again')


def test_tensors_in_no_file(tmp_path):
  with pytest.raises(ValueError, match=r"none' does not exist; delete it"):
    tensor_files.open_file(str(tmp_path / 'none'))
  with pytest.raises(ValueError, match=r'cannot be read \(.*\); delete it'):
    tensor_files.open_file(str(tmp_path))


def test_a_panic_of_the_tokenizers_library_is_an_error(tmp_path, capfd):
  """A merge whose result is no token makes its code panic."""
  raw = {
    'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 1}, 'merges': [['a', 'b']]}
  }
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(raw))
  with pytest.raises(ValueError, match=r"json' cannot be read \(range end"):
    tokenizer_files.open_json(str(path))
  assert capfd.readouterr().err == ''
  with pytest.raises(KeyboardInterrupt), tokenizer_errors.naming('x', 'y'):
    raise KeyboardInterrupt


def test_a_token_id_that_no_vocabulary_reaches(tmp_path):
  raw = {'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 2**31}, 'merges': []}}
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(raw))
  message = r"json' has the token id 2,147,483,648; accepted: below 16,777,216"
  with pytest.raises(ValueError, match=message):
    tokenizer_files.open_json(str(path))
