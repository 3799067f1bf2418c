# SPDX-License-Identifier: Apache-2.0
"""Tuning on a tiny model: what is measured, kept, read, and gone on with."""

import dataclasses
import json
import os
import types

import commands
import notebooks
import pytest
import tiny_runtime

from specstream_jax import runtime
from specstream_jax.checkpoints import tuning
from specstream_jax.config import drafting
from specstream_jax.report import tune_report
from specstream_jax.workflows import generate, tune

PROMPTS = ['ab', 'a longer one', 'xyz']


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A model, an adapter, prompts: their folders."""
  root = tmp_path_factory.mktemp('tuned')
  model, adapter = notebooks.write_tiny(root)
  rows = (json.dumps({'prompt': text}) + '\n' for text in PROMPTS)
  (root / 'own.jsonl').write_text(''.join(rows))
  return root, model, adapter


@pytest.fixture(scope='module')
def done(folders):
  """The command's output; its measurements are in `run`."""
  root, model, adapter = folders
  return commands.run(
    'tune',
    f'--model={model}',
    f'--adapter={adapter}',
    f'--task=jsonl/own@{root}',
    '--nodes=2,3',
    '--max_new_tokens=8',
    '--num_verified=1',
    f'--results_dir={root / "run"}',
  )


@pytest.mark.slow
def test_it_prints_candidates_and_keeps_the_fastest(folders, done):
  root, _, adapter = folders
  assert done.status == 0, done.err
  lines = done.out.splitlines()
  # Two sizes, each with all tokens and with the adapter's.
  sizes = [
    line for line in lines if line.startswith(('streams 2', 'streams 3'))
  ]
  assert len(sizes) == 4
  assert 'predictions were off by at most' in done.out
  assert f'kept: {os.path.realpath(adapter)}/tuning.json' in done.out
  found = json.loads((root / 'run' / 'tune.json').read_text())
  assert {row['nodes'] for row in found['candidates']} == {2, 3}
  ran = [row for row in found['candidates'] if row['speedup'] is not None]
  assert [row['has_copies'] for row in ran] == [False, True]
  assert ran[1]['drafter'] == ran[0]['drafter'].replace('streams:', 'mix:')
  assert '<svg' in (root / 'run' / 'tune.svg').read_text()
  assert (root / 'run' / 'measured.jsonl').is_file()


@pytest.mark.slow
def test_generate_takes_what_was_tuned(folders, done):
  assert done.status == 0
  _, base, adapter = folders
  model = runtime.load(base, adapter)
  [kept] = tuning._read(tuning.path(adapter), 0).values()
  is_known = kept.drafter == 'none' or 'pays_above=' in kept.drafter
  assert is_known or 'budgets=' in kept.drafter
  told = 'streams:num_nodes=3,depth=1,branching=2'
  tuning.keep(adapter, dataclasses.replace(kept, drafter=told))
  drafter, schedule = generate._drafter(model, generate.Options(), 1)
  assert (drafter.tree.num_nodes, drafter.tree.depth) == (3, 1)
  assert schedule == 'deferred'
  # What the user says comes first, as does another number of rows.
  asked = generate.Options(drafter='none')
  assert generate._drafter(model, asked, 1)[0].name == 'none'
  wide = dataclasses.replace(model.tree, num_nodes=4)
  asked = generate.Options(tree=wide)
  # The decoder adds the tree that was asked for.
  assert generate._drafter(model, asked, 1)[0].tree is None
  asked = generate.Options(schedule='parallel')
  assert generate._drafter(model, asked, 1) == (
    generate._drafter(model, asked, 2)[0],
    'parallel',
  )
  assert generate._drafter(model, generate.Options(), 2)[0].tree is None
  tuning.keep(adapter, dataclasses.replace(kept, drafter='none'))
  assert generate._drafter(model, generate.Options(), 1)[0].name == 'none'
  tuning.keep(adapter, kept)


@pytest.mark.slow
def test_the_same_command_measures_nothing_twice(folders, done, monkeypatch):
  assert done.status == 0
  root, base, adapter = folders
  monkeypatch.setattr(
    tune.tune_measures.Measures, '_time', lambda *_: pytest.fail('timed again')
  )
  options = tune.Options(
    f'jsonl/own@{root}', max_new_tokens=8, nodes=(2, 3), num_verified=1
  )
  model = runtime.load(base, adapter)
  again = tune.tune(
    model, options, str(root / 'run'), command='again', progress=False
  )
  before = json.loads((root / 'run' / 'tune.json').read_text())['candidates']
  assert [one.predicted for one in again] == [
    row['predicted'] for row in before
  ]
  other = dataclasses.replace(options, max_new_tokens=9)
  with pytest.raises(ValueError, match='max_new_tokens'):
    tune.tune(model, other, str(root / 'run'), command='other', progress=False)


@pytest.mark.slow
def test_streamed_weights_are_tuned_by_the_cost_model(
  folders, done, monkeypatch
):
  """The calls are those of weights that stay; what was found is kept apart."""
  assert done.status == 0
  monkeypatch.setenv('SPECSTREAM_CACHE', str(folders[0] / 'cache'))
  root, base, adapter = folders
  args = [
    'tune',
    f'--model={base}',
    f'--adapter={adapter}',
    f'--task=jsonl/own@{root}',
    '--nodes=2,3',
    '--max_new_tokens=8',
    '--num_verified=1',
    '--weights=stream',
    '--resident_layers=1',
  ]
  made = commands.run(*args, f'--results_dir={root / "streamed"}')
  assert made.status == 0, made.err
  of = lambda name: {
    (row['nodes'], row['has_vocabulary']): row['call_reduction']
    for row in json.loads((root / name / 'tune.json').read_text())['candidates']
    if row['schedule'] == 'deferred' and not row['has_copies']
  }
  assert of('streamed') == of('run')
  kept = tuning._read(tuning.path(adapter), 1)
  streamed = [one for place, one in kept.items() if 'stay' in place.dtype]
  assert len(streamed) == 1 and len(kept) == 2
  assert 'pays_above' not in streamed[0].drafter
  commands.refusal(
    *args,
    '--schedules=likely',
    f'--results_dir={root / "likely"}',
    match="'likely', of which nobody knows .* accepted .*: parallel, deferred",
  )


def test_without_streams_there_is_nothing_to_tune(tmp_path):
  plain = dataclasses.replace(tiny_runtime.model(), stream=None)
  with pytest.raises(ValueError, match='nothing to tune'):
    tune.tune(plain, tune.Options(), str(tmp_path), command='')


def test_where_no_candidate_pays_plain_decoding_is_kept():
  one = tune_report.Candidate('streams', 8, False, 'deferred', 1, 1.4, 2.0)
  slow = dataclasses.replace(one, speedup=0.8, speedup_ci95=(0.7, 0.9))
  assert tune_report.best([slow, one], 1) is None
  assert 'plain decoding is fastest' in tune_report.verdict([slow, one], 1)
  fast = dataclasses.replace(one, nodes=4, speedup=1.4, speedup_ci95=(1.3, 1.5))
  assert tune_report.best([slow, one, fast], 1) == fast
  assert 'off by at most 50%' in tune_report.verdict([fast, one], 1)


def _candidate(nodes, call_reduction, step_cost, **changes):
  made = tune_report.Candidate(
    f'streams:num_nodes={nodes}',
    nodes,
    False,
    'deferred',
    1,
    call_reduction,
    step_cost,
  )
  return dataclasses.replace(made, **changes)


def test_calls_choose_among_half_the_best_size_the_best_and_twice_it():
  sizes = [
    _candidate(8, 4.0, 2.0),  # the most promising
    _candidate(16, 4.6, 2.5),
    _candidate(4, 3.0, 1.7),
    _candidate(32, 5.0, 3.1),
    _candidate(2, 2.0, 1.6),
    _candidate(6, 3.5, 2.0),  # costs as much as 8
    _candidate(16, 4.0, 2.4, has_vocabulary=True),
    _candidate(4, 3.0, 1.5, schedule='parallel'),
  ]
  around = lambda found: [one.nodes for one in tune._around(found)]
  assert around(sizes) == [4, 8, 16]
  assert around(sizes[:1] + sizes[2:3]) == [4, 8]
  assert around(sizes[:1]) == [8]
  assert around([sizes[0], _candidate(16, 4.6, 1.9)]) == [16]
  measures = types.SimpleNamespace(
    drafter=lambda nodes, vocabulary: f'streams:num_nodes={nodes}{vocabulary}'
  )
  made = tune._choosing(measures, tune._around(sizes))
  assert made.drafter == 'streams:num_nodes=16,budgets=4:1.70/8:2.00/16:2.50'
  assert (made.sizes, made.nodes, made.predicted) == ((4, 8, 16), 16, None)
  assert made.label == 'streams 4/8/16'
  assert drafting.parse(made.drafter).sizes[1] == (8, 2.0)


@pytest.mark.parametrize(
  ('low', 'others', 'wins'),
  [
    (1.6, (1.5, 1.4), True),
    (1.45, (1.5, 1.4), False),  # perhaps faster, perhaps not
    (1.1, (0.9,), True),
    (0.98, (0.9,), False),
  ],
)
def test_budgets_are_kept_where_they_are_faster_beyond_doubt(low, others, wins):
  ran = [
    _candidate(n, 2, 1, speedup=speed, speedup_ci95=(speed - 0.3, speed + 0.3))
    for n, speed in zip((8, 16), others)
  ]
  choosing = _candidate(
    16, None, None, speedup=1.7, speedup_ci95=(low, 1.9), sizes=(8, 16)
  )
  found = [*ran, choosing]
  fixed = ran[0] if others[0] > 1 else None
  assert tune_report.fixed(found, 1) == fixed
  assert tune_report.best(found, 1) == (choosing if wins else fixed)
  assert 'off by at most' in tune_report.verdict(found, 1)


def test_copies_are_tried_in_the_best_tree_and_kept_where_they_are_faster(
  monkeypatch,
):
  monkeypatch.setattr(tune, 'place', lambda model, batch: batch)
  streams = _candidate(8, 4.0, 2.0, speedup=1.9, speedup_ci95=(1.8, 2.0))
  mixed = tune._mixed(streams)
  assert mixed.drafter == 'mix:num_nodes=8' and mixed.label == 'mix 8'
  assert mixed.predicted is mixed.step_cost is None and not mixed.is_foreseen
  drafting.parse(mixed.drafter)
  for speed in (2.1, 1.7):
    found = [streams, dataclasses.replace(mixed, speedup=speed)]
    best = found[0] if speed < 1.9 else found[1]
    assert tune_report.best(found, 1) == best
    assert tune_report.fixed(found, 1, with_copies=False) == streams
    kept = tune._winner(None, tune.Options(), found, 1)
    # A server drafts with streams alone.
    other = '' if best is streams else streams.drafter
    assert (kept.drafter, kept.fixed) == (best.drafter, other)
  assert 'mix' in str(tune_report.plot(found))


def test_budgets_are_in_table_and_plot_without_a_prediction():
  one = _candidate(
    16, None, None, speedup=1.7, speedup_ci95=(1.6, 1.9), sizes=(8, 16)
  )
  row = tune_report.table([one]).splitlines()[-1].split()
  assert row == ['streams', '8/16', 'deferred', '1', '1.70', '(1.60-1.90)']
  other = _candidate(8, 2.0, 1.0)
  assert 'budgets' in str(tune_report.plot([other, one]))


def test_what_is_kept_names_a_tree_of_one_size_beside_budgets(monkeypatch):
  monkeypatch.setattr(tune, 'place', lambda model, batch: batch)
  choosing = _candidate(
    16, None, None, speedup=1.7, speedup_ci95=(1.6, 1.9), sizes=(8, 16)
  )
  ran = _candidate(8, 2, 1, speedup=1.5, speedup_ci95=(1.2, 1.8))
  slow = _candidate(8, 2, 1, speedup=0.9, speedup_ci95=(0.8, 1.0))
  for found, fixed in (
    ([ran, choosing], ran.drafter),
    ([slow, choosing], 'none'),
  ):
    kept = tune._winner(None, tune.Options(), found, 1)
    assert (kept.drafter, kept.fixed) == (choosing.drafter, fixed)
    assert kept.one_size == fixed
  kept = tune._winner(None, tune.Options(), [ran], 1)
  assert (kept.fixed, kept.one_size) == ('', ran.drafter)
