# SPDX-License-Identifier: Apache-2.0
"""Texts from flags and files of lines: as they are typed, or told apart."""

import io
import types

from absl import flags
import pytest

from specstream_jax.cli import main, text_flags


@pytest.fixture
def escapes(monkeypatch):
  """Sets --escapes."""

  def choose(value):
    fake = types.SimpleNamespace(FLAGS=types.SimpleNamespace(escapes=value))
    monkeypatch.setattr(text_flags, 'flags', fake)

  choose(None)
  return choose


@pytest.mark.parametrize(
  'typed',
  [r'grad = \nabla f', r'C:\new\name', r'a \\n b', 'a\nb', '\\', '\\u12'],
)
def test_texts_are_what_was_typed(escapes, typed):
  for value in (None, False):
    escapes(value)
    assert text_flags.text(typed, '--prompt') == typed


@pytest.mark.parametrize(
  ('typed', 'expected'),
  [
    (r'a\nb\tc\r', 'a\nb\tc\r'),
    (r'a\\nb', r'a\nb'),
    (r'\\\n', '\\\n'),
    (r'\u00e9é', 'éé'),
    (r'\ud83d\ude00', '😀'),
    ('a\nb', 'a\nb'),
  ],
)
def test_escapes_where_they_are_asked_for(escapes, typed, expected):
  escapes(True)
  assert text_flags.text(typed, '--stop') == expected


@pytest.mark.parametrize(
  ('typed', 'message'),
  [
    (r'\nabla \quad', r'--stop holds \\q, which is no escape; accepted: \\n, '),
    ('a\\', r'--stop holds \\, which is no escape'),
    (r'\u12', r'--stop holds \\u, which is no escape'),
    (r'a\ud83d', '--stop spells half of a surrogate pair'),
  ],
)
def test_escapes_that_are_none(escapes, typed, message):
  escapes(True)
  with pytest.raises(ValueError, match=message):
    text_flags.text(typed, '--stop')


@pytest.mark.parametrize('value', [None, True])
def test_bytes_that_are_not_utf8(escapes, value):
  escapes(value)
  with pytest.raises(
    ValueError, match=r'--prompt is not valid UTF-8: char.* 2'
  ):
    text_flags.text('a\udcff', '--prompt')


def test_a_note_where_a_line_break_may_have_been_meant(escapes, capsys):
  for value in (False, True):
    escapes(value)
    text_flags.note_of_escapes([r'a\nb'], 'prompt')
  escapes(None)
  text_flags.note_of_escapes(['a\nb', 'a\\b'], 'prompt')
  assert not capsys.readouterr().err
  text_flags.note_of_escapes(['a', r'a\nb'], 'prompt')
  assert (
    r'--prompt holds \n, which is taken as it is' in capsys.readouterr().err
  )


def test_lines_end_at_line_feeds_alone(tmp_path, capsys):
  odd = 'a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh'
  path = tmp_path / 'p'
  path.write_bytes(f'\ufeff{odd}\r\n  x \nlast'.encode())
  found = text_flags.lines(str(path), 'prompt_file')
  assert found == [(1, odd), (2, '  x '), (3, 'last')]
  assert not capsys.readouterr().err


def test_blank_lines_are_left_out_and_named(tmp_path, capsys):
  path = tmp_path / 'p'
  path.write_text('a\n\n \t\nb\n')
  found = text_flags.lines(str(path), 'prompt_file')
  assert found == [(1, 'a'), (4, 'b')]
  note = f'note: --prompt_file={path}: left out blank lines 2, 3\n'
  assert capsys.readouterr().err == note
  path.write_text('\n' * 13 + 'a')
  assert text_flags.lines(str(path), 'x') == [(14, 'a')]
  assert '9, 10 and 3 more' in capsys.readouterr().err


def test_files_that_are_no_text(tmp_path, monkeypatch):
  path = tmp_path / 'p'
  path.write_bytes(b'a\nb\ncaf\xe9\n')
  with pytest.raises(
    ValueError, match=r'--f=.*p:3: not UTF-8 text \(byte 0xe9'
  ):
    text_flags.lines(str(path), 'f')
  with pytest.raises(ValueError, match=r'--f=.*nowhere: No such file'):
    text_flags.read(str(tmp_path / 'nowhere'), 'f')
  with pytest.raises(ValueError, match=r'--f=.*: Is a directory'):
    text_flags.read(str(tmp_path), 'f')
  stdin = types.SimpleNamespace(buffer=io.BytesIO(b'\xef\xbb\xbfa\n\xff'))
  monkeypatch.setattr(text_flags.sys, 'stdin', stdin)
  with pytest.raises(ValueError, match='--f=-:2: not UTF-8 text'):
    text_flags.lines('-', 'f')
  stdin.buffer = io.BytesIO(b'\xef\xbb\xbfa\nb')
  assert text_flags.lines('-', 'f') == [(1, 'a'), (2, 'b')]


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('--count=abc', 'flag --count=abc: accepted: a whole number'),
    ('--count=1.5', 'flag --count=1.5: accepted: a whole number'),
    (
      '--count=' + '9' * 5000,
      'flag --count=9{70,90}…: accepted: a whole number',
    ),
    ('--share=x', 'flag --share=x: accepted: a number'),
    ('--switch=maybe', 'flag --switch=maybe: accepted: true or false'),
    ('--kind=c', r'flag --kind=c: value should be one of <a\|b>'),
    ('--cuont=3', "Unknown command line flag 'cuont'. Did you mean: count"),
    ('--count', 'Missing value for flag --count'),
  ],
)
def test_mistakes_in_flags_are_one_line(monkeypatch, capsys, given, message):
  values = flags.FlagValues()
  flags.DEFINE_integer('count', 0, '', flag_values=values)
  flags.DEFINE_float('share', 0, '', flag_values=values)
  flags.DEFINE_bool('switch', False, '', flag_values=values)
  flags.DEFINE_enum('kind', 'a', ['a', 'b'], '', flag_values=values)
  monkeypatch.setattr(main.flags, 'FLAGS', values)
  with pytest.raises(SystemExit, match='2'):
    main._parse_flags('train', ['specstream train', given])
  said = capsys.readouterr().err
  end = '; specstream train --help lists the flags\n'
  assert said.count('\n') == 1 and said.endswith(end)
  with pytest.raises(ValueError, match=message):
    raise ValueError(said)
