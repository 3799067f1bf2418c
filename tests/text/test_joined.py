# SPDX-License-Identifier: Apache-2.0
"""Prompt and answer tokenized as one text."""

from hypothesis import given, settings, strategies as st
import pytest
import tokenizer_kinds
from tokenizers import AddedToken, normalizers

from specstream_jax.text import completion, joined, pieces

EXACT = ('byte_level', 'sentencepiece', 'unigram')
CHARS = st.sampled_from([*'abe htIn.,!:\n', '😀', '是', 'é'])
TEXTS = st.lists(CHARS, min_size=1, max_size=9).map(''.join)


def encode(kind, prompt, answer):
  return joined.encode(
    pieces.Pieces(tokenizer_kinds.make(kind)), prompt, answer
  )


def ids_of(kind, text):
  return tokenizer_kinds.make(kind).encode(text).ids


def text_of(kind, prompt, answer):
  made = pieces.Pieces(tokenizer_kinds.make(kind))
  text = completion.Completion(made, prompt)
  return text.add(answer) + text.finish()


@pytest.mark.parametrize('kind', EXACT)
@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_ids_spell_both_texts(kind, prompt, answer):
  prompt = 'a' + prompt  # Decoders lose a space that a text begins with.
  found = encode(kind, prompt, answer)
  whole = ids_of(kind, prompt + answer)
  assert found.prompt == ids_of(kind, prompt)
  is_prefix = whole[: len(found.prompt)] == found.prompt
  assert found.is_inside == (not is_prefix)
  if is_prefix:
    assert found.prompt + found.answer == whole
  assert text_of(kind, found.prompt, found.answer) == answer


@pytest.mark.parametrize('kind', ['sentencepiece', 'unigram'])
@pytest.mark.parametrize('answer', [' the', 'the', ' It ab', 'ab', '是'])
def test_no_second_space(kind, answer):
  made = tokenizer_kinds.make(kind)
  found = encode(kind, 'ab:', answer)
  assert made.decode(found.prompt + found.answer) == 'ab:' + answer
  if kind == 'sentencepiece':  # Encoded apart, each gets another space.
    apart = found.prompt + ids_of(kind, answer)
    assert made.decode(apart) == f'ab: {answer}'


@pytest.mark.parametrize('kind', EXACT)
def test_a_completion_reads_back_as_the_same_ids(kind):
  whole = ids_of(kind, 'ab: It is the ab\nUser: 是😀')
  for cut in range(1, len(whole)):
    prompt = tokenizer_kinds.make(kind).decode(whole[:cut])
    if ids_of(kind, prompt) != whole[:cut]:
      continue  # Inside a character.
    answer = text_of(kind, whole[:cut], whole[cut:])
    assert encode(kind, prompt, answer) == (whole[:cut], whole[cut:], False)


def test_answers_that_start_inside_a_token():
  for kind in EXACT:
    found = encode(kind, 'ab: ', 'the')  # The space is part of the word.
    assert found.is_inside
    assert found.prompt == ids_of(kind, 'ab: ')
    assert text_of(kind, found.prompt, found.answer) == 'the'
    assert not encode(kind, 'ab:', ' the').is_inside
  assert encode('byte_level', 'i', 'ng').is_inside


def special_end(kind, **options):
  made = tokenizer_kinds.KINDS[kind]()
  made.add_special_tokens([AddedToken('<bot>', **options)])
  return made


@pytest.mark.parametrize('answer', ['the', ' the', 'ab<bot>ab'])
@pytest.mark.parametrize('kind', EXACT)
def test_after_an_added_token_the_answer_is_what_it_says(kind, answer):
  # SentencePiece begins anew after such a token, with another space.
  made = special_end(kind, normalized=False)
  found = joined.encode(pieces.Pieces(made), 'ab<bot>', answer)
  assert made.decode(found.prompt, skip_special_tokens=False)[:2] == 'ab'
  text = made.decode(found.prompt + found.answer)
  if '<bot>' not in answer:
    assert text == f'ab{answer}'
  assert not found.is_inside


def test_an_added_token_that_takes_the_space_after_it():
  made = special_end('byte_level', rstrip=True)
  found = joined.encode(pieces.Pieces(made), 'ab<bot>', ' the')
  assert made.decode(found.prompt + found.answer) == 'ab the'


def test_tokenizers_that_change_texts():
  made = tokenizer_kinds.byte_level()
  made.normalizer = normalizers.Lowercase()
  found = joined.encode(pieces.Pieces(made), 'AB:', ' The')
  assert found.prompt + found.answer == made.encode('AB: The').ids
  # No ids spell the answer as it is.
  found = joined.encode(pieces.Pieces(made), 'AB: ', 'THE')
  assert found == (made.encode('ab: ').ids, made.encode('the').ids, True)


@pytest.mark.parametrize('kind', ['wordpiece', 'words', 'suffixed'])
def test_other_kinds(kind):
  found = encode(kind, 'a b', 'c')
  assert found.prompt == ids_of(kind, 'a b')
  whole = ids_of(kind, 'a bc')
  assert found.is_inside == (whole[: len(found.prompt)] != found.prompt)
  assert encode(kind, 'a', ' b') == (
    ids_of(kind, 'a'),
    ids_of(kind, 'b'),
    False,
  )
