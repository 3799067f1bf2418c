# SPDX-License-Identifier: Apache-2.0
"""Three files may say where a text ends: all count, and differences show."""

import json

import model_files
import pytest

from specstream_jax.checkpoints import eos, gguf, loading
from specstream_jax.cli import info

TOKENIZER = model_files.tokenizer()  # a, b, </s>


def write(folder, *, token=None, generation=None, config=2):
  raw = dict(model_files.HF_CONFIG, eos_token_id=config)
  folder = model_files.write_hf(folder, raw)
  TOKENIZER.save(str(folder / 'tokenizer.json'))
  files = {
    'tokenizer_config.json': {'eos_token': token},
    'generation_config.json': {'eos_token_id': generation},
  }
  for name, fields in files.items():
    if None not in fields.values():
      (folder / name).write_text(json.dumps(fields))
  return folder


@pytest.mark.parametrize(
  ('settings', 'ids'),
  [
    ({}, (2,)),
    ({'generation': [5, 7]}, (5, 7, 2)),
    ({'token': 'b'}, (1, 2)),
    ({'token': {'content': 'b'}, 'generation': [2, 7], 'config': 2}, (1, 2, 7)),
    ({'token': '</s>', 'config': None}, (2,)),
    ({'token': 'not a token', 'config': [3, 3]}, (3,)),
    ({'config': []}, ()),
  ],
)
def test_decoding_stops_at_all_of_them(tmp_path, settings, ids):
  loaded = loading.load_model(write(tmp_path, **settings))
  assert loaded.eos_ids == ids
  outline = loading.load_outline(tmp_path)
  assert outline.eos_ids == ids and outline.eos_said == loaded.eos_said
  assert outline.config == loaded.config and not outline.params


def test_an_end_of_the_tokenizer_that_no_model_writes_is_left_out(tmp_path):
  folder = write(tmp_path, token='b', config=0)
  assert eos.read(folder, TOKENIZER, 1) == {'config.json': (0,)}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'config': 17}, "config.json': eos_token_id is 17; accepted: a token id"),
    ({'config': -1}, r'eos_token_id is -1; accepted: a token id from 0 to 16'),
    ({'config': '2'}, "eos_token_id is '2'; accepted: a token id from 0 to 16"),
    ({'config': {'a': 1}}, r"eos_token_id is \{'a': 1\}; accepted"),
    ({'config': [2, True]}, r'eos_token_id is \[2, True\]; accepted'),
    ({'generation': [2.0]}, r"generation_config.json': eos_token_id is \[2.0"),
    ({'token': 5}, "tokenizer_config.json': eos_token is 5; accepted: the tok"),
    ({'token': {'content': 5}}, r"eos_token is \{'content': 5\}; accepted"),
  ],
)
def test_what_is_no_id_names_the_file(tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    loading.load_model(write(tmp_path, **settings))


def test_gguf_ids_beyond_the_vocabulary_name_the_file(tmp_path):
  extra = [lambda w: w.add_uint32('tokenizer.ggml.eot_token_id', 99)]
  path = model_files.write_gguf(tmp_path / 'a.gguf', extra=extra)
  with pytest.raises(
    ValueError, match=r"a\.gguf': tokenizer.ggml.eot_tok.* 99"
  ):
    gguf.eos_ids(gguf.open_file(path))


def test_the_difference_is_one_line():
  said = {'tokenizer_config.json': (1,), 'config.json': (2, 9)}
  assert eos.difference(said, TOKENIZER) == (
    "EOS differs: tokenizer_config.json 1 'b'; config.json 2 '</s>', 9"
  )
  assert eos.difference(said, TOKENIZER, 1) == (
    "EOS differs: the records 1 'b'; tokenizer_config.json 1 'b'; config.json "
    "2 '</s>', 9"
  )
  assert eos.difference({'config.json': ()}, None, 3) == (
    'EOS differs: the records 3; config.json none'
  )
  # A list that holds the records' end stops there.
  assert not eos.difference({'a': (1,), 'b': (2, 1)}, TOKENIZER, 1)
  assert not eos.difference({'a': (1, 2), 'b': (2, 1)}, TOKENIZER)
  assert not eos.difference({}, TOKENIZER, 1)


def test_info_says_so(tmp_path):
  text = info.describe(str(write(tmp_path / 'a', token='b')))
  assert "EOS:               1 'b', 2 '</s>'" in text
  assert (
    "note:              EOS differs: tokenizer_config.json 1 'b'; c" in text
  )
  text = info.describe(str(write(tmp_path / 'b', token='</s>')))
  assert 'EOS differs' not in text
