# SPDX-License-Identifier: Apache-2.0
"""A task of the table, or of seqio, in place of rows.

Its own splits are kept where it has them; what it lacks is cut from the rows
that are trained on. Measured is on the task itself, by its own metrics.
"""

from specstream_jax import config
from specstream_jax.data import chat_rows, readers, registry, splits
from specstream_jax.workflows import adapt_rows

_DEV = ('dev', 'validation')


def read(
  task: str, data_dir: str | None, *, skip_bad_rows: bool = False
) -> adapt_rows.Found:
  """Rows of a task, as `adapt_rows.read` gives those of files.

  Args:
    task: name, see `registry.get`.
    data_dir: folder of its files.
    skip_bad_rows: leave bad rows out.

  Raises:
    ValueError: unknown task, no training split, a bad row, or too few rows.
  """
  spec = registry.get(task)
  own, turns, num_bad = _own_splits(spec), {}, 0
  for name, split in own.items():
    loaded = spec.load(split, data_dir, skip_bad_rows=skip_bad_rows)
    turns[name] = _turns(spec, loaded.examples)
    num_bad += loaded.num_skipped
  for name in ('dev', 'test'):
    if name not in turns:
      cut = splits.split([[turn] for turn in turns['train']])
      turns |= {'train': cut.turns['train'], name: cut.turns[name]}
  turns['dev'] = turns['dev'][: splits.MOST]
  place = f'@{data_dir}' if data_dir else ''
  return adapt_rows.Found(
    splits.Splits(turns, sum(map(len, turns.values())), 0),
    num_rows=sum(map(len, turns.values())),
    num_bad=num_bad,
    unused=(),
    sources={
      name: f'{task}/{split}{place}'
      for name, split in own.items()
      if name != 'train'
    },
  )


def _own_splits(spec: registry.TaskSpec) -> dict[str, str]:
  """Which split of the task is which of ours; those that it has."""
  cfg = config.TaskConfig()
  first = lambda *names: next((n for n in names if n in spec.splits), '')
  test = first(cfg.test_split, 'test', *_DEV)
  dev = first(*(n for n in (cfg.dev_split, *_DEV) if n and n != test))
  # Loading says which splits there are, if this one is not there.
  found = {'train': cfg.train_split, 'dev': dev, 'test': test}
  return {name: split for name, split in found.items() if split}


def _turns(spec, examples) -> list[chat_rows.Turn]:
  """One example for each reference."""
  return [
    chat_rows.Turn(
      example.inputs,
      spec.template.targets(reference),
      is_cut=isinstance(reference, readers.CutAnswer),
    )
    for example in examples
    for reference in example.references
  ]
