# SPDX-License-Identifier: Apache-2.0
"""Rows as train, dev and test, which share no prompt.

Where a row goes depends on what it holds, not on where it stands: prompts are
ordered by their hash, and the first of them are held out. The same rows give
the same splits in any order, and rows with one prompt stay together.
"""

from collections.abc import Sequence
import hashlib
from typing import NamedTuple

from specstream_jax.data import chat_rows

NAMES = ('train', 'dev', 'test')
_SHARE = 10  # one of so many prompts goes to dev, one to test
MOST = 200  # prompts of dev, and of test
_FEWEST = 8  # prompts that can be split at all


class Splits(NamedTuple):
  """Examples by split.

  Attributes:
    turns: split -> examples.
    num_prompts: distinct first prompts of rows.
    num_duplicates: rows that another one equals, which are left out.
  """

  turns: dict[str, list[chat_rows.Turn]]
  num_prompts: int
  num_duplicates: int


def split(rows: Sequence[Sequence[chat_rows.Turn]]) -> Splits:
  """Splits rows, each of one example or, of a chat, one per answer.

  Raises:
    ValueError: too few prompts that differ.
  """
  groups: dict[str, dict[str, Sequence[chat_rows.Turn]]] = {}
  for turns in rows:
    key = _hash(turns[0].prompt)
    whole = '\0'.join(f'{turn.prompt}\0{turn.answer}' for turn in turns)
    groups.setdefault(key, {}).setdefault(_hash(whole), turns)
  count = len(groups)
  if count < _FEWEST:
    raise ValueError(
      f'there are {count} rows with a prompt of their own; at least {_FEWEST} '
      'are needed to hold some out, and a few hundred to learn from'
    )
  held_out = min(max(count // _SHARE, 1), MOST)
  order = sorted(groups)
  places = {
    'test': order[:held_out],
    'dev': order[held_out : 2 * held_out],
    'train': order[2 * held_out :],
  }
  turns = {
    name: [
      turn
      for key in places[name]
      for whole in sorted(groups[key])
      for turn in groups[key][whole]
    ]
    for name in NAMES
  }
  kept = sum(map(len, groups.values()))
  return Splits(turns, count, len(rows) - kept)


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
