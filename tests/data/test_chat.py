# SPDX-License-Identifier: Apache-2.0
"""Chats: the ids that the Transformers library gives, and limits that hold."""

import dataclasses
import json

import chat_templates
import pytest
import tiny_runtime
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)
import transformers

from specstream_jax.checkpoints import chat_format, loading, tokenizer_files
from specstream_jax.data import chat, render_process

SPECIAL = ('<unk>', '<s>', '</s>')
TOOL = {
  'type': 'function',
  'function': {
    'name': 'get_wetter',
    'description': 'Wie ist das Wetter in <Ort>? "Schön & gut"',
    'parameters': {'type': 'object', 'properties': {'ort': {'type': 'string'}}},
  },
}
ONE = chat.conversation([' a<b & é '], [])
TWO = chat.conversation(['Hi', ' so?\n', 'left out'], ['<think>x</think> Yes '])
SYSTEM = [{'role': 'system', 'content': 'Be brief.'}, *TWO]
CALL = [
  ONE[0],
  {
    'role': 'assistant',
    'content': '',
    'refusal': None,
    'tool_calls': [
      {'function': {'name': 'get_wetter', 'arguments': {'ort': 'Ö'}}}
    ],
  },
  {'role': 'tool', 'content': '21°'},
]
CHATS = {
  'one': (ONE, {}),
  'two': (TWO, {}),
  'system': (SYSTEM, {}),
  'tools': (TWO, {'tools': [TOOL, TOOL]}),
  'call': (CALL, {'tools': [TOOL]}),
  'documents': (ONE, {'documents': [{'title': 'T', 'text': 'ü'}]}),
}


def byte_level():
  """Bytes, as GPT-2 spells them; no BOS in front of a text."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def sentencepiece_like():
  """Pieces with a space in front, bytes for the rest, and BOS, as Llama 2."""
  pieces = [f'<0x{i:02X}>' for i in range(256)] + ['▁', *'abcdefgHiINST[]/']
  vocab = {token: i for i, token in enumerate((*SPECIAL, *pieces))}
  bpe = models.BPE(vocab, [], unk_token='<unk>', byte_fallback=True)
  tokenizer = tokenizers.Tokenizer(bpe)
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
  )
  return tokenizer


TOKENIZERS = {'bytes': byte_level, 'pieces': sentencepiece_like}


def write(folder, tokenizer, **fields):
  tokenizer.add_special_tokens([*SPECIAL, *chat_templates.MARKS])
  tokenizer.save(str(folder / 'tokenizer.json'))
  fields = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<s>',
    'eos_token': {'content': '</s>', '__type': 'AddedToken'},
    'unk_token': '<unk>',
    **fields,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))
  return folder


@pytest.fixture(scope='module', params=TOKENIZERS)
def pair(request, tmp_path_factory):
  """A folder, its tokenizer in Transformers, and a model with it here."""
  folder = write(tmp_path_factory.mktemp('m'), TOKENIZERS[request.param]())
  tokenizer = tokenizer_files.read(folder)
  model = dataclasses.replace(
    tiny_runtime.model(),
    tokenizer=tokenizer,
    bos_id=loading._bos_id(tokenizer),
  )
  assert (model.bos_id == 1) == (request.param == 'pieces')
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
  return folder, theirs, model


def read(folder, template):
  path = folder / 'chat_template.jinja'
  path.write_text(template, encoding='utf-8')
  return chat_format.read(folder)


@pytest.mark.parametrize('messages', CHATS)
@pytest.mark.parametrize('kind', chat_templates.KINDS)
def test_ids_are_those_of_transformers(pair, kind, messages):
  folder, theirs, model = pair
  template = chat_templates.KINDS[kind]
  said, given = CHATS[messages]
  try:
    expected = theirs.apply_chat_template(
      said,
      chat_template=template,
      add_generation_prompt=True,
      return_dict=False,
      **given,
    )
  except Exception as error:  # jinja2's, of messages that a kind refuses
    with pytest.raises(ValueError, match='chat template') as caught:
      chat.render(read(folder, template), said, **given)
    assert str(error) in str(caught.value)
    return
  text = chat.render(read(folder, template), said, **given)
  assert model.encode_prompt(text) == list(expected)


def test_most_kinds_take_most_chats(pair):
  _, theirs, _ = pair
  refused = []
  for kind, template in chat_templates.KINDS.items():
    for name, (said, given) in CHATS.items():
      try:
        theirs.apply_chat_template(
          said, chat_template=template, tokenize=False, **given
        )
      except Exception:
        refused.append((kind, name))
  assert len(refused) <= 4, refused


def test_bos_is_there_once_if_the_template_writes_it(pair):
  folder, _, model = pair
  ids = lambda template: model.encode_prompt(
    chat.prompt(read(folder, template), ['a'])
  )
  assert ids("{{ '<s>' }}{{ messages[0].content }}").count(1) == 1
  assert ids('{{ bos_token }}{{ messages[0].content }}').count(1) == 1
  assert ids('{{ messages[0].content }}').count(1) == 0
  assert model.encode_prompt('a').count(1) == (model.bos_id is not None)


def test_a_token_that_nobody_names(tmp_path):
  write(tmp_path, byte_level(), eos_token=None)
  template = read(tmp_path, '{{ messages[0].content + eos_token }}')
  message = (
    r"chat_template.jinja': 'eos_token' is undefined; name eos_token in "
    r'tokenizer_config.json'
  )
  with pytest.raises(ValueError, match=message):
    chat.prompt(template, ['a'])


def test_special_tokens_of_an_older_folder(tmp_path):
  write(tmp_path, byte_level(), eos_token='E')
  tokens = {'eos_token': 'x', 'pad_token': {'content': 'P'}}
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(tokens))
  expected = {
    'bos_token': '<s>',
    'eos_token': 'E',
    'unk_token': '<unk>',
    'pad_token': 'P',
  }
  assert read(tmp_path, 'T').tokens == expected


def test_templates_by_name(tmp_path):
  named = [
    {'name': 'default', 'template': 'plain'},
    {'name': 'tool_use', 'template': '{{ tools | length }} tools'},
  ]
  write(tmp_path, byte_level(), chat_template=named)
  template = chat_format.read(tmp_path)
  assert chat.render(template, ONE) == 'plain'
  assert chat.render(template, ONE, tools=[TOOL]) == '1 tools'
  fields = chat_format.fields(template)
  assert fields['chat_template'] == named and fields['eos_token'] == '</s>'


@pytest.mark.parametrize(
  'value', [3, [{'name': 'x', 'template': 'T'}], ['T'], {'default': 3}]
)
def test_templates_that_are_none(tmp_path, value):
  write(tmp_path, byte_level(), chat_template=value)
  with pytest.raises(
    ValueError, match=r"config.json': chat_template is .*texts"
  ):
    chat_format.read(tmp_path)


def test_a_template_that_is_no_text(tmp_path):
  (tmp_path / 'chat_template.jinja').write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match=r'is not UTF-8 text'):
    chat_format.read(tmp_path)


def test_the_format_in_a_gguf_file():
  metadata = {
    'tokenizer.ggml.tokens': ['<unk>', '<s>', '</s>'],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
    'tokenizer.ggml.padding_token_id': 7,
  }
  assert chat_format.from_gguf(metadata, 'a.gguf') is None
  metadata['tokenizer.chat_template'] = '{{ bos_token }}{{ unk_token }}'
  template = chat_format.from_gguf(metadata, 'a.gguf')
  assert chat.render(template, ONE) == '<s><unk>'
  assert template.tokens['eos_token'] == '</s>' and len(template.tokens) == 3
  assert template.origin == 'a.gguf'


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{{ 1 / 0 }}', r'division by zero \(ZeroDivisionError\)'),
    ("{{ 1 + 'a' }}", r'unsupported operand .* \(TypeError\)'),
    ('{{ 2.0**100000 }}', r'out of range.* \(OverflowError\)'),
    ('{{ range(10**7) | list }}', r'Range too big.* \(OverflowError\)'),
    ("{{ '{2}'.format(1) }}", r'\(IndexError\)'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
    ('{{ ' + '(' * 999 + ')' * 999, 'RecursionError|line 1'),
    ('{% if %}', 'line 1: Expected an expression'),
    ('\n\n{% nonsense %}', "line 3: Encountered unknown tag 'nonsense'"),
    ('{{ messages.append(1) }}', 'unsafe'),
    ("{{ ''.__class__.__mro__ }}", 'unsafe'),
    ("{{ raise_exception('no\nsystem') }}", 'chat template: no system$'),
    ('{{ messages[7].content }}', 'has no element 7'),
    ("{{ 'a' * 10**11 }}", 'takes more than 1,073,741,824 bytes'),
    ("{{ 'ab' | center(10**11) }}", 'takes more than 1,073,741,824 bytes'),
    ("{{ 'a' * (2**24 + 1) }}", '16,777,217 characters; at most 16,777,216'),
    (
      "{% set ns = namespace(s='ab') %}{% for _ in range(99) %}"
      '{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}',
      'takes more than 1,073,741,824 bytes',
    ),
  ],
)
def test_whatever_a_template_does_is_one_line(template, message):
  with pytest.raises(ValueError, match=message) as caught:
    chat.prompt(template, ['a'])
  assert '\n' not in str(caught.value)
  assert str(caught.value).startswith('chat template: ')
  assert chat.prompt('{{ messages[0].content }}', ['b']) == 'b'


def test_a_template_that_never_ends():
  loop = '{% for _ in range(99999) %}'
  endless = loop * 3 + 'x' + '{% endfor %}' * 3
  renderer = render_process.Renderer(seconds=0.3)
  with pytest.raises(ValueError, match=r'does not end within 0.3 seconds'):
    renderer.render(endless, {})
  renderer.seconds = 10
  assert renderer.render('{{ a }}', {'a': 'b'}) == 'b'  # in a new process
  renderer._process.kill()
  renderer._process.wait()
  assert renderer.render('{{ a }}', {'a': 'b'}) == 'b'
  renderer.close()


def test_parts_of_text_are_text_and_nothing_is_empty():
  template = (
    '{% for m in messages %}{{ m.role + ":" + m.content }}|{% endfor %}'
  )
  parts = [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]
  messages = [
    {'role': 'user', 'content': parts},
    {'role': 'assistant', 'content': None, 'tool_calls': []},
  ]
  said = chat.render(template, messages, add_generation_prompt=False)
  assert said == 'user:ab|assistant:|'
  for part in ({'type': 'image_url'}, {'type': 'text'}, 'a'):
    with pytest.raises(ValueError, match='message 1 has content of type'):
      chat.render(template, [{'role': 'user', 'content': [part]}])


def test_messages_that_no_template_could_read():
  with pytest.raises(ValueError, match=r'chat template: .*bytes is not JSON'):
    chat.render('{{ messages }}', [{'role': 'user', 'content': b'a'}])
  with pytest.raises(ValueError, match='the model has no chat template; use'):
    chat.render(None, ONE)


def test_halves_of_surrogate_pairs_pass():
  # Encoding them is what fails, and says so.
  assert chat.prompt('{{ messages[0].content }}', ['a\ud800']) == 'a\ud800'
