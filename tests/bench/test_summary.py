# SPDX-License-Identifier: Apache-2.0
"""Measurements as rows of results, on sides small enough to do by hand."""

import types

import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.bench import grid, sides as sides_lib, summary
from specstream_jax.data import questions, registry

# (category, tokens of the prompt, whether it was cut); one prompt a batch.
PROMPTS = [('b', 128, False), ('a', 129, True), ('b', 1, True)]
CALLS, PLAIN_CALLS = [1, 2, 4], [3, 4, 5]
ACCEPTS = [[2], [0, 2], [0, 0, 0, 1]]
TOKENS = [[7] * 4, [8] * 5, [9] * 6]
CELLS = grid.Cell('e2e_nlg/test@x', 0.0, 1), grid.Cell('e2e_nlg/dev', 0.7, 1)
ANSWERS = {7: 'one two', 8: 'three', 9: 'four five six'}


def _side(calls, accepts=None):
  return sides_lib.Side(
    tokens=TOKENS,
    accept_lengths=accepts or [[0] * n for n in calls],
    calls=np.array(calls),
    seconds=np.ones((1, 3)),
    prefill_seconds=np.ones((1, 3)),
    steps=np.array(calls),
    compile_seconds=0.0,
    batch_of=(0, 1, 2),
  )


def _runner(label, **changed):
  facts = {
    'settings': {'name': 'streams', 'tree': {'kind': 'chain'}},
    'size': 4,
    'max_depth': 3,
    'is_lossy': False,
    'is_external': False,
    'output': 'same',
    'extra_parameters': 11,
  }
  return types.SimpleNamespace(label=label, **(facts | changed))


NONE = _runner('none', settings={'name': 'none'}, size=1, max_depth=0)
STREAMS = _runner('streams')
SIDES = {'none': _side(PLAIN_CALLS), 'streams': _side(CALLS, ACCEPTS)}


def _rows(references=()):
  return [
    grid.Row(
      i, questions.Question(i, name, (f'ask {i}',), references), 0,
      tuple(range(length)), is_cut,
    )
    for i, (name, length, is_cut) in enumerate(PROMPTS)
  ]  # fmt: skip


def _made(rivals=(NONE, STREAMS), sides=SIDES, rows=None, cells=CELLS[:1]):
  """A benchmark that has `sides` of each cell, by label or (cell, label)."""
  rows = _rows() if rows is None else rows

  def collect(cell, label):
    side = sides.get((cell, label), sides.get(label))
    return None if side is None else (rows, side)

  return types.SimpleNamespace(
    plan=types.SimpleNamespace(cells=cells),
    runners=lambda cell: list(rivals),
    collect=collect,
    text=lambda tokens, row: f' {ANSWERS[tokens[0]]}',
  )


MODEL = types.SimpleNamespace(
  config=types.SimpleNamespace(dtype='float32', numbers='float32'),
  token_texts=lambda tokens, prompt: [f'{t} of {len(prompt)}' for t in tokens],
)


def _summarize(made, **options):
  return summary.summarize(
    MODEL,
    made,
    schedule='deferred',
    sampling=config.SamplingConfig(top_k=5),
    **options,
  )


def test_facts_of_cell_and_rival():
  [cold, warm] = _summarize(_made(cells=CELLS))
  assert (cold.task, warm.task) == ('e2e_nlg/test@x', 'e2e_nlg/dev')
  assert (cold.temperature, warm.temperature) == (0.0, 0.7)
  assert cold.sampling == {'top_k': 5}
  assert warm.sampling == {'temperature': 0.7, 'top_k': 5}
  assert (cold.drafter, cold.name, cold.batch) == ('streams', 'streams', 1)
  assert cold.tree == {'kind': 'chain', 'size': 4}
  assert (cold.dtype, cold.schedule) == ('float32', 'deferred')
  assert cold.extra_parameters == 11
  assert (cold.calls, cold.autoregressive_calls) == (7, 12)
  # One list entry for each depth of the rival's tree.
  assert len(cold.per_depth_acceptance) == 3
  assert not (cold.lossy or cold.external or cold.synthetic)


@pytest.mark.parametrize(
  ('change', 'field'),
  [
    ({'is_lossy': True}, 'lossy'),
    ({'is_external': True}, 'external'),
    ({'output': 'synthetic'}, 'synthetic'),
  ],
)
def test_what_a_rival_is(change, field):
  [run] = _summarize(_made((NONE, _runner('streams', **change))))
  said = {
    name: getattr(run, name) for name in ('lossy', 'external', 'synthetic')
  }
  assert [name for name, is_so in said.items() if is_so] == [field]


def test_a_rival_without_a_tree_has_no_nodes():
  other = types.SimpleNamespace(**vars(_runner('streams')))
  other.settings = {'name': 'other'}
  del other.size
  [run] = _summarize(_made((NONE, other)))
  assert run.tree == {'size': 0}


def test_every_rival_is_held_against_the_baseline():
  sides = SIDES | {'lookahead': _side([2, 3, 1])}
  runs = _summarize(_made((NONE, STREAMS, _runner('lookahead')), sides))
  assert [(r.name, r.calls) for r in runs] == [('streams', 7), ('lookahead', 6)]
  assert {r.autoregressive_calls for r in runs} == {12}


def test_alone_the_baseline_is_held_against_itself():
  [run] = _summarize(_made((NONE,)))
  assert (run.name, run.call_reduction_ratio) == ('none', 1.0)


@pytest.mark.parametrize('missing', [None, _side([0, 0, 0])])
@pytest.mark.parametrize('label', ['none', 'streams'])
def test_what_was_not_measured_has_no_row(label, missing):
  sides = SIDES | {(CELLS[0], label): missing}
  if missing is None:
    del sides[label]
    sides |= {(CELLS[1], label): SIDES[label]}
  made = _made((NONE, STREAMS, _runner('streams')), sides, cells=CELLS)
  assert {run.task for run in _summarize(made)} == {'e2e_nlg/dev'}


def test_one_call_is_a_measurement():
  sides = {'none': _side([1, 0, 0]), 'streams': _side([0, 0, 1], [[], [], [0]])}
  [run] = _summarize(_made(sides=sides))
  assert (run.calls, run.autoregressive_calls) == (1, 1)


def test_groups_of_prompts():
  """Tokens after the first, by call: 3 in 1, 4 in 2, 5 in 4."""
  [run] = _summarize(_made())
  assert run.by_category == pytest.approx({'a': 4 / 2, 'b': (3 + 5) / 5})
  assert list(run.by_category) == ['a', 'b']
  by_length = {'128': (3 + 5) / 5, '256': 4 / 2}
  assert run.by_prompt_length == pytest.approx(by_length)
  assert run.prompts_by_length == {'128': 2, '256': 1}
  assert list(run.prompts_by_length) == ['128', '256']
  assert run.num_truncated == 2


def test_lengths_in_order():
  rows = [_rows()[i] for i in (1, 0, 2)]
  [run] = _summarize(_made(rows=rows))
  assert list(run.prompts_by_length) == ['128', '256']


def test_samples_are_the_first_rows(monkeypatch):
  rows = _rows(references=('one two', 'two'))
  monkeypatch.setattr(summary, 'score', lambda *asked: {})
  [run] = _summarize(_made(rows=rows), num_samples=1)
  assert run.samples == [
    {
      'prompt': 'ask 0',
      'text': 'one two',
      'references': ['one two', 'two'],
      'accept_lengths': [2],
      'tokens': ['7 of 128'] * 4,
    }
  ]
  assert len(_summarize(_made())[0].samples) == 2
  # A row without calls shows nothing.
  sides = SIDES | {'streams': _side([0, 2, 4], [[], *ACCEPTS[1:]])}
  [run] = _summarize(_made(sides=sides))
  assert [sample['prompt'] for sample in run.samples] == ['ask 1']


def test_both_sides_are_scored_by_the_metrics_of_their_task(monkeypatch):
  asked = []

  def score(split, numbers, answers):
    asked.append((split, numbers, answers))
    return {'found': float(len(asked))}

  spec = types.SimpleNamespace(score=score, metrics=())
  monkeypatch.setattr(registry, 'get', {'e2e_nlg': spec}.__getitem__)
  changed = _side(CALLS, ACCEPTS)
  changed.tokens = [[9], [8], [7]]
  rows = _rows(references=('one two',))
  [run] = _summarize(_made(sides=SIDES | {'streams': changed}, rows=rows))
  assert run.quality == {
    'autoregressive': {'found': 1.0}, 'speculative': {'found': 2.0}
  }  # fmt: skip
  texts = [' one two', ' three', ' four five six']
  assert asked == [
    ('test', [0, 1, 2], texts), ('test', [0, 1, 2], texts[::-1])
  ]  # fmt: skip


def test_answers_are_compared_without_the_space_around_them(monkeypatch):
  spec = types.SimpleNamespace(score=None, metrics=('exact_match',))
  monkeypatch.setattr(registry, 'get', {'mine': spec}.__getitem__)
  asked = [questions.Question(i, 't', ('?',), ('x', 'y')) for i in range(2)]
  for task in ('mine', 'mine/test', 'mine/test@folder/of/mine'):
    found = summary.score(task, asked, ['\ny ', 'z'])
    assert found == {'exact_match': 50.0}


def test_without_an_answer_to_compare_there_is_no_score():
  rows = [*_rows(references=('one two',))[:2], _rows()[2]]
  [run] = _summarize(_made(rows=rows))
  assert run.quality == {'autoregressive': {}, 'speculative': {}}
