# SPDX-License-Identifier: Apache-2.0
"""Task metrics against one or more references: ROUGE, BLEU, exact match.

Every metric is `metric(targets, predictions)`, with `targets[i]` the references
of `predictions[i]`, and returns scores from 0 to 100. Their number of
references may differ from example to example.
"""

from collections.abc import Callable, Sequence
import functools
import re

from specstream_jax.metrics import sql

Metric = Callable[[Sequence[Sequence[str]], Sequence[str]], dict[str, float]]

_ROUGE_TYPES = ('rouge1', 'rougeLsum')
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+(?=\S)')


def rouge(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean F1 of ROUGE-1 and ROUGE-Lsum, each against its own best reference.

  rouge-score takes a newline as the end of a sentence, which only ROUGE-Lsum
  looks at. Answers seldom carry newlines, so a line is also split after '.',
  '!' or '?' followed by white space. No stemming, as is rouge-score's default.

  Args:
    targets: references of each example, at least one.
    predictions: one text per example.

  Returns:
    `rouge1` and `rougeLsum`, 0 to 100.

  Raises:
    ValueError: lengths differ, or an example has no reference.
  """
  from rouge_score import rouge_scorer  # costs a second: imports nltk

  _check(targets, predictions)
  scorer = rouge_scorer.RougeScorer(_ROUGE_TYPES)
  totals = dict.fromkeys(_ROUGE_TYPES, 0.0)
  for references, prediction in zip(targets, predictions, strict=True):
    best = scorer.score_multi(
      [_one_sentence_a_line(text) for text in references],
      _one_sentence_a_line(prediction),
    )
    for name in _ROUGE_TYPES:
      totals[name] += best[name].fmeasure
  return {name: 100 * x / len(predictions) for name, x in totals.items()}


def bleu(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU of sacrebleu (13a tokens, exponential smoothing).

  Args:
    targets: references of each example, at least one.
    predictions: one text per example.

  Returns:
    `bleu`, 0 to 100.

  Raises:
    ValueError: lengths differ, or an example has no reference.
  """
  import sacrebleu

  _check(targets, predictions)
  width = max(map(len, targets))
  padded = [[*refs, *[None] * (width - len(refs))] for refs in targets]
  streams = list(map(list, zip(*padded, strict=True)))
  score = sacrebleu.corpus_bleu(list(predictions), streams)
  return {'bleu': float(score.score)}


def exact_match(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of predictions equal to a reference, white space runs being one.

  Case and punctuation count: `SELECT a` is not `select a`.

  Args:
    targets: references of each example, at least one.
    predictions: one text per example.

  Returns:
    `exact_match`, 0 to 100.

  Raises:
    ValueError: lengths differ, or an example has no reference.
  """
  _check(targets, predictions)
  normal = lambda text: ' '.join(text.split())
  hits = sum(
    normal(prediction) in map(normal, references)
    for references, prediction in zip(targets, predictions, strict=True)
  )
  return {'exact_match': 100 * hits / len(predictions)}


def sql_match(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Shares of SQL queries equal to a reference, see `sql.match`.

  Args:
    targets: references of each example, at least one.
    predictions: one query per example.

  Returns:
    `sql_exact_match`, `sql_structure_match` and `sql_parses`, 0 to 100.

  Raises:
    ValueError: lengths differ, or an example has no reference.
  """
  _check(targets, predictions)
  return sql.match(targets, predictions)


METRICS: dict[str, Metric] = {
  'rouge': rouge,
  'bleu': bleu,
  'exact_match': exact_match,
  'sql_match': sql_match,
}


def compute(
  names: Sequence[str],
  targets: Sequence[Sequence[str]],
  predictions: Sequence[str],
) -> dict[str, float]:
  """Scores of several metrics, by the names in `METRICS`.

  Raises:
    ValueError: a name is unknown.
  """
  scores = {}
  for name in names:
    if name not in METRICS:
      raise ValueError(
        f'metric is {name!r}; accepted: {", ".join(map(repr, METRICS))}'
      )
    scores |= METRICS[name](targets, predictions)
  return scores


def for_seqio(metric: Metric) -> Callable[..., dict[str, float]]:
  """The metric as a seqio `metric_fn`, whose targets may be plain strings."""

  @functools.wraps(metric)
  def metric_fn(targets, predictions):
    listed = [[t] if isinstance(t, str) else list(t) for t in targets]
    return metric(listed, predictions)

  return metric_fn


def _one_sentence_a_line(text: str) -> str:
  return _SENTENCE_END.sub('\n', text.strip())


def _check(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> None:
  if len(targets) != len(predictions) or not predictions:
    raise ValueError(
      f'there are {len(predictions)} predictions and {len(targets)} lists of '
      'references; a metric needs one list for each, and at least one'
    )
  for i, references in enumerate(targets):
    if isinstance(references, str) or not references:
      raise ValueError(
        f'targets[{i}] is {references!r}; accepted: a list of at least one '
        'reference, such as ["text"]'
      )
