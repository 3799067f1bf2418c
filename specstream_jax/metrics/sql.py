# SPDX-License-Identifier: Apache-2.0
"""SQL queries compared as text and as syntax trees, without running them."""

from collections.abc import Sequence
import functools
import re

_STRING = re.compile(r"""'[^']*'|"[^"]*\"""")
_SPACED = re.compile(r'\s*([(),;=<>!+*/-]+)\s*')


def normalize(query: str) -> str:
  """The query as text that only a difference of meaning should change.

  White space is one blank, none beside punctuation; a final semicolon goes;
  case is ignored outside quotes; both kinds of quotes are one.

  >>> normalize('SELECT  COUNT( * ) FROM T WHERE a = "Bo";')
  "select count(*)from t where a='Bo'"
  """
  parts, end = [], 0
  text = query.strip().rstrip(';').rstrip()
  for match in _STRING.finditer(text):
    parts.append(_plain(text[end : match.start()]))
    parts.append(f"'{match.group()[1:-1]}'")
    end = match.end()
  parts.append(_plain(text[end:]))
  return ''.join(parts).strip()


def _plain(text: str) -> str:
  return _SPACED.sub(r'\1', ' '.join(_keep_ends(text))).lower()


def _keep_ends(text: str) -> list[str]:
  """Words of `text`, an empty one where white space begins or ends it."""
  words = text.split()
  if text[:1].isspace():
    words.insert(0, '')
  if words and text[-1:].isspace():
    words.append('')
  return words


@functools.lru_cache(maxsize=65536)
def structure(query: str) -> str | None:
  """Canonical text of the query's syntax tree; None if it does not parse.

  Beyond `normalize`: table aliases are replaced by their tables, and the
  operands of AND, OR and = are in one order; joined tables stay in theirs. Two
  queries of one structure answer alike; the reverse need not hold.
  """
  import sqlglot
  from sqlglot import errors, expressions

  try:
    # Spider and WikiSQL quote values with either kind of quotes.
    text = _STRING.sub(_single_quoted, query.strip())
    tree = sqlglot.parse_one(text)
  except (errors.SqlglotError, RecursionError):
    return None
  if not isinstance(tree, expressions.Query):
    return None
  tree = tree.transform(_lower)
  for select in tree.find_all(expressions.Select):
    _resolve_aliases(select, expressions)
  return tree.transform(_sort_operands).sql(normalize_functions='upper')


def _single_quoted(match):
  """The value in single quotes; apostrophes in double ones are doubled."""
  quoted = match.group()
  if quoted[0] == "'":
    return quoted
  return "'{}'".format(quoted[1:-1].replace("'", "''"))


def _lower(node):
  from sqlglot import expressions

  if isinstance(node, expressions.Identifier):
    return expressions.to_identifier(node.this.lower())
  return node


def _resolve_aliases(select, expressions):
  """Columns name their table, not its alias, where a table is named once."""
  tables = _tables(select, expressions)
  names = [table.name for table in tables]
  for table in tables:
    if table.alias and names.count(table.name) == 1:
      columns = [
        column
        for column in select.find_all(expressions.Column)
        if column.table == table.alias and _owner(column, expressions) is select
      ]
      table.set('alias', None)
      for column in columns:
        column.set('table', expressions.to_identifier(table.name))


def _tables(select, expressions):
  """Those a SELECT names itself."""
  return [
    table
    for table in select.find_all(expressions.Table)
    if table.parent_select is select
  ]


def _owner(column, expressions):
  """The innermost SELECT around a column that has its table; else None."""
  select = column.parent_select
  while select is not None:
    names = [t.alias_or_name for t in _tables(select, expressions)]
    if column.table in names:
      return select
    select = select.parent_select
  return None


def _sort_operands(node):
  from sqlglot import expressions

  if isinstance(node, (expressions.And, expressions.Or)):
    operands = sorted(
      (_sort_operands(part.copy()) for part in node.flatten()), key=str
    )
    join = (
      expressions.and_ if type(node) is expressions.And else expressions.or_
    )
    return join(*operands, copy=False)
  if isinstance(node, expressions.EQ):
    left, right = sorted((node.left, node.right), key=str)
    return expressions.EQ(this=left.copy(), expression=right.copy())
  return node


def match(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Shares of queries equal to a reference, 0 to 100; `metrics.sql_match`.

  `sql_exact_match` after `normalize`, `sql_structure_match` by `structure`
  (or, where one of two does not parse, by text), `sql_parses`.
  """
  exact = same = parses = 0
  for references, prediction in zip(targets, predictions, strict=True):
    tree = structure(prediction)
    is_exact = normalize(prediction) in map(normalize, references)
    exact += is_exact
    parses += tree is not None
    same += is_exact or (
      tree is not None and tree in map(structure, references)
    )
  scale = 100 / max(len(predictions), 1)
  return {
    'sql_exact_match': scale * exact,
    'sql_structure_match': scale * same,
    'sql_parses': scale * parses,
  }
