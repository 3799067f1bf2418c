# SPDX-License-Identifier: Apache-2.0
"""SQL queries that mean the same, and some that do not."""

import pytest

from specstream_jax.metrics import scores, sql

SAME_TEXT = [
  ('SELECT a FROM t', 'select  A from T ;'),
  ('SELECT COUNT(*) FROM t WHERE a = "Bo x"', "SELECT COUNT( * ) FROM t WHERE a='Bo x'"),
  ('SELECT a FROM t WHERE b >= 3', 'SELECT a FROM t WHERE b>=3'),
]  # fmt: skip
SAME_STRUCTURE = [
  ('SELECT a FROM t WHERE b = 1 AND c = 2', 'SELECT a FROM t WHERE c = 2 AND b = 1'),
  ('SELECT a FROM t WHERE b = 1 OR (c = 2 AND d = 3)', 'SELECT a FROM t WHERE (d = 3 AND c = 2) OR b = 1'),
  ('SELECT T1.a FROM x AS T1 JOIN y AS T2 ON T1.k = T2.k', 'SELECT x.a FROM x JOIN y ON y.k = x.k'),
  ('SELECT a FROM t WHERE b = "x"', "SELECT a FROM t WHERE 'x' = b"),
  ('SELECT a FROM t WHERE b = "it\'s" AND c = 1', 'SELECT a FROM t WHERE c = 1 AND b = "it\'s"'),
  ('SELECT T1.a FROM x AS T1 WHERE T1.b IN (SELECT T1.b FROM y AS T1)', 'SELECT x.a FROM x WHERE x.b IN (SELECT y.b FROM y)'),
  ('SELECT T1.a FROM x AS T1 WHERE T1.b IN (SELECT c FROM y WHERE d = T1.e)', 'SELECT x.a FROM x WHERE x.b IN (SELECT c FROM y WHERE d = x.e)'),
]  # fmt: skip
DIFFERENT = [
  ('SELECT a FROM t', 'SELECT b FROM t'),
  ('SELECT a FROM t WHERE b = "Bo"', 'SELECT a FROM t WHERE b = "bo"'),
  ('SELECT a FROM t WHERE b > 1', 'SELECT a FROM t WHERE 1 > b'),
  ('SELECT a, b FROM t', 'SELECT b, a FROM t'),
  ('SELECT a FROM t WHERE b = 1 AND c = 2', 'SELECT a FROM t WHERE b = 1 OR c = 2'),
  ('SELECT MAX(a) FROM t', 'SELECT MIN(a) FROM t'),
  ('SELECT T1.a FROM x AS T1 JOIN x AS T2 ON T1.k = T2.p', 'SELECT T2.a FROM x AS T1 JOIN x AS T2 ON T1.k = T2.p'),
  ('SELECT a FROM t ORDER BY a', 'SELECT a FROM t ORDER BY a DESC'),
  ('SELECT T1.a FROM x AS T1 WHERE T1.b IN (SELECT T1.b FROM y AS T1)', 'SELECT x.a FROM x WHERE x.b IN (SELECT x.b FROM y)'),
]  # fmt: skip


@pytest.mark.parametrize(('left', 'right'), SAME_TEXT)
def test_same_text(left, right):
  assert sql.normalize(left) == sql.normalize(right)
  assert sql.structure(left) == sql.structure(right) is not None


@pytest.mark.parametrize(('left', 'right'), SAME_STRUCTURE)
def test_same_structure(left, right):
  assert sql.normalize(left) != sql.normalize(right)
  assert sql.structure(left) == sql.structure(right) is not None


@pytest.mark.parametrize(('left', 'right'), DIFFERENT)
def test_different(left, right):
  assert sql.normalize(left) != sql.normalize(right)
  assert sql.structure(left) != sql.structure(right)


@pytest.mark.parametrize(
  'text', ['', 'SELECT FROM WHERE', 'no query', 'a', '(']
)
def test_no_query(text):
  assert sql.structure(text) is None


def test_scores():
  targets = [['SELECT a FROM t WHERE b = 1 AND c = 2'], ['SELECT a FROM t']] * 2
  predictions = [
    'SELECT a FROM t WHERE c = 2 AND b = 1',
    'select a from t;',
    'SELECT a FROM',
    'SELECT b FROM t',
  ]
  assert scores.compute(['sql_match'], targets, predictions) == {
    'sql_exact_match': 25.0,
    'sql_structure_match': 50.0,
    'sql_parses': 75.0,
  }
