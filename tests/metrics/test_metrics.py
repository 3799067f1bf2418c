# SPDX-License-Identifier: Apache-2.0
"""Metrics against values worked out by hand."""

import inspect

import pytest

from specstream_jax.metrics import scores as scores_lib


def test_rouge1_by_hand():
  # 3 common words of 4 and 6: precision 3/4, recall 3/6, F1 0.6.
  scores = scores_lib.rouge([['a b c x y z']], ['a b c d'])
  assert scores['rouge1'] == pytest.approx(60.0)
  assert set(scores) == {'rouge1', 'rougeLsum'}


def test_rouge_takes_the_best_reference_of_each_metric():
  # Against 'c b a': ROUGE-1 1, longest common subsequence 1 of 3, F1 1/3.
  # Against 'a b q': ROUGE-1 2/3, longest common subsequence 2 of 3.
  scores = scores_lib.rouge([['c b a', 'a b q']], ['a b c'])
  assert scores['rouge1'] == pytest.approx(100.0)
  assert scores['rougeLsum'] == pytest.approx(200 / 3)


def test_rouge_is_the_mean_over_examples_with_unequal_references():
  scores = scores_lib.rouge([['a b'], ['x', 'a b', 'y']], ['a b', 'c d'])
  assert scores['rouge1'] == pytest.approx(50.0)


@pytest.mark.parametrize('separator', ['. ', '.\n', '?  '])
def test_rouge_lsum_compares_sentences(separator):
  # Swapped sentences cost nothing sentence by sentence; as one sentence the
  # longest common subsequence would be 2 of 4.
  target, prediction = f'a b{separator}c d.', f'c d{separator}a b.'
  scores = scores_lib.rouge([[target]], [prediction])
  assert scores['rougeLsum'] == pytest.approx(100.0)


def test_bleu_of_a_copy_is_100():
  text = 'the cat sat on the mat'
  assert scores_lib.bleu([[text]], [text])['bleu'] == pytest.approx(100.0)


def test_bleu_with_unequal_numbers_of_references():
  texts = ['one two three four five', 'six seven eight nine ten']
  targets = [[texts[0]], ['something else altogether', texts[1], 'third']]
  assert scores_lib.bleu(targets, texts)['bleu'] == pytest.approx(100.0)


def test_bleu_by_hand():
  # Precisions 4/5, 3/4, 2/3, 1/2; equal lengths, so no brevity penalty.
  expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  scores = scores_lib.bleu([['a b c d e']], ['a b c d x'])
  assert scores['bleu'] == pytest.approx(expected)


def test_exact_match_by_hand():
  targets = [['SELECT a'], ['x', 'b  c'], ['d'], ['E']]
  predictions = [' SELECT  a\n', 'b c', 'D', 'f']
  assert scores_lib.exact_match(targets, predictions) == {'exact_match': 50.0}


def test_compute_joins_metrics():
  scores = scores_lib.compute(
    ['exact_match', 'bleu'], [['a b c d']], ['a b c d']
  )
  assert scores == {'exact_match': 100.0, 'bleu': pytest.approx(100.0)}


def test_seqio_adapter_takes_strings_and_keeps_its_signature():
  metric = scores_lib.for_seqio(scores_lib.exact_match)
  assert list(inspect.signature(metric).parameters) == [
    'targets',
    'predictions',
  ]
  assert metric.__name__ == 'exact_match'
  assert metric(['a', ['x', 'b']], ['a', 'b']) == {'exact_match': 100.0}


@pytest.mark.parametrize('metric', scores_lib.METRICS.values())
@pytest.mark.parametrize(
  'targets, predictions, message',
  [
    ([['a']], ['a', 'b'], '2 predictions and 1 lists of references'),
    ([], [], '0 predictions'),
    ([['a'], []], ['a', 'b'], r'targets\[1\] is \[\]'),
    (['a'], ['a'], r"targets\[0\] is 'a'"),
  ],
)
def test_bad_targets(metric, targets, predictions, message):
  with pytest.raises(ValueError, match=message):
    metric(targets, predictions)


def test_unknown_metric():
  with pytest.raises(ValueError, match="metric is 'meteor'; accepted: 'rouge'"):
    scores_lib.compute(['meteor'], [['a']], ['a'])
