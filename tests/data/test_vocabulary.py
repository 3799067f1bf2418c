# SPDX-License-Identifier: Apache-2.0
"""Tokenizer files: EOS, BOS only if asked, round trip."""

import json
import pathlib
import shutil
import types

import data_testing
import pytest
from tokenizers import Tokenizer, models, normalizers, processors

from specstream_jax.checkpoints import token_ids, tokenizer_files
from specstream_jax.cli import prepare
from specstream_jax.data import vocabulary


def test_encode_and_decode():
  vocab = data_testing.make_vocabulary()
  ids = vocab.encode_targets(' Café £3')
  assert ids[-1] == vocab.eos_id
  assert vocab.decode([*ids, 5, 6]) == ' Café £3'
  assert vocab.encode_inputs('ab').tolist() == vocab.encode('ab')


def test_bos_only_if_the_tokenizer_asks(tmp_path):
  tokenizer = data_testing.make_tokenizer()
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  config = {'eos_token': {'content': data_testing.EOS}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  plain = vocabulary.load(str(tmp_path))
  assert plain.bos_id is None
  assert plain.eos_id == tokenizer.token_to_id(data_testing.EOS)
  tokenizer.add_special_tokens(['<bos>'])
  bos_id = tokenizer.token_to_id('<bos>')
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', bos_id)]
  )
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  asked = vocabulary.load(str(tmp_path / 'tokenizer.json'))
  assert asked.bos_id == bos_id
  assert asked.encode_inputs('ab').tolist() == [bos_id, *asked.encode('ab')]
  assert asked.sha256 != plain.sha256  # one more token


def test_load_errors(tmp_path):
  with pytest.raises(
    ValueError, match=r'has no tokenizer\.json, tokenizer\.model or'
  ):
    vocabulary.load(str(tmp_path))
  data_testing.make_tokenizer().save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(ValueError, match="no EOS token ''; pass eos_token"):
    vocabulary.load(str(tmp_path))
  with pytest.raises(ValueError, match="no EOS token '</s>'"):
    vocabulary.load(str(tmp_path), eos_token='</s>')


@pytest.mark.parametrize('read', [vocabulary.load, tokenizer_files.read])
def test_saved_truncation_and_padding_are_switched_off(tmp_path, read):
  tokenizer = data_testing.make_tokenizer()
  tokenizer.enable_padding(length=9, pad_id=3, pad_token='x')
  tokenizer.enable_truncation(5)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  config = {'eos_token': data_testing.EOS}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  found = read(str(tmp_path))
  plain = data_testing.make_tokenizer()
  encode = getattr(found, 'tokenizer', found).encode
  for text in ('ab', 'longer than five'):
    assert encode(text).ids == plain.encode(text).ids


def test_hash_follows_the_ids_only():
  plain, other = data_testing.make_tokenizer(), data_testing.make_tokenizer()
  other.enable_padding(length=9)
  other.enable_truncation(5)
  expected = token_ids.tokenizer_hash(plain)
  assert token_ids.tokenizer_hash(other) == expected
  other.normalizer = normalizers.Lowercase()
  assert token_ids.tokenizer_hash(other) != expected


@pytest.fixture
def prepared(tmp_path, monkeypatch):
  """Runs the command with --tokenizer, up to the records; says how."""
  tokenizer = data_testing.make_tokenizer()
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  fields = json.dumps({'eos_token': data_testing.EOS})
  (tmp_path / 'tokenizer_config.json').write_text(fields)
  asked = {}
  made = types.SimpleNamespace(prepare=lambda *_, **kw: asked.update(kw) or {})
  monkeypatch.setattr(prepare, '_module', lambda name: made)
  names = ('num_workers', 'beam_option', 'eos_token', 'split', 'data_dir')
  names += ('skip_bad_rows', 'num_shards', 'max_length', 'too_long')
  names += ('overwrite', 'ngram_table', 'draft_vocabulary')
  flags = dict.fromkeys(names, '') | {'task': 'jsonl', 'output_dir': 'x'}
  flags |= {'num_shards': 1, 'num_workers': 0, 'max_length': 0}
  flags |= {'too_long': 'drop', 'overwrite': False}

  def run(path):
    args = types.SimpleNamespace(**flags, tokenizer=str(path))
    monkeypatch.setattr(prepare, 'FLAGS', args)
    monkeypatch.setattr(prepare.task_flags, 'name', lambda **_: args.task)
    prepare.main([])
    return asked

  return run


def test_preparing_knows_the_positions_of_the_model(prepared, tmp_path):
  families = pathlib.Path(__file__).parents[1] / 'golden' / 'families'
  for name, most in (('opt', 40), ('qwen3', 0)):
    shutil.copy(families / name / 'config.json', tmp_path)
    assert prepared(tmp_path)['most_positions'] == most
  assert prepared(tmp_path / 'tokenizer.json')['most_positions'] == 0


def test_preparing_says_where_the_model_ends_otherwise(
  prepared, tmp_path, capsys
):
  end = data_testing.make_tokenizer().token_to_id(data_testing.EOS)
  for ids, differs in ((end, False), ([3, end], False), (3, True)):
    config = json.dumps({'eos_token_id': ids})
    (tmp_path / 'config.json').write_text(config)
    for path in (tmp_path, tmp_path / 'tokenizer.json'):
      prepared(path)
      said = capsys.readouterr().err
      assert ('note: EOS differs: the records ' in said) == differs
      assert ('config.json 3' in said) == differs


def test_a_text_that_the_tokenizer_cannot_spell(tmp_path):
  """Word by word, and without a token for unknown words."""
  words = models.WordLevel({'a': 0, '<eos>': 1}, unk_token='?')
  path = str(tmp_path / 'tokenizer.json')
  Tokenizer(words).save(path)
  found = vocabulary.load(path, eos_token='<eos>')
  assert found.encode('a') == [0]
  message = r'cannot encode the text \(WordLevel error: Missing .*; use words'
  with pytest.raises(ValueError, match=message):
    found.encode('b')
