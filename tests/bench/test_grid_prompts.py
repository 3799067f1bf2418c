# SPDX-License-Identifier: Apache-2.0
"""What the rivals are asked: lengths, later turns, who takes which cell."""

import types

import pytest

from specstream_jax.bench import grid, journal as journal_lib
from specstream_jax.data import questions

BOS = 1


class _Model:
  """An id for each character, behind a BOS."""

  bos_id = BOS
  chat_template = (
    '{% for m in messages %}{{ m.role[0] + m.content }}{% endfor %}'
  )

  def encode_prompt(self, text):
    return [BOS, *map(ord, text)]

  def decode_text(self, tokens, prompt, *, ignore_eos):
    assert prompt[0] == BOS and not ignore_eos
    return ''.join(map(chr, tokens))


def _runner(label, *, is_external=False):
  return types.SimpleNamespace(label=label, is_external=is_external)


NONE, STREAMS = _runner('none'), _runner('streams')


def _bench(asked, *, batch=1, runners=(NONE, STREAMS), entries=None, **options):
  cell = grid.Cell('t/test', 0.0, batch)
  plan = grid.Plan({'t/test': asked}, (cell,), **options)
  entries = journal_lib.Memory() if entries is None else entries
  return grid.Bench(_Model(), plan, runners, entries), cell


@pytest.mark.parametrize(
  ('most', 'kept'),
  [
    (None, 'abcdefg'),
    (8, 'abcdefg'),
    (7, 'bcdefg'),
    (3, 'fg'),
    (1, ''),
  ],
)
def test_a_long_prompt_loses_its_beginning_but_not_its_bos(most, kept):
  asked = [questions.Question(0, 't', ('abcdefg',))]
  made, cell = _bench(asked, max_prompt_tokens=most, bucket=8)
  [[row]] = made.batches(cell, 0)
  assert row.prompt == (BOS, *map(ord, kept))
  assert row.is_truncated == (kept != 'abcdefg')


def test_without_a_bos_the_end_is_kept(monkeypatch):
  monkeypatch.setattr(_Model, 'bos_id', None)
  asked = [questions.Question(0, 't', ('abc',))]
  made, cell = _bench(asked, max_prompt_tokens=3, bucket=8)
  assert made.batches(cell, 0)[0][0].prompt == tuple(map(ord, 'abc'))


def test_a_later_turn_follows_what_the_baseline_answered_first():
  """Not what a rival, nor what another pass answered."""
  asked = [
    questions.Question(n, 't', turns, is_chat=True)
    for n, turns in enumerate([('a', 'b'), ('c',), ('d', 'e')])
  ]
  entries = journal_lib.Memory()
  made, cell = _bench(asked, batch=2, entries=entries, bucket=8, repeats=2)
  with pytest.raises(KeyError):
    made.batches(cell, 1)
  for label in ('none', 'streams'):
    for repeat in range(2):
      # The last batch has one row, and that twice.
      for number, texts in enumerate([('V', 'W'), ('X', 'X')]):
        said = [f'{text}{label[0]}{repeat}' for text in texts]
        key = ('t/test', 0.0, 2, label, 0, repeat, number)
        entries[key] = {'tokens': [list(map(ord, text)) for text in said]}
  [batch] = made.batches(cell, 1)
  assert [row.index for row in batch] == [0, 2]
  texts = [''.join(map(chr, row.prompt[1:])) for row in batch]
  assert texts == ['uaaVn0ub', 'udaXn0ue']
  assert [row.turn for row in batch] == [1, 1]


def test_other_programs_take_one_row_at_a_time():
  rivals = NONE, _runner('other', is_external=True), STREAMS
  asked = [questions.Question(0, 't', ('a',))]
  names = lambda batch: [
    runner.label
    for made, cell in [_bench(asked, batch=batch, runners=rivals)]
    for runner in made.runners(cell)
  ]
  assert names(1) == ['none', 'other', 'streams']
  assert names(2) == ['none', 'streams']


def test_prompts_of_a_few_lengths_are_compiled_for():
  lengths = (1, 64, 65, 256, 257, 1024, 1025)
  assert [grid.bucket_of(n) for n in lengths] == [64, 64, *[256] * 2, *[1024] * 2, 4096]  # fmt: skip
  rows = [types.SimpleNamespace(prompt=range(n)) for n in (3, 65, 9)]
  assert grid.batch_bucket(rows) == 256


def test_batches_hold_prompts_of_one_length():
  asked = [
    questions.Question(i, 't', (n * 'a',)) for i, n in enumerate([99, 3, 70, 5])
  ]
  made, cell = _bench(asked, batch=2)
  found = [[row.index for row in batch] for batch in made.batches(cell, 0)]
  assert found == [[1, 3], [0, 2]]
