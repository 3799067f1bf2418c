# SPDX-License-Identifier: Apache-2.0
"""`specstream chat`, without a terminal."""

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys

import byte_model
import pytest
import serving_models
import tiny_runtime

from specstream_jax import config
from specstream_jax.cli import chat
from specstream_jax.serving import conversation

END = re.compile(
  r'\[\d+ tokens, \d+ calls, \d\.\d\d tokens per call, [\d.]+ tokens per '
  r'second, (\w+)\]'
)


@pytest.fixture
def talk():
  engine = serving_models.engine(max_new_tokens=6)
  template = tiny_runtime.TEMPLATE
  engine.model = dataclasses.replace(engine.model, chat_template=template)
  return conversation.Conversation(
    engine, sampling=config.SamplingConfig(ignore_eos=True), system='S'
  )


def _type(talk, monkeypatch, lines, is_coloured=False):
  monkeypatch.setattr(sys, 'stdin', io.StringIO(lines))
  chat._talk(talk, is_coloured)


def test_turns_and_commands(talk, monkeypatch, capsys):
  _type(talk, monkeypatch, 'a\n/drafts off\nb\n/x\n/help\n/quit\nc\n')
  said, notes = capsys.readouterr()
  assert END.findall(said) == ['length', 'length']
  assert [m['role'] for m in talk.messages] == [
    'system', 'user', 'assistant', 'user', 'assistant'
  ]  # fmt: skip
  assert "'/x' is no command; /help lists them" in notes
  assert '/reset' in notes and 'drafts off' in notes and not talk.has_drafts
  talk.reset()
  assert talk.messages == [{'role': 'system', 'content': 'S'}]


def test_a_conversation_that_is_too_long(talk, monkeypatch, capsys):
  _type(talk, monkeypatch, f'{"a" * 80}\n/reset\nb\n')
  said, notes = capsys.readouterr()
  assert '/reset begins again' in notes and len(END.findall(said)) == 1
  assert len(talk.messages) == 3


def test_an_interrupt_ends_the_answer_alone(talk, monkeypatch, capsys):
  step, count = talk._engine.step, []

  def interrupted():
    if not count:
      os.kill(os.getpid(), signal.SIGINT)
    count.append(1)
    return step()

  monkeypatch.setattr(talk._engine, 'step', interrupted)
  before = signal.getsignal(signal.SIGINT)
  _type(talk, monkeypatch, 'a\nb\n')
  assert END.findall(capsys.readouterr().out) == ['cancelled', 'length']
  assert signal.getsignal(signal.SIGINT) is before


def test_without_chat_a_line_is_a_text(talk, monkeypatch):
  talk._is_chat = False
  handle = talk.ask('ab')
  list(talk.pieces(handle))
  assert handle.request.prompt == tuple(talk._engine.model.encode('ab'))
  assert len(talk.messages) == 1


def test_colours(monkeypatch):
  assert chat.painted('a', 1) == 'a'
  assert chat.painted('ab', 2) == '\x1b[38;5;34mab\x1b[0m'
  assert chat.painted('ab', 99) == '\x1b[38;5;203mab\x1b[0m'
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
  assert chat.has_colour()
  monkeypatch.setenv('NO_COLOR', '1')
  assert not chat.has_colour()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'the model has no chat template; --nochat continues each line'),
    (['--nochat', '--system=x'], '--system is for chats'),
    (['--nochat', '--max_new_tokens=8', '--cache_length=64'], ''),
  ],
)
def test_the_command(tmp_path, flags, message):
  byte_model.write_model(tmp_path / 'tiny', byte_model.model_config())
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'specstream_jax.cli.main',
      'chat',
      *flags,
      f'--model={tmp_path / "tiny"}',
    ],
    input='ab\n',
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert 'Traceback' not in done.stderr
  assert done.returncode == bool(message) and message in done.stderr
  assert bool(END.search(done.stdout)) is not bool(message)
