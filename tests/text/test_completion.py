# SPDX-License-Identifier: Apache-2.0
"""Text of new tokens: what decoding adds to a prompt, whole or in runs."""

from hypothesis import assume, given, settings, strategies as st
import pytest
import tokenizer_kinds

from specstream_jax.text import completion, pieces

CHARS = st.sampled_from(
  [*'ab ht.,!:\n', '😀', '👩‍🚀', 'é', 'e\u0301', '是', '漢', '\ufffd']
)
TEXTS = st.lists(CHARS, max_size=9).map(''.join)
# SentencePiece adds a space to a text of its own, and WordPiece loses some.
EXACT = ('byte_level', 'sentencepiece', 'unigram')
TOKENWISE = (*EXACT, 'wordpiece', 'words')


def encode(kind, text):
  made = tokenizer_kinds.make(kind)
  return made.encode(text, add_special_tokens=False).ids


def begin(kind, prompt=(), **ends):
  made = pieces.Pieces(tokenizer_kinds.make(kind))
  return completion.Completion(made, prompt, **ends)


def whole(kind, tokens, prompt=(), **ends):
  text = begin(kind, prompt, **ends)
  return text.add(tokens) + text.finish()


@pytest.mark.parametrize('kind', EXACT)
@settings(max_examples=80, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_it_is_what_decoding_adds_to_the_prompt(kind, prompt, answer):
  prompt = 'a' + prompt  # Decoders lose a space that a text begins with.
  before, ids = encode(kind, prompt), encode(kind, prompt + answer)
  assume(ids[: len(before)] == before)
  decode = tokenizer_kinds.make(kind).decode
  assert decode(ids) == prompt + answer
  assert whole(kind, ids[len(before) :], before) == answer


@pytest.mark.parametrize('kind', TOKENWISE)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_tokens_are_decoded_as_the_tokenizer_does(kind, data):
  made = tokenizer_kinds.make(kind)
  # Bytes that are no character come in the property below.
  raw = {
    i for i in range(made.get_vocab_size()) if '\ufffd' in made.decode([i])
  }
  plain = sorted(set(range(made.get_vocab_size() + 2)) - raw)
  ids = data.draw(st.lists(st.sampled_from(plain), max_size=9))
  cut = data.draw(st.integers(0, len(ids)))
  before = made.decode(ids[:cut])
  assert before + whole(kind, ids[cut:], ids[:cut]) == made.decode(ids)


@pytest.mark.parametrize('kind', tokenizer_kinds.KINDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_whole_text(kind, data):
  size = tokenizer_kinds.make(kind).get_vocab_size()
  random = st.lists(st.integers(0, size), max_size=12)
  ids = data.draw(random | TEXTS.map(lambda text: encode(kind, text)))
  prompt = data.draw(random | TEXTS.map(lambda text: encode(kind, text)))
  text, shown = begin(kind, prompt, stops=('a\n', 'the')), []
  rest = list(ids)
  while rest:
    count = data.draw(st.integers(1, len(rest)))
    shown.append(text.add(rest[:count]))
    rest = rest[count:]
  shown.append(text.finish())
  assert ''.join(shown) == whole(kind, ids, prompt, stops=('a\n', 'the'))


@pytest.mark.parametrize('kind', EXACT)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_only_bytes_of_half_a_character_wait(kind, text, data):
  prompt = encode(kind, 'a')
  ids = encode(kind, 'a' + text)[len(prompt) :]
  assume(ids and encode(kind, 'a' + text)[:1] == prompt[:1])
  count = data.draw(st.integers(0, len(ids)))
  shown = begin(kind, prompt).add(ids[:count])
  after = begin(kind, prompt).add(ids[: count + 1])
  full = whole(kind, ids, prompt)
  assert full.startswith(shown) and after.startswith(shown)
  # The next character is the one that is not whole yet.
  rest = whole(kind, ids[:count], prompt)[len(shown) :]
  assert rest == '\ufffd' * len(rest) and len(rest) <= 3


def test_a_character_that_is_truly_there_does_not_wait():
  ids = encode('byte_level', 'a\ufffd')
  assert begin('byte_level').add(ids) == 'a\ufffd'


@pytest.mark.parametrize(
  ('kind', 'left'), [('byte_level', '\ufffd'), ('sentencepiece', 3 * '\ufffd')]
)
def test_letters_before_half_a_character_are_not_lost(kind, left):
  prompt = encode(kind, 'a')
  ids = encode(kind, 'a the😀')[len(prompt) : -1]
  text = begin(kind, prompt)
  assert text.add(ids) == ' the'
  assert text.finish() == left
  made = tokenizer_kinds.make(kind)
  assert made.decode(prompt + ids) == 'a the' + left


def test_the_characters_before_broken_bytes_stay():
  ids = encode('sentencepiece', 'a😀😀')
  # The library gives up the whole run of bytes.
  assert tokenizer_kinds.make('sentencepiece').decode(ids[:-1])[1] == '\ufffd'
  assert whole('sentencepiece', ids[:-1]) == 'a😀' + 3 * '\ufffd'


def test_half_a_character_of_the_prompt_is_completed():
  ids = encode('byte_level', 'a😀b')
  assert whole('byte_level', ids[2:], ids[:2]) == '😀b'


@pytest.mark.parametrize('kind', ['sentencepiece', 'unigram'])
def test_a_first_word_keeps_its_space(kind):
  prompt, ids = encode(kind, 'It'), encode(kind, 'It the')
  assert whole(kind, ids[1:], prompt) == ' the'
  assert whole(kind, ids[1:]) == 'the'  # The start of a text.
  assert whole(kind, ids[1:], [1]) == 'the'  # After BOS alone.


@pytest.mark.parametrize('kind', tokenizer_kinds.KINDS)
def test_text_ends_before_eos(kind):
  ids = encode(kind, 'a b')
  tokens = [*ids, 2, *ids]
  assert whole(kind, tokens, eos_ids=(2,)) == whole(kind, ids)
  assert whole(kind, tokens, [2], eos_ids=(ids[-1],)) == whole(
    kind, ids[:-1], [2]
  )
  text = begin(kind, eos_ids=(2,))
  text.add([2])
  assert text.add(ids) == text.finish() == ''


@pytest.mark.parametrize(
  ('stops', 'expected'),
  [
    (('the',), 'ab the'),
    (('e\n', 'b'), 'ab'),
    (('\n', 'he'), 'ab the'),
    (('b t', 'ab the\n'), 'ab t'),
    (('x', 'the!'), 'ab the\nab'),
    ((), 'ab the\nab'),
  ],
)
@pytest.mark.parametrize('kind', EXACT)
def test_text_ends_with_the_first_stop_to_be_whole(kind, stops, expected):
  prompt = encode(kind, '!')
  ids = encode(kind, '!ab the\nab')[len(prompt) :]
  assert whole(kind, ids, prompt, stops=stops) == expected
  text = begin(kind, prompt, stops=stops)
  assert ''.join(text.add([token]) for token in ids) == expected


def test_a_stop_does_not_begin_in_the_prompt():
  prompt = encode('byte_level', 'a')
  assert (
    whole('byte_level', encode('byte_level', 'bab'), prompt, stops=('ab',))
    == 'bab'
  )


def test_other_decoders_give_all_text_at_the_end():
  made = tokenizer_kinds.make('suffixed')
  assert not pieces.Pieces(made).is_exact
  ids = encode('suffixed', 'a b c')
  text = begin('suffixed', ids[:1])
  assert text.add(ids[1:]) == ''
  assert text.finish() == ' b c'
