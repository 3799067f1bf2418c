# SPDX-License-Identifier: Apache-2.0
"""Completing many prompts: in batches, into a file, and on after a stop.

While a run lasts its answers are in FILE.journal, each on disk once it is
decoded; at the end FILE holds all rows in order and the journal is gone.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from specstream_jax import runtime
from specstream_jax.bench import journal as journal_lib
from specstream_jax.checkpoints import chat_format
from specstream_jax.config import checks
from specstream_jax.outputs import locks, progress as progress_lib, writing
from specstream_jax.workflows import generate, prompts as prompts_lib

_ANSWERS = ('completion', 'targets')


def prompt_of(row: Mapping[str, Any]) -> Any:
  """The prompt of a row, as `prompts.encode` takes it."""
  if 'messages' in row:
    return prompts_lib.Chat(row['messages'], row.get('tools'))
  text = row.get('prompt', row.get('inputs'))
  return chat_format.Text(text) if row.get('chat') is True else text


def in_batches(
  model: runtime.Model,
  prompts: Sequence[Any],
  options: generate.Options,
  batch_size: int,
  order: Sequence[int],
) -> Iterator[tuple[list[int], list[generate.Generation]]]:
  """Yields numbers of prompts and their completions, batch by batch.

  What a prompt becomes does not depend on its batch.

  Args:
    model: what completes.
    prompts: all of them, see `prompts.encode`.
    options: see `generate.Options`.
    batch_size: prompts per call; the last call repeats one to have as many.
    order: numbers of the prompts to complete.

  Raises:
    ValueError: see `generate.generate`.
  """
  checks.at_least('batch_size', batch_size, 1)
  size = min(batch_size, len(order))
  for start in range(0, len(order), batch_size):
    part = list(order[start : start + batch_size])
    full = part + part[:1] * (size - len(part))
    made = generate.generate(
      model, [prompts[i] for i in full], options, row_ids=full
    )
    yield part, made[: len(part)]


def write(
  model: runtime.Model,
  rows: Sequence[Mapping[str, Any]],
  path: str,
  options: generate.Options,
  *,
  batch_size: int = 8,
  overwrite: bool = False,
  progress: bool = True,
) -> int:
  """Completes the prompts of rows and writes the rows with their completions.

  A row keeps its fields; "completion" (one that was there becomes "reference"),
  "finish_reason" and "num_tokens" join them.

  Args:
    model: what completes.
    rows: see `prompt_rows.read`.
    path: JSONL file to write.
    options: see `generate.Options`.
    batch_size: prompts per call.
    overwrite: replace a file that is there.
    progress: show a progress bar with the time left.

  Returns:
    How many rows this run completed; a stopped run had done the others.

  Raises:
    ValueError: the file is there or cannot be written, a run with other
      settings has begun it, or a prompt cannot be completed.
  """
  if os.path.exists(path) and not overwrite:
    raise ValueError(
      f'{path} exists; pass --overwrite to replace it, or give another file'
    )
  prompts = prompts_lib.encode(
    model, [prompt_of(row) for row in rows], is_chat=options.chat
  )
  folder, name = os.path.split(os.path.abspath(path))
  with locks.hold(folder, f'generate-{name}'):
    return _complete(model, rows, prompts, path, options, batch_size, progress)


def _complete(model, rows, prompts, path, options, batch_size, progress):
  """`write`, of encoded prompts to a file that nobody else writes."""
  journal = journal_lib.Journal(
    f'{path}.journal', _header(model, rows, options), resume=True
  )
  todo = [i for i in range(len(rows)) if (i,) not in journal]
  todo.sort(key=lambda i: len(prompts[i]))  # little padding, few compilations
  num_done = len(rows) - len(todo)
  with progress_lib.bar(
    total=len(rows), initial=num_done, unit='row', show=progress
  ) as bar:
    progress_lib.say(bar, f'the decoder {progress_lib.COMPILING}')
    for part, made in in_batches(model, prompts, options, batch_size, todo):
      for i, row in zip(part, made, strict=True):
        journal.add((i,), _answer(row))
      bar.update(len(part))
      if bar.n <= num_done + len(part):  # that batch compiled
        progress_lib.forget_so_far(bar)
  lines = [_line(row, journal[(i,)]) for i, row in enumerate(rows)]
  writing.write_text(path, ''.join(lines))
  pathlib.Path(f'{path}.journal').unlink(missing_ok=True)
  return len(todo)


def _answer(row: generate.Generation) -> dict[str, Any]:
  return {
    'completion': row.text,
    'finish_reason': row.finish_reason,
    'num_tokens': len(row.tokens),
  }


def _line(row, answer) -> str:
  """A row of the file, as a line of JSON."""
  kept = {
    'reference' if name in _ANSWERS else name: value
    for name, value in row.items()
  }
  found = {name: answer[name] for name in answer if name != 'key'}
  return json.dumps(kept | found) + '\n'


def _header(model, rows, options) -> dict[str, Any]:
  """What the completions depend on; a run that goes on must agree with it."""
  digest = hashlib.sha256()
  for row in rows:
    digest.update(json.dumps(row).encode() + b'\n')
  return {
    'source': model.source,
    'base_sha256': runtime.fingerprint(model),
    'rows_sha256': digest.hexdigest(),
    'options': dataclasses.asdict(options),
  }
