# SPDX-License-Identifier: Apache-2.0
"""Stop texts on the device: found at the token in which they become whole."""

import functools

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import reference_decoding as reference
import table_lm
import tokenizer_kinds
from tokenizers import Tokenizer, models

from specstream_jax import config
from specstream_jax.decoding import decoder as decoder_lib, stopping
from specstream_jax.drafters import none
from specstream_jax.text import completion, pieces as pieces_lib, stops

KINDS = ('byte_level', 'sentencepiece', 'unigram', 'wordpiece', 'words')
STOPS = st.lists(
  st.text(st.sampled_from('ab the\nUsr:是é'), min_size=1, max_size=5),
  min_size=1,
  max_size=4,
)


@functools.cache
def pieces(kind):
  return pieces_lib.Pieces(tokenizer_kinds.make(kind))


def first_end(spelled, texts):
  """Index of the token in which a text becomes whole; None if none does."""
  texts = [text.encode() for text in texts]
  for i in range(len(spelled)):
    if any(text in b''.join(spelled[: i + 1]) for text in texts):
      return i
  return None


def spell(kind, prompt, tokens):
  """Bytes of each token, found by what decoding makes of longer texts."""
  text = pieces(kind)
  spelled, is_first = [], all(map(text.is_skipped, prompt))
  for token in tokens:
    spelled.append(text.spell(token, is_first=is_first))
    is_first = is_first and text.is_skipped(token)
  return spelled


follow = jax.jit(stopping.StopTexts.follow)


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=40, deadline=None)
@given(texts=STOPS, data=st.data())
def test_the_table_finds_what_the_text_holds(kind, texts, data):
  table = stops.table(pieces(kind), 320, texts)
  written = [
    tokenizer_kinds.make(kind).encode(text, add_special_tokens=False).ids
    for text in (*texts, 'the Use a\nab')
  ]
  one = st.integers(0, 319).map(lambda token: [token])
  parts = data.draw(st.lists(one | st.sampled_from(written), max_size=6))
  tokens = [token for part in parts for token in part][:12]
  prompt = data.draw(st.sampled_from([[1], [1, 2], [5], [1, 9, 2]]))
  padded = np.full((1, 12), -1, np.int32)
  padded[0, : len(tokens)] = tokens
  states = follow(table, table.begin([prompt]), padded)[0, : len(tokens)]
  found = np.flatnonzero(states == stopping.FOUND)
  want = first_end(spell(kind, prompt, tokens), texts)
  assert want == (found[0] if len(found) else None)
  # Where the device ends the row, the text is cut.
  text = completion.Completion(pieces(kind), prompt, stops=texts)
  shown = text.add(tokens)
  assert (want is not None) == shown.endswith(tuple(texts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('ab', min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_beginning_of_a_stop_is_kept_in_mind(texts):
  # Over two letters nearly every stop overlaps itself and the others.
  table = stops.table(pieces('byte_level'), 320, texts)
  ids = {c: tokenizer_kinds.make('byte_level').token_to_id(c) for c in 'ab'}
  for number in range(2**7):
    text = f'{number:07b}'.replace('0', 'a').replace('1', 'b')
    tokens = np.array([[ids[c] for c in text]], np.int32)
    states = follow(table, table.begin([[1]]), tokens)[0]
    found = np.flatnonzero(states == stopping.FOUND)
    ends = [text.find(t) + len(t) - 1 for t in texts if t in text]
    assert list(found) == list(range(min(ends, default=7), 7))


# Thirteen tokens, for the thirteen of the table model.
NAMES = [
  'a',
  'b',
  'ab',
  'ba',
  'aa',
  'c',
  'bc',
  'ca',
  'abc',
  'd',
  'cb',
  'e',
  'f',
]
CFG = config.DecodeConfig(
  max_new_tokens=17, prompt_bucket=11, eos_ids=(11,), stop_sequences=((12,),)
)


@functools.cache
def letters():
  """A tokenizer of which each text has many spellings."""
  tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(NAMES)}, []))
  tokenizer.decoder = tokenizer_kinds.decoders.Fuse()
  return pieces_lib.Pieces(tokenizer)


@functools.cache
def decoder(kind):
  drafters = {'none': none.NoDraft, 'random': table_lm.RandomDrafter}
  return decoder_lib.Decoder(table_lm.MODEL, drafters[kind](), CFG)


TOKENS = st.integers(0, table_lm.VOCAB_SIZE - 1)
PROMPTS = st.lists(
  st.lists(TOKENS, min_size=1, max_size=11), min_size=3, max_size=3
)
LETTERS = st.text('abcd', min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(
  seed=st.integers(0, 2**16),
  prompts=PROMPTS,
  texts=st.lists(LETTERS, min_size=1, max_size=3),
)
def test_decoding_ends_where_the_text_does(seed, prompts, texts):
  params = table_lm.make_params(seed, quality=0.6)
  table = stops.table(letters(), table_lm.VOCAB_SIZE, texts)
  next_token = lambda tokens: int(
    np.argmax(table_lm.next_logits(params, tokens))
  )
  results = [
    decoder(kind).generate(params, prompts, stops=table)
    for kind in ('none', 'random')
  ]
  for row, prompt in enumerate(prompts):
    want, reason = reference.autoregressive(next_token, prompt, 17, (11,), ())
    if 12 in want:
      want, reason = want[: want.index(12) + 1], 'stop'
    end = first_end([NAMES[token].encode() for token in want], texts)
    if end is not None:
      want, reason = want[: end + 1], 'stop'
    for result in results:
      assert (result.tokens[row], result.finish_reasons[row]) == (want, reason)
  for kind in ('none', 'random'):
    assert decoder(kind).num_compilations == 2  # Whatever the texts.


def test_streaming_stops_as_well():
  params = table_lm.make_params(3, quality=0.6)
  table = stops.table(letters(), table_lm.VOCAB_SIZE, ['b'])
  prompts = [[1], [2], [3]]
  whole = decoder('random').generate(params, prompts, stops=table)
  assert 'stop' in whole.finish_reasons
  found = [[], [], []]
  for row, tokens in decoder('random').stream(params, prompts, stops=table):
    found[row] += tokens
  assert found == whole.tokens


def test_without_stops_nothing_is_carried():
  params = table_lm.make_params(3)
  state = decoder('none').start(params, [[1], [2], [3]])
  assert state.text_states is None


@pytest.mark.parametrize('kind', KINDS)
def test_a_special_token_is_found_by_its_id(kind):
  # Token 1 is skipped as token 2 is, but no stop.
  ids = tokenizer_kinds.make(kind).encode('ab', add_special_tokens=False).ids
  table = stops.table(pieces(kind), 320, ['zzz', '</s>'])
  for prompt in ([1], [2], [2, *ids]):
    for tokens in ([2], [1, 2], [*ids, 2], [1, *ids, 2, *ids]):
      states = follow(table, table.begin([prompt]), np.array([tokens]))[0]
      assert np.flatnonzero(states == stopping.FOUND)[0] == tokens.index(2)
  text = completion.Completion(pieces(kind), [2], stops=['</s>'])
  spelled = b''.join(spell(kind, [2], ids)).decode()
  assert text.add(ids) + text.finish() == spelled


def test_a_stop_of_a_chat_leaves_the_space_in_front_as_it_was():
  # A prompt of special tokens alone has no text, whether they are stops or not.
  for texts in (['</s>'], ['the', '</s>']):
    table = stops.table(pieces('sentencepiece'), 320, texts)
    prompts = [[1], [2, 1], [2, 2], [2, 40], [40]]
    want = [stopping.START] * 3 + [stopping.ANYWHERE] * 2
    assert table.begin(prompts).tolist() == want


def test_what_is_refused():
  table = functools.partial(stops.table, pieces('byte_level'), 320)
  with pytest.raises(ValueError, match='stop text 1 is empty; leave it out'):
    table(['a', ''])
  with pytest.raises(ValueError, match='come to 1002 bytes; accepted: at most'):
    table(['é' * 501])
  with pytest.raises(ValueError, match='decodes token by token, and this one'):
    stops.table(pieces('suffixed'), 320, ['a'])
  with pytest.raises(ValueError, match="has the special token '</s>' in it"):
    table(['a', 'User</s>\n'])


def test_long_stops_are_found():
  text = 'the ' * 250
  table = stops.table(pieces('byte_level'), 320, [text])
  states, found = table.begin([[1]]), []
  for token in tokenizer_kinds.make('byte_level').encode(text).ids:
    states = follow(table, states, np.array([[token]], np.int32))[:, 0]
    found.append(int(states[0]) == stopping.FOUND)
  assert found == [False] * (len(found) - 1) + [True]
