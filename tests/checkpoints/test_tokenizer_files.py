# SPDX-License-Identifier: Apache-2.0
"""Tokenizers in older files give the ids that transformers gives."""

import json
import pathlib

import pytest
import tokenizer_kinds
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from specstream_jax.checkpoints import spm_file, tokenizer_files

HARD = (pathlib.Path(__file__).parent / 'hard_strings.txt').read_text(
  encoding='utf-8'
)
TEXTS = [*HARD.split('\n'), HARD, '', ' ', '  ', '\n', ' a', 'a ', '\t\n  x']
WORDS = [*HARD.split('\n'), 'the sky is blue and the sea is wide'] * 3


def spm_model(folder, **settings):
  """Trains tokenizer.model on the hard strings."""
  sentencepiece = pytest.importorskip('sentencepiece')
  folder.mkdir(exist_ok=True)
  (folder / 'words.txt').write_text('\n'.join(WORDS))
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / 'words.txt'),
    model_prefix=str(folder / 'tokenizer'),
    minloglevel=2,
    **{
      'vocab_size': 420,
      'model_type': 'bpe',
      'byte_fallback': True,
      'character_coverage': 0.98,
      'normalization_rule_name': 'identity',
      'remove_extra_whitespaces': False,
      'hard_vocab_limit': False,
    }
    | settings,
  )
  return sentencepiece.SentencePieceProcessor(
    model_file=str(folder / 'tokenizer.model')
  )


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'model_type': 'unigram'},
    {'add_dummy_prefix': False},
    {'normalization_rule_name': 'nmt_nfkc', 'remove_extra_whitespaces': True},
    {'byte_fallback': False},
  ],
)
def test_ids_of_sentencepiece_models(tmp_path, settings):
  theirs = spm_model(tmp_path, **settings)
  ours = tokenizer_files.read(tmp_path)
  # Special tokens are taken from the text here, as transformers does.
  for text in (text for text in TEXTS if '<s>' not in text):
    wanted = theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False).ids == wanted, text
    assert ours.encode(text).ids == [theirs.bos_id(), *wanted]


@pytest.mark.parametrize('prefix', [None, False, True])
def test_ids_of_transformers_with_a_sentencepiece_model(tmp_path, prefix):
  transformers = pytest.importorskip('transformers')
  spm_model(tmp_path, add_dummy_prefix=not prefix)
  added = {'content': '<extra>', 'special': True, 'normalized': False}
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps(
      {
        'tokenizer_class': 'LlamaTokenizer',
        'bos_token': '<s>',
        'eos_token': '</s>',
        'add_bos_token': True,
        'legacy': False,
        'add_prefix_space': prefix,
        'added_tokens_decoder': {'420': added},
      }
    )
  )
  ours = tokenizer_files.read(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ours.token_to_id('<extra>') == 420
  for text in [*TEXTS, '<extra>', 'a<extra>b', '</s>a <s>']:
    assert ours.encode(text).ids == theirs(text)['input_ids'], text
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def write_config(folder, **fields):
  path = folder / 'tokenizer_config.json'
  path.write_text(json.dumps({'tokenizer_class': 'LlamaTokenizer', **fields}))


def test_what_a_llama_folder_leaves_unsaid_is_as_in_training(tmp_path):
  theirs = spm_model(tmp_path)
  write_config(tmp_path, bos_token='<s>')
  ours = tokenizer_files.read(tmp_path)
  for text in ('sky', ' sky', '  sky is'):
    assert ours.encode(text).ids == [theirs.bos_id(), *theirs.encode(text)]
  write_config(tmp_path, bos_token='<s>', add_bos_token=False)
  assert tokenizer_files.read(tmp_path).encode('sky').ids == theirs.encode(
    'sky'
  )
  write_config(tmp_path, add_prefix_space=False)
  bare = tokenizer_files.read(tmp_path).encode('sky', add_special_tokens=False)
  assert not bare.tokens[0].startswith('▁') and ''.join(bare.tokens) == 'sky'


def write_merges(folder, pre, special=('<|endoftext|>',)):
  """vocab.json and merges.txt, trained on the hard strings."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre
  trainer = trainers.BpeTrainer(
    vocab_size=500,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=list(special),
    show_progress=False,
  )
  tokenizer.train_from_iterator(WORDS, trainer)
  folder.mkdir(exist_ok=True)
  tokenizer.model.save(str(folder))
  return tokenizer


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('GPT2Tokenizer', {}),
    ('GPT2Tokenizer', {'add_bos_token': True}),
    ('GPT2Tokenizer', {'add_prefix_space': True}),
    ('CodeGenTokenizer', {'add_prefix_space': True}),
    ('Qwen2Tokenizer', {'add_prefix_space': True}),
    ('Qwen2Tokenizer', {}),
    ('GPTNeoXTokenizer', {}),
    ('GPTNeoXTokenizerFast', {'add_prefix_space': True}),
  ],
)
def test_ids_of_transformers_with_merges(tmp_path, name, fields):
  transformers = pytest.importorskip('transformers')
  pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
  write_merges(tmp_path, pre)
  end = {'content': '<|endoftext|>', 'special': True, 'normalized': False}
  raw = {
    'tokenizer_class': name,
    **dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>'),
    'added_tokens_decoder': {
      '0': end,
      '500': {'content': '<tool>', 'special': False, 'normalized': False},
    },
    **fields,
  }
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(raw))
  ours = tokenizer_files.read(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = [*TEXTS, 'a<tool>b <tool>', 'x<|endoftext|>y', 'e\u0301 1234567']
  for text in texts:
    wanted = theirs(text, add_special_tokens=False)['input_ids']
    assert ours.encode(text, add_special_tokens=False).ids == wanted, text
  first = ours.encode('a').tokens[0]
  assert (first == '<|endoftext|>') == ('add_bos_token' in fields)
  assert first.startswith('Ġ') == ('add_prefix_space' in fields)


ENDS = ['<|endoftext|>', '<|padding|>']


@pytest.mark.parametrize(
  ('model_type', 'tokens'),
  [
    ('gpt_neox', {}),
    ('gpt_neox', {'eos_token': '<|padding|>'}),
    ('gpt2', {'extra_special_tokens': ['  ']}),
    ('qwen2', {}),
  ],
)
def test_ids_of_transformers_where_little_is_said(tmp_path, model_type, tokens):
  transformers = pytest.importorskip('transformers')
  # As the folders of GPT-NeoX: runs of spaces are tokens, but none of BPE.
  runs = {' ' * n: 502 - n for n in (2, 1)}
  pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
  write_merges(tmp_path, pre, special=ENDS)
  (tmp_path / 'added_tokens.json').write_text(json.dumps(runs))
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(tokens))
  ours = tokenizer_files.read(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in [*TEXTS, 'x<|endoftext|>y', '<|padding|> a', 'e\u0301', 'a   b']:
    ids = ours.encode(text).ids
    assert ids == theirs(text)['input_ids'], text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_folder_that_names_no_class(tmp_path):
  write_merges(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
  with pytest.raises(ValueError, match='its class is None; accepted without'):
    tokenizer_files.read(tmp_path)
  (tmp_path / 'config.json').write_text('{"model_type": "opt"}')
  assert tokenizer_files.read(tmp_path).encode('sky').ids
  (tmp_path / 'tokenizer_config.json').write_text(
    '{"tokenizer_class": "BartTokenizer"}'
  )
  with pytest.raises(ValueError, match="its class is 'BartTokenizer'"):
    tokenizer_files.read(tmp_path)


def test_bad_merges(tmp_path):
  write_merges(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  (tmp_path / 'merges.txt').write_text('#version: 0.2\na nothing\n')
  with pytest.raises(
    ValueError, match=r"merges.txt holds 'a nothing'; accepted"
  ):
    tokenizer_files.read(tmp_path)


def test_json_comes_first(tmp_path):
  write_merges(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
  tokenizer_kinds.byte_level().save(str(tmp_path / 'tokenizer.json'))
  assert tokenizer_files.read(tmp_path).token_to_id('<unk>') == 0
  with pytest.raises(ValueError, match=r'has no tokenizer.json, tokenizer.mod'):
    tokenizer_files.read(tmp_path.parent / 'none')


def test_damaged_sentencepiece_models(tmp_path):
  spm_model(tmp_path)
  content = (tmp_path / 'tokenizer.model').read_bytes()
  path = tmp_path / 'cut.model'
  for cut in (b'', content[:-7], content[:1000], b'\xff' * 40, b'PK' * 9):
    path.write_bytes(cut)
    with pytest.raises(ValueError, match='is no SentencePiece model, or dam'):
      spm_file.read(path)
  for place in range(0, len(content), 97):
    path.write_bytes(content[:place] + b'\x7f' + content[place + 1 :])
    try:
      spm_file.read(path)
    except ValueError as error:
      assert 'is no SentencePiece model' in str(error)


def field(number, value):
  """A field of a protocol buffer: a number below 128, or bytes."""
  if isinstance(value, int):
    return bytes([number << 3, value])
  return bytes([number << 3 | 2, len(value)]) + value


def piece(text, kind=spm_file.NORMAL):
  return field(1, field(1, text) + field(3, kind))


UNKNOWN = piece(b'<unk>', spm_file.UNKNOWN)


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    (field(2, field(3, 2)), 'it has no pieces'),
    (piece(b'a'), 'it has 0 unknown pieces, not one'),
    (UNKNOWN + piece(b'a') * 2, 'pieces stand there twice, or are empty'),
    (UNKNOWN + field(3, field(5, 0)), 'its spaces are not marked'),
    (field(1, 3), 'a field is int, not bytes'),
    (field(1, field(1, 3)), 'a field is int, not bytes'),
    (bytes([1 << 3 | 3]), 'a field of type 3 at byte 1'),
    (bytes([1 << 3 | 2, 9, 0]), 'a field at byte 2 takes 9 bytes'),
    (bytes([1 << 3]) + b'\xff' * 11, 'a number at byte 11 does not end'),
  ],
)
def test_what_is_wrong_with_a_sentencepiece_model(tmp_path, content, text):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf'or damaged \({text}\); download it'):
    spm_file.read(path)


def test_added_tokens_that_would_get_another_id(tmp_path):
  write_merges(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  (tmp_path / 'added_tokens.json').write_text('{"<x>": 777}')
  with pytest.raises(
    ValueError, match=r"added token '<x>' has the id 777, but would get 500"
  ):
    tokenizer_files.read(tmp_path)


def test_words_and_characters_are_refused(tmp_path):
  spm_model(tmp_path, model_type='char', vocab_size=60, byte_fallback=False)
  with pytest.raises(ValueError, match='it splits texts into words or char'):
    tokenizer_files.read(tmp_path)
