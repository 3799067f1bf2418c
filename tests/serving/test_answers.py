# SPDX-License-Identifier: Apache-2.0
"""Texts that end before a stop, by hand and against a search of the whole."""

import hypothesis
from hypothesis import strategies as st
import pytest

from specstream_jax.serving import answers


@pytest.mark.parametrize(
  ('pieces', 'stops', 'want'),
  [
    (['ab', 'c', 'd'], (), ['ab', 'c', 'd', '']),
    (['ab', 'c', 'd'], ('cd',), ['ab', '', '', '']),
    (['ab', 'c', 'x'], ('cd',), ['ab', '', 'cx', '']),
    (['ab', 'c'], ('cd',), ['ab', '', 'c']),
    (['aab', 'aab', 'y'], ('aabaaby', 'q'), ['', '', '', '']),
    (['xaab', 'aaz'], ('aaby',), ['x', 'aabaaz', '']),
    (['xab', 'cd', 'y'], ('abcd',), ['x', '', '', '']),
    (['one two', ' three'], ('two', 'one'), ['', '', '']),
    # The first to be whole, however the text comes in tokens.
    (['abcd'], ('abcd', 'bc'), ['a', '']),
    (['a', 'b', 'c', 'd'], ('abcd', 'bc'), ['', '', 'a', '', '']),
    (['xabc'], ('c', 'bc', 'abc'), ['x', '']),
    (['abx', 'y'], ('abc', 'b'), ['a', '', '']),
  ],
)
def test_what_may_be_a_stop_waits(pieces, stops, want):
  class Text:
    add = staticmethod(lambda tokens: pieces[tokens[0]])
    finish = staticmethod(lambda: '')

  answer = answers.Answer(Text, stops)
  got = [answer.add(i) for i in range(len(pieces))] + [answer.finish()]
  assert got == want


def _cut(text, stops):
  """The text before the first stop to be whole, the longest that ends there."""
  for end in range(1, len(text) + 1):
    lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
    if lengths:
      return text[: end - max(lengths)], True
  return text, False


LETTERS = st.text('abc', min_size=1, max_size=5)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
  pieces=st.lists(st.text('abc', max_size=4), max_size=8),
  stops=st.lists(LETTERS, max_size=4),
)
def test_any_stops_cut_any_text_where_a_search_would(pieces, stops):
  class Text:
    add = staticmethod(lambda tokens: pieces[tokens[0]])
    finish = staticmethod(lambda: '')

  answer, said = answers.Answer(Text, stops), ''
  want, is_stopped = _cut(''.join(pieces), stops)
  for i in range(len(pieces)):
    said += answer.add(i)
    assert want.startswith(said)
  assert said + answer.finish() == want
  assert answer.is_stopped == is_stopped


def test_a_letter_is_looked_at_once_however_many_stops_there_are(monkeypatch):
  stops = tuple('ab' * n + 'c' for n in range(1, 20))
  looked = []
  answer = answers.Answer(
    type('Text', (), {'add': staticmethod(lambda tokens: 'ab' * 10)}), stops
  )
  after = answers.Stops.after
  monkeypatch.setattr(
    answers.Stops,
    'after',
    lambda self, *args: looked.append(args) or after(self, *args),
  )
  said = ''.join(answer.add(0) for _ in range(5))
  assert len(looked) == 100
  assert said == 'ab' * 31  # 38 letters may be the beginning of the longest
