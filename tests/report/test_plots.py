# SPDX-License-Identifier: Apache-2.0
"""Plots: well-formed SVG with the labels, points and colours expected."""

import json
import re
from xml.etree import ElementTree

import evaluation_samples
import experiments
import pytest

from specstream_jax.bench import results
from specstream_jax.report import bench_plots, plots, svg


def _texts(picture):
  """All text of a picture, which must be well-formed and self-contained."""
  root = ElementTree.fromstring(picture)
  assert root.tag.endswith('svg')
  assert root.get('role') == 'img' and root.get('aria-label')
  assert svg.INK not in picture
  targets = re.findall(r'(?:url\(|href=")([^")]+)', picture)
  assert all(target.startswith(('#', 'data:')) for target in targets)
  return [''.join(node.itertext()) for node in root.iter() if _is_text(node)]


def _is_text(node):
  return node.tag.endswith('}text')


def _metrics_file(path, **extra):
  lines = [
    {'step': step, 'split': split, 'loss/main': 2.0, 'loss/stream_1': 3.0}
    | {'loss/pruning': 20.0, 'top1/main': 0.5, 'top4/stream_1': 0.25}
    | {'tokens_per_call': 2.0 + step / 10}
    for step in (5, 10, 10)
    for split in ('train', 'eval')
  ]
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  return path


def test_acceptance_by_depth():
  texts = _texts(plots.acceptance_by_depth({'a': [0.9, 0.5, 0.2], 'b': [0.7]}))
  assert {'draft depth (tokens)', 'calls that accept it (%)'} <= set(texts)
  assert {'a', 'b', '1', '2', '3'} <= set(texts)


def test_acceptance_given_the_prefix():
  # 100 calls; 80 accept a draft, 40 of those two, 10 of those three, none four,
  # though there was a fifth to verify.
  counts = [20, 40, 30, 10, 0, 0]
  assert plots.given_prefix(counts) == [0.8, 0.5, 0.25]
  # Of fewer than ten calls no share is taken.
  assert plots.given_prefix([90, 0, 0, 10]) == [0.1, 1, 1]
  assert plots.given_prefix([91, 0, 0, 9]) == [0.09]
  assert plots.given_prefix([3]) == [] == plots.given_prefix([0, 0])
  texts = _texts(plots.acceptance_given_prefix({'a': counts, 'b': [1, 20]}))
  assert {'draft depth (tokens)', 'a', 'b', '1', '2', '3'} <= set(texts)


def test_text_takes_the_colour_of_the_page():
  picture = plots.tokens_per_call({'a': [1]})
  assert 'fill: currentColor' in picture


def test_tokens_per_call():
  texts = _texts(plots.tokens_per_call({'a': [2, 3, 5]}))
  assert {'tokens per call', 'calls (%)', '1', '2', '3'} <= set(texts)
  assert 'a' not in texts  # one entry needs no legend


def test_time_per_call():
  texts = _texts(plots.time_per_call({'x': (20.0, 25.5), 'y': (7.0, 9.0)}))
  assert {'time per call (ms)', 'autoregressive', 'speculative'} <= set(texts)
  assert {'x', 'y', '20.00', '25.50', '7.00', '9.00'} <= set(texts)


def test_forward_cost():
  texts = _texts(plots.forward_cost({'float32': [(16, 52.5), (1, 22.6)]}))
  assert {'tokens in one forward pass', 'time (ms)', '1', '16'} <= set(texts)


def test_training_curves(tmp_path):
  path = _metrics_file(tmp_path / 'metrics.jsonl')
  texts = _texts(plots.training_curves(path))
  assert {'loss (nats per token)', 'top-1 accuracy (%)'} <= set(texts)
  assert {'top-4 accuracy (%)', 'expected tokens per call'} <= set(texts)
  assert {'main', 'stream 1'} <= set(texts)
  assert not any('pruning' in text for text in texts)
  assert 'training tokens per second' not in texts


def test_a_line_cut_short_is_left_out_and_a_broken_one_is_named(tmp_path):
  path = _metrics_file(tmp_path / 'metrics.jsonl')
  with path.open('a') as file:
    file.write('{"step": 15, "lo')
  assert len(plots.read_metrics(path)) == 6
  with path.open('a') as file:
    file.write('\n{"step": 20}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl line 7 is not JSON'):
    plots.read_metrics(path)


def test_metrics_that_are_missing_or_empty(tmp_path):
  with pytest.raises(ValueError, match=r'cannot read metrics from .*none'):
    plots.training_curves(tmp_path / 'none')
  (tmp_path / 'empty').write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match='empty has no metrics to plot'):
    plots.training_curves(tmp_path / 'empty')


def test_draft_tree_shows_tokens_and_path():
  tokens = [' The', ' <b>', ' $5$', '\n', ' a&b']
  picture = plots.draft_tree(tokens, [0, 0, 0, 1, 1], [1, 4])
  assert _texts(picture) == ['·The', '·<b>', '·$5$', '⏎', '·a&b']
  # Three accepted boxes, the root included, and two accepted edges.
  assert picture.count('fill: #1f5f99') == 3
  assert picture.count('stroke-width: 2.4') == 2
  assert 'aria-label="Draft tree; accepted: ·&lt;b&gt; | ·a&amp;b"' in picture


def test_draft_tree_of_a_root_alone_and_of_long_tokens():
  assert _texts(plots.draft_tree(['x' * 40], [0], [])) == ['x' * 13 + '…']


@pytest.mark.parametrize(
  'tokens, parents, path, message',
  [
    (['a', 'b'], [0], [], '2 tokens and 1 parents'),
    ([], [], [], '0 tokens'),
    (['a', 'b', 'c'], [0, 2, 0], [], r'parents\[1\] is 2; accepted: 0 to 0'),
    (['a', 'b'], [0, 0], [2], 'path has node 2; accepted: nodes 0 to 1'),
    (['a', 'b', 'c'], [0, 0, 1], [2], 'path has node 2'),
  ],
)
def test_bad_trees(tokens, parents, path, message):
  with pytest.raises(ValueError, match=message):
    plots.draft_tree(tokens, parents, path)


def test_pictures_repeat_and_keep_their_ids_apart():
  first, again, other = (
    plots.tokens_per_call({'a': counts}) for counts in ([1], [1], [1, 2])
  )
  assert first == again
  ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, other)]
  assert not ids[0] & ids[1]
  assert first._repr_svg_() == first


def test_a_notebook_keeps_a_picture_once():
  pretty = pytest.importorskip('IPython.lib.pretty')
  picture = plots.tokens_per_call({'a': [1]})
  assert pretty.pretty(picture) == '<picture: Tokens per call>'


def test_calls_against_nodes():
  runs = [
    evaluation_samples.run(task=task, tree={'size': size})
    for task, size in (('a/test', 16), ('a/test', 4), ('b/test', 64))
  ]
  plain = evaluation_samples.run(task='c/test', tree={})
  texts = _texts(bench_plots.calls_against_nodes([*runs, plain]))
  assert {'a/test', 'b/test', '4', '16', '64'} <= set(texts)
  assert 'c/test' not in texts


def test_calls_against_the_numbers_in_names():
  runs = [
    evaluation_samples.run(name=name)
    for name in ('own 1600', 'own 100', 'references 400')
  ]
  texts = _texts(bench_plots.calls_against_numbers(runs, 'answers'))
  assert {'own', 'references', '100', '400', '1600', 'answers'} <= set(texts)
  with pytest.raises(ValueError, match=r"'own' should hold one number"):
    bench_plots.calls_against_numbers(
      [evaluation_samples.run(name='own')], 'answers'
    )


@pytest.mark.slow
def test_a_picture_of_results_files(tmp_path):
  runs = [evaluation_samples.run(name=name) for name in ('one', 'two')]
  document = results.document(runs, command='bench', source={'base': 'x'})
  results.write(tmp_path, document)
  words = (
    '--results',
    tmp_path / 'results.json',
    '--output',
    tmp_path / 'a.svg',
  )
  for kind in ('calls_against_nodes', 'acceptance_given_prefix'):
    made = experiments.run('plot.py', *words, '--kind', kind, '--drafters=two')
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith('1 rows')
    _texts((tmp_path / 'a.svg').read_text())
  made = experiments.run('plot.py', *words, '--drafters=three')
  assert made.returncode == 1 and "no row is called ['three']" in made.stderr


@pytest.mark.slow
@pytest.mark.parametrize('label', ['streams', 'streams:num_nodes=8,' * 4])
@pytest.mark.parametrize('count', [1, 13])
@pytest.mark.filterwarnings('error')
def test_rivals_side_by_side_leave_room_for_long_names(label, count):
  runs = [
    evaluation_samples.run(
      name=label,
      temperature=0.1 * i,
      batch=i + 1,
      tree={'size': 4 + i},
      by_category={f'category {c}': 2.0 + c for c in range(count)},
    )
    for i in range(count)
  ]
  labelled = {f'{run.label} {i}': run for i, run in enumerate(runs)}
  of = lambda name: {k: getattr(r, name) for k, r in labelled.items()}
  plots.acceptance_by_depth(of('per_depth_acceptance'))
  plots.acceptance_given_prefix(of('accept_length_histogram'))
  plots.tokens_per_call(of('accept_length_histogram'))
  plots.time_per_call(dict.fromkeys(labelled, (1.0, 2.0)))
  for draw in (
    bench_plots.speedup_and_calls,
    bench_plots.tokens_per_call_by_category,
    bench_plots.cost_against_nodes,
    bench_plots.predicted_against_measured,
  ):
    assert any(
      bench_plots.names(runs)[-1] in text for text in _texts(draw(runs))
    )
