# SPDX-License-Identifier: Apache-2.0
"""A chat in the terminal, turn after turn."""

import dataclasses
import io
import sys

import commands
import pytest
import serving_models

from specstream_jax.cli import chat as cli_chat
from specstream_jax.data import chat as chat_lib
from specstream_jax.serving import conversation, requests


@pytest.fixture(name='engine')
def _engine():
  engine = serving_models.engine()
  engine.start()
  yield engine
  engine.close()


def _chat(engine, **settings):
  return conversation.Conversation(serving_models.base(), engine, **settings)


def test_a_turn_sees_what_was_said_before(engine):
  chat = _chat(engine, system='s')
  first = chat.ask('a').result(60)
  chat.keep(dataclasses.replace(first, text=' b '))
  handle = chat.ask('c')
  said = [
    {'role': 'system', 'content': 's'},
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
    {'role': 'user', 'content': 'c'},
  ]
  assert chat.messages == said
  model = serving_models.base()
  text = chat_lib.render(model.chat_template, said)
  assert list(handle.request.prompt) == model.encode_prompt(text)
  assert handle.request.seed == 1
  handle.result(60)
  chat.reset()
  assert chat.messages == said[:1]


def test_what_does_not_fit_was_not_said(engine):
  chat = _chat(engine)
  with pytest.raises(ValueError, match='64'):
    chat.ask('x' * 100)
  assert not chat.messages


def test_a_model_without_a_template_cannot_chat(engine):
  plain = dataclasses.replace(serving_models.base(), chat_template=None)
  with pytest.raises(ValueError, match='no chat template, so it cannot chat'):
    conversation.Conversation(plain, engine)


def _talk(chat, monkeypatch, capsys, *lines):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(lines)))
  cli_chat._talk(chat, cli_chat._Screen())
  return capsys.readouterr().out


def test_lines_are_turns_or_commands(engine, monkeypatch, capsys):
  chat = _chat(engine)
  out = _talk(
    chat,
    monkeypatch,
    capsys,
    '/drafts off',
    'a',
    '',
    '/what',
    'x' * 99,
    '/quit',
  )
  assert not chat.has_drafts and len(chat.messages) == 2
  assert out.startswith('drafts are off\n') and '\033' not in out
  assert '/what is no command; there are:\n  /help' in out
  assert '/reset makes room' in out
  assert ' tokens, 1.0 per call, ' in out
  out = _talk(chat, monkeypatch, capsys, '/reset', '/drafts on', '/help')
  assert out.startswith('forgotten\ndrafts are on\n  /help')
  assert chat.has_drafts and not chat.messages


def test_runs_have_colours_that_take_turns():
  shown = []
  show = cli_chat._coloured(lambda *args: shown.append(args))
  for tokens, text in (([1], 'a'), ([2, 3], 'bc'), ([4], 'd'), ([5, 6], 'ef')):
    show(requests.Piece(tokens, text))
  assert shown == [('a', 0), ('bc', 36), ('d', 0), ('ef', 33)]


@pytest.mark.parametrize(
  ('no_colour', 'text'), [('', '\033[36mhi\033[0m'), ('1', 'hi')]
)
def test_colours_are_for_terminals_that_want_them(
  no_colour, text, monkeypatch, capsys
):
  monkeypatch.setenv('NO_COLOR', no_colour)
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
  cli_chat._Screen().show('hi', 36)
  assert capsys.readouterr().out == text


def test_ctrl_c_ends_the_answer_alone(engine, monkeypatch, capsys):
  chat = _chat(engine)
  ask = chat.ask

  def interrupted(text):
    handle = ask(text)

    class Stopping:
      result = handle.result
      cancel = handle.cancel

      def __iter__(self):
        raise KeyboardInterrupt

    return Stopping()

  monkeypatch.setattr(chat, 'ask', interrupted)
  _talk(chat, monkeypatch, capsys, 'a')
  assert [m['role'] for m in chat.messages] == ['user', 'assistant']


def test_the_summary_says_what_a_call_gave():
  metrics = requests.Metrics(5, 9, (3, 1), 3, 0.0, 0.5, 1.0)
  made = requests.Completion([1] * 9, 'x', 'length', metrics)
  said = cli_chat._summary(made)
  assert (
    said == '[9 tokens, 4.0 per call, 16 tokens/s, ended by max_new_tokens]'
  )


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
  import byte_model

  byte_model.write_model(tmp_path / 'm', byte_model.model_config())
  done = commands.run('chat', f'--model={tmp_path}/m', '--adapter=')
  assert done.status == 1 and 'has no chat template' in done.err
