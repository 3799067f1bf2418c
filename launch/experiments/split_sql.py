# SPDX-License-Identifier: Apache-2.0
"""Parts sql-create-context rows so that no table is on two sides.

Rows whose CREATE TABLE texts share a table name belong together. Whole groups,
in an order that depends on their names alone, go to dev.jsonl until it has
`--dev` rows, then to test.jsonl, the rest and the largest to train.jsonl.
"""

from collections.abc import Sequence
import gzip
import hashlib
import json
import os
import re

from absl import flags
import script

FLAGS = flags.FLAGS
_TABLE = re.compile(r'CREATE\s+TABLE\s+(\w+)', re.IGNORECASE)


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string(
    'rows', None, 'JSONL or .jsonl.gz of question, context, answer.',
    required=True,
  )  # fmt: skip
  flags.DEFINE_integer('dev', 150, 'Rows of dev.jsonl, about.', lower_bound=1)
  flags.DEFINE_integer('test', 300, 'Rows of test.jsonl, about.', lower_bound=1)
  flags.DEFINE_string('output_dir', None, 'Folder to write.', required=True)


def groups(contexts: Sequence[str]) -> list[list[int]]:
  """Indices of the texts, those that share a table name together.

  >>> groups(['CREATE TABLE a (x)', 'CREATE TABLE b (x)', 'CREATE TABLE a (y)'])
  [[0, 2], [1]]

  Raises:
    ValueError: a text creates no table.
  """
  leader: dict[str, str] = {}

  def find(name: str) -> str:
    while leader.setdefault(name, name) != name:
      name = leader[name]
    return name

  names = []
  for i, text in enumerate(contexts):
    tables = [name.lower() for name in _TABLE.findall(text)]
    if not tables:
      raise ValueError(f'row {i + 1} has no CREATE TABLE in its context')
    names.append(tables[0])
    for name in tables:
      leader[find(name)] = find(tables[0])
  found: dict[str, list[int]] = {}
  for i, name in enumerate(names):
    found.setdefault(find(name), []).append(i)
  return list(found.values())


def split(contexts: Sequence[str], dev: int, test: int) -> dict[str, list[int]]:
  """Indices of train, dev and test; see the module."""
  names = lambda group: ''.join(sorted(contexts[i] for i in group))
  order = lambda group: hashlib.sha256(names(group).encode()).hexdigest()
  parts: dict[str, list[int]] = {'train': [], 'dev': [], 'test': []}
  found = groups(contexts)
  largest = max(found, key=len)
  for group in sorted(found, key=order):
    wanted = [
      name
      for name, most in (('dev', dev), ('test', test))
      if len(parts[name]) < most and group is not largest
    ]
    parts[wanted[0] if wanted else 'train'] += group
  return {name: sorted(rows) for name, rows in parts.items()}


def main() -> None:
  """Reads the rows and writes the three files."""
  opener = gzip.open if FLAGS.rows.endswith('.gz') else open
  with opener(FLAGS.rows, 'rt', encoding='utf-8') as file:
    lines = [line for line in file if line.strip()]
  contexts = [str(json.loads(line).get('context')) for line in lines]
  os.makedirs(FLAGS.output_dir, exist_ok=True)
  for name, rows in split(contexts, FLAGS.dev, FLAGS.test).items():
    path = os.path.join(FLAGS.output_dir, f'{name}.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
      file.writelines(lines[i].rstrip('\n') + '\n' for i in rows)
    print(f'{path}: {len(rows)} rows')


if __name__ == '__main__':
  define_flags()
  script.run(main)
