# SPDX-License-Identifier: Apache-2.0
"""Rows of every shape as prompts and answers, with the ids they come to."""

import byte_model
import chat_templates
import pytest

from specstream_jax.checkpoints import chat_format
from specstream_jax.data import chat_rows, row_shapes, vocabulary

END = '<|im_end|>'
TEMPLATE = chat_format.Template(chat_templates.CHATML)
SYSTEM = '<|im_start|>system\nYou help.<|im_end|>\n'
ASK = '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n'


def turns(row, **options):
  return row_shapes.Shape(**options).turns(row)


def chat(row, **options):
  return turns(row, template=TEMPLATE, ends=(END,), **options)


def said(*texts):
  roles = ('user', 'assistant') * len(texts)
  return [{'role': r, 'content': t} for r, t in zip(roles, texts)]


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'a', 'completion': ' b'},
    {'inputs': 'a', 'targets': ' b'},
    {'Prompt': 'a', 'Response': ' b', 'id': 7},
    {'prompt': 'a', 'answer': [' b', ' c']},
  ],
)
def test_prompt_and_completion_are_taken_as_they_are(row):
  for found in (turns(row), chat(row)):
    assert found == [chat_rows.Turn('a', ' b')]


def test_a_row_may_say_that_it_was_cut_or_is_a_chat():
  found = turns({'prompt': 'a', 'completion': 'b', 'finished': False})
  assert found == [chat_rows.Turn('a', 'b', is_cut=True)]
  (found,) = turns({'prompt': 'a', 'completion': 'b', 'chat': True})
  assert isinstance(found.prompt, chat_format.Text)


def test_instructions_and_questions_without_a_template():
  row = {'instruction': 'Add.', 'input': '1 2', 'output': '3'}
  assert turns(row) == [chat_rows.Turn('Add.\n\n1 2\nAnswer:', ' 3')]
  row = {'question': 'Who?', 'answer': ' I ', 'context': ''}
  assert turns(row) == [chat_rows.Turn('Who?\nAnswer:', ' I')]
  row = {'question': 'Who?', 'answer': 'I', 'context': 'Me.'}
  assert turns(row) == [chat_rows.Turn('Me.\n\nWho?\nAnswer:', ' I')]


def test_questions_go_through_the_template_that_the_model_has():
  row = {'question': 'Who?', 'answer': 'I'}
  expected = chat_rows.Turn(SYSTEM + ASK.format('Who?'), 'I', END)
  assert chat(row) == [expected]
  assert isinstance(chat(row)[0].prompt, chat_format.Text)
  assert chat({'prompt': 'Who?', 'answer': 'I'}, chat='always') == [expected]
  assert chat(row, chat='never') == [chat_rows.Turn('Who?\nAnswer:', ' I')]


def test_columns_are_named():
  row = {'Q': 'a', 'A': 'b', 'prompt': 'x', 'completion': 'y'}
  options = {'prompt_column': 'Q', 'answer_column': 'A'}
  assert turns(row, **options) == [chat_rows.Turn('a', 'b')]
  assert row_shapes.Shape(**options).used(row) == {'Q', 'A'}
  assert turns(row, prompt_column='q') == [chat_rows.Turn('a', None)]
  found = chat(
    {'m': said('Who?'), 'A': 'I'}, prompt_column='m', answer_column='a'
  )
  assert found == [chat_rows.Turn(SYSTEM + ASK.format('Who?'), 'I', END)]


def test_each_answer_of_a_chat_is_an_example():
  first, second = chat({'messages': said('a', 'b', 'c', 'd', 'e')})
  start = SYSTEM + ASK.format('a')
  assert first == chat_rows.Turn(start, 'b', END)
  history = f'{start}b<|im_end|>\n{ASK.format("c")}'
  assert second == chat_rows.Turn(history, 'd', END)


def test_a_system_message_and_other_names_of_chats():
  row = {
    'conversations': [
      {'from': 'system', 'value': 'Be kind.'},
      {'from': 'human', 'value': 'a'},
      {'from': 'gpt', 'value': 'b'},
    ]
  }
  start = '<|im_start|>system\nBe kind.<|im_end|>\n' + ASK.format('a')
  assert chat(row) == [chat_rows.Turn(start, 'b', END)]


def test_a_chat_without_an_answer_is_a_prompt():
  assert chat({'messages': said('a')}) == [
    chat_rows.Turn(SYSTEM + ASK.format('a'), None)
  ]


def test_tools_reach_the_template():
  template = chat_format.Template(
    '{% for t in tools %}{{ t.name }},{% endfor %}'
    '{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}'
    '{% if add_generation_prompt %}assistant:{% endif %}'
  )
  row = {'messages': said('a', 'b'), 'tools': [{'name': 'clock'}]}
  expected = [chat_rows.Turn('clock,user:a;assistant:', 'b', ';')]
  assert turns(row, template=template, ends=(';',)) == expected
  row['tools'] = '[{"name": "clock"}]'
  assert turns(row, template=template, ends=(';',)) == expected


def test_a_template_that_drops_thoughts_gives_what_it_is_asked_with():
  template = chat_format.Template(
    '{% for m in messages %}{{ m.role }}:'
    "{{ m.content if loop.last else m.content.split('/')[-1] }};{% endfor %}"
    '{% if add_generation_prompt %}assistant:{% endif %}'
  )
  row = {'messages': said('a', 'hm/b', 'c', 'oh/d')}
  assert turns(row, template=template, ends=(';',)) == [
    chat_rows.Turn('user:a;assistant:', 'hm/b', ';'),
    chat_rows.Turn('user:a;assistant:b;user:c;assistant:', 'oh/d', ';'),
  ]


def test_ids_are_those_that_the_model_sees():
  tokenizer = byte_model.byte_tokenizer([END])
  vocab = vocabulary.Vocabulary(tokenizer, tokenizer.token_to_id(END))
  template = chat_format.Template(
    '{% for m in messages %}{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}'
    '{% if add_generation_prompt %}a{% endif %}'
  )
  row = {'messages': said('x', 'y')}
  (turn,) = turns(row, template=template, ends=(END,))
  pair = vocab.encode_pair(turn.prompt, turn.answer)
  text = lambda ids: [tokenizer.id_to_token(i) for i in ids]
  ids = tokenizer.encode('ux<|im_end|>aa').ids[:-1]
  assert pair.inputs.tolist() == ids
  assert text(pair.targets) == ['y', END]


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    ({'text': 'x'}, "has columns 'text'; accepted: messages, instruction and"),
    ({'prompt': 3}, 'the prompt is int, not text'),
    ({'prompt': 'a', 'answer': ' '}, 'the answer is empty'),
    ({'prompt': 'a\ufffd'}, 'the prompt is not valid UTF-8'),
    ({'instruction': 5, 'output': 'x'}, 'instruction is int, not text'),
    ({'messages': 'x'}, 'messages is not JSON'),
    ({'messages': []}, r"messages is '\[\]', not a list"),
    ({'messages': [{'content': 'x'}]}, "message 1 has no role, only 'content'"),
    ({'messages': said('a\ud800')}, 'message 1 is not valid UTF-8'),
    ({'messages': said('a', '')}, 'message 2: the answer is empty'),
    ({'messages': said('a', 'b')[1:]}, 'the first message is an answer'),
    ({'messages': said('a'), 'tools': 'x'}, 'tools is not JSON'),
    (
      {'messages': said('a'), 'tools': [1]},
      'tools is .* not a list of objects',
    ),
  ],
)
def test_what_is_wrong_with_a_row_is_told(row, problem):
  with pytest.raises(ValueError, match=problem):
    chat(row)


def test_a_column_that_is_not_there_is_told():
  with pytest.raises(ValueError, match="no column 'q', only 'a', 'b'"):
    turns({'a': 'x', 'b': 'y'}, prompt_column='q')
  with pytest.raises(ValueError, match='goes with --prompt_column'):
    row_shapes.Shape(answer_column='b')


def test_messages_without_a_template_are_told():
  with pytest.raises(ValueError, match='the model has no chat template'):
    turns({'messages': said('a', 'b')})


def test_an_answer_written_otherwise_than_asked_for_is_told():
  template = chat_format.Template(
    '{% for m in messages %}{{ m.content }};{% endfor %}'
    '{% if add_generation_prompt %}<think>{% endif %}'
  )
  with pytest.raises(ValueError, match='otherwise than it asks for one'):
    turns({'messages': said('a', 'b')}, template=template)


def test_content_may_be_parts_or_nothing():
  template = chat_format.of(
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}'
    '{% if m.tool_calls %}CALL{% endif %}{% endfor %}'
    '{% if add_generation_prompt %}<assistant>{% endif %}'
  )
  shape = row_shapes.Shape(template=template)
  messages = [
    {'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}]},
    {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 'x'}]},
  ]
  [turn] = shape.turns({'messages': messages})
  assert (turn.prompt, turn.answer) == ('<user>hi<assistant>', 'CALL')
