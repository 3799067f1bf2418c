# SPDX-License-Identifier: Apache-2.0
"""Texts of generate and stream: with their spaces, whole, up to a stop."""

import dataclasses

import numpy as np
import pytest
import tiny_runtime
import tokenizer_kinds

from specstream_jax import config
from specstream_jax.bench import grid, journal, sides as sides_lib, summary
from specstream_jax.checkpoints import loading
from specstream_jax.cli import generate as cli
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import questions
from specstream_jax.workflows import bench, generate

TREE = config.TreeConfig(num_nodes=3, depth=2, branching=2)
DRAFTERS = {
  'none': config_drafting.DrafterConfig('none'),
  'streams': config_drafting.DrafterConfig('streams', tree=TREE),
  'prompt_lookup': config_drafting.DrafterConfig('prompt_lookup'),
}
PROMPTS = [[5, 9, 30], [1, 40], [7]]


@pytest.fixture(scope='module')
def base():
  """Enough tokens for every kind; more than any has."""
  made = tiny_runtime.model(vocab_size=320)
  return dataclasses.replace(made, eos_ids=(2,))


def of_kind(base, kind):
  return dataclasses.replace(base, tokenizer=tokenizer_kinds.make(kind))


def options(drafter, **changes):
  hot = config.SamplingConfig(temperature=1.0)
  return generate.Options(
    **{'max_new_tokens': 24, 'sampling': hot, 'seed': 5} | changes,
    drafter=DRAFTERS[drafter],
  )


def streamed(model, prompts, options):
  texts = [''] * len(prompts)
  for row, text in generate.stream_text(model, prompts, options):
    assert text
    texts[row] += text
  return texts


@pytest.mark.parametrize('drafter', DRAFTERS)
@pytest.mark.parametrize('kind', tokenizer_kinds.KINDS)
def test_streamed_text_is_the_text(base, kind, drafter):
  model = of_kind(base, kind)
  for seed in range(3):
    asked = options(drafter, seed=seed)
    whole = [row.text for row in generate.generate(model, PROMPTS, asked)]
    assert streamed(model, PROMPTS, asked) == whole


@pytest.mark.parametrize('kind', ['byte_level', 'sentencepiece'])
def test_a_stop_ends_the_text_wherever_tokens_begin(base, kind):
  model = of_kind(base, kind)
  plain = generate.generate(model, PROMPTS, options('streams'))
  text = plain[0].text
  pairs = {text[i : i + 2] for i in range(2, len(text) - 3)}
  stops = sorted(pair for pair in pairs if '\ufffd' not in pair)[:4]
  assert stops
  for stop in stops:
    asked = options('streams', stop=(stop,))
    rows = generate.generate(model, PROMPTS, asked)
    end = text.index(stop) + len(stop)
    assert (rows[0].text, rows[0].finish_reason) == (text[:end], 'stop')
    assert streamed(model, PROMPTS, asked) == [row.text for row in rows]
    for row, whole, prompt in zip(rows, plain, PROMPTS):
      assert row.tokens == whole.tokens[: len(row.tokens)]
      # The stop is whole with the last token, not before.
      assert stop not in model.decode_text(row.tokens[:-1], prompt)


@pytest.mark.parametrize('kind', ['byte_level', 'sentencepiece'])
def test_the_text_of_a_special_token_stops_like_eos(base, kind):
  model = of_kind(base, kind)
  hot = config.SamplingConfig(temperature=1.0, logit_bias=((2, 5.0),))
  asked = options('streams', sampling=hot)
  want = generate.generate(model, PROMPTS, asked)
  assert [row.finish_reason for row in want] == ['eos'] * 3
  deaf = dataclasses.replace(hot, ignore_eos=True)
  for sampling in (deaf, hot):
    asked = options('streams', sampling=sampling, stop=('zzz', '</s>'))
    rows = generate.generate(model, PROMPTS, asked)
    reason = 'stop' if sampling is deaf else 'eos'
    assert rows == [
      dataclasses.replace(row, finish_reason=reason) for row in want
    ]
    assert streamed(model, PROMPTS, asked) == [row.text for row in rows]


def test_other_stops_compile_nothing(base):
  model = of_kind(base, 'byte_level')
  generate.generate(model, PROMPTS, options('streams', stop=('a',)))
  counts = lambda: [d.num_compilations for d, _ in model._decoders.values()]
  before = counts()
  for stop in (('b',), ('the', 'User:\n'), ('是' * 9,), ('<s>', 'b')):
    generate.generate(model, PROMPTS, options('streams', stop=stop))
  assert counts() == before
  # Nor do other settings, nor limits up to what was compiled for.
  for limit in (1, 17, 64):
    sampling = config.SamplingConfig(0.1 * limit, top_k=limit, top_p=0.9)
    asked = options(
      'streams', max_new_tokens=limit, seed=limit, sampling=sampling, stop='a'
    )
    generate.generate(model, PROMPTS, asked)
  assert counts() == before
  steps = [generate._buffer(limit) for limit in (1, 64, 65, 128, 129)]
  assert steps == [64, 64, 128, 128, 256]


def test_bad_stops(base):
  model = of_kind(base, 'suffixed')
  with pytest.raises(
    ValueError, match='need a tokenizer that decodes token by'
  ):
    generate.generate(model, PROMPTS, options('none', stop=('a',)))
  model = of_kind(base, 'byte_level')
  with pytest.raises(ValueError, match='an entry of stop is empty'):
    generate.stream(model, PROMPTS, options('none', stop=('',)))
  with pytest.raises(ValueError, match="use '</s>' alone as a stop"):
    generate.generate(model, PROMPTS, options('none', stop=('</s>\n',)))


@pytest.mark.parametrize('kind', ['sentencepiece', 'unigram'])
def test_a_completion_keeps_the_space_before_its_first_word(base, kind):
  made = tokenizer_kinds.make(kind)
  model = of_kind(base, kind)
  prompt = made.encode('It').ids
  new = made.encode('It the ab').ids[1:]
  assert model.decode_text(new, prompt) == ' the ab'
  assert model.decode_text(new) == 'the ab'
  assert model.token_texts([*new, 2], prompt) == [' the', ' ab', '</s>']


def test_answers_of_benchmarks_keep_that_space_as_well(base):
  model = of_kind(base, 'sentencepiece')
  ids = tokenizer_kinds.make('sentencepiece').encode('It the ab').ids
  question = questions.Question(7, 'math', ('It',), ('the ab',))
  row = grid.Row(0, question, 0, tuple(ids[:1]), False)
  side = sides_lib.Side(
    tokens=[[*ids[1:], 2]],
    accept_lengths=[[1]],
    calls=np.array([1]),
    seconds=np.ones((1, 1)),
    prefill_seconds=np.ones((1, 1)),
    steps=np.array([1]),
    compile_seconds=0.0,
    batch_of=(0,),
  )
  plan = grid.Plan({}, ())
  made = grid.Bench(model, plan, [], journal.Memory())
  (answer,) = bench._answers(made, [row], side)
  assert answer['choices'][0]['turns'] == [' the ab']
  (sample,) = summary.samples(model, made, [row], side)
  assert sample['tokens'] == [' the', ' ab', '</s>']


def test_texts_of_single_tokens(base):
  model = of_kind(base, 'byte_level')
  ids = tokenizer_kinds.make('byte_level').encode('a😀').ids
  assert model.token_texts(ids) == ['a', '', '', '', '😀']
  assert model.token_texts(ids[:-1]) == ['a', '', '', '\ufffd']
  assert model.token_texts([]) == []
  other = of_kind(base, 'suffixed')
  assert other.token_texts([3, 2]) == ['a', '</s>']


def test_ids_without_a_tokenizer(base):
  missing = loading.MissingTokenizer('no tokenizer.json here')
  model = dataclasses.replace(base, tokenizer=missing)
  asked = options('none')
  rows = generate.generate(model, PROMPTS, asked)
  assert [row.text for row in rows] == [None] * 3
  found = [[], [], []]
  for row, tokens in generate.stream(model, PROMPTS, asked):
    found[row] += tokens
  assert found == [row.tokens for row in rows]
  for call in (
    lambda: generate.stream_text(model, PROMPTS, asked),
    lambda: generate.generate(model, PROMPTS, options('none', stop=('a',))),
    lambda: generate.generate(model, ['a'], asked),
  ):
    with pytest.raises(ValueError, match=r'no tokenizer\.json here'):
      call()


def test_the_command_prints_what_streams(base, capsys, monkeypatch):
  texts = [(0, ' the'), (0, '\n'), (0, '😀')]
  rows = []

  def stream_text(model, prompts, asked, *, row_ids):
    del model, prompts, asked
    rows.extend(row_ids)
    return iter(texts)

  monkeypatch.setattr(generate, 'stream_text', stream_text)
  cli._print_stream(base, {'prompt': 'ab'}, 3, options('none'))
  assert rows == [3]  # the noise of the row that `generate` gives it
  assert capsys.readouterr().out == 'ab the\n😀\n'
