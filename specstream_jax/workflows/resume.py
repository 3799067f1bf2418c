# SPDX-License-Identifier: Apache-2.0
"""A run goes on only with what it was started with."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from typing import Any

import gin

from specstream_jax import processes
from specstream_jax.checkpoints import files, loading
from specstream_jax.data import mixtures
from specstream_jax.outputs import locks

_RECIPE, _FACTS = 'recipe.json', 'run'
# May change between a run and its continuation.
_FREE = (
  'train.num_steps',
  'train.log_every',
  'train.eval_every',
  'train.eval_batches',
  'train.save_every',
  'train.keep_checkpoints',
  'train.patience',
  'data.eval_batch_size',
  'tree.',
)


def facts(
  loaded: loading.LoadedModel, data_dir: str, **others: Any
) -> dict[str, Any]:
  """What a run depends on beside its recipe: base weights, dtype, records."""
  return {
    'base': str(loaded.source),
    'base_fingerprint': loaded.fingerprint,
    'dtype': loaded.config.dtype,
    'records': [
      {
        name: manifest.get(name)
        for name in ('task', 'split', 'num_examples', 'lengths')
      }
      for manifest in mixtures.manifests(data_dir)
    ],
    'rates': [part.rate for part in mixtures.parse(data_dir)],
  } | others


@contextlib.contextmanager
def run(output_dir: str, *args: Any, **others: Any) -> Iterator[None]:
  """`start`, and holds the folder; the processes of one job share it.

  Raises:
    ValueError: see `start`, or another job works in the folder.
  """
  with contextlib.ExitStack() as stack:
    problem = ''
    if processes.is_main():
      try:
        stack.enter_context(locks.hold(output_dir, 'train'))
      except ValueError as error:
        problem = str(error)  # which the other processes must hear, too
    problem = processes.gather(problem)[0]
    if problem:
      raise ValueError(problem)
    start(output_dir, *args, **others)
    yield


def start(
  output_dir: str,
  recipe: Any,
  loaded: loading.LoadedModel,
  data_dir: str,
  **others: Any,
) -> None:
  """Writes recipe.json and operative_config.gin.

  Args:
    output_dir: of the run; made if it is not there.
    recipe: settings, with `to_json`.
    loaded: the base.
    data_dir: token records.
    **others: what else the run depends on.

  Raises:
    ValueError: the folder holds checkpoints of a run with other settings, or
      of more steps than are asked for; lists the differences.
  """
  run = facts(loaded, data_dir, **others)
  wanted = json.loads(json.dumps(recipe.to_json() | {_FACTS: run}))
  path = os.path.join(output_dir, _RECIPE)
  done = _last_step(os.path.join(output_dir, 'checkpoints'))
  if done and os.path.isfile(path):
    _check(output_dir, done, files.read_json(path), wanted)
  processes.check_shared(output_dir)
  if not processes.is_main():
    return
  files.write_all(
    output_dir,
    {
      _RECIPE: lambda path: files.write_json(path, wanted),
      'operative_config.gin': lambda path: files.write_text(
        path, gin.operative_config_str()
      ),
    },
  )


def _last_step(folder: str) -> int:
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return max((int(name) for name in names if name.isdecimal()), default=0)


def _check(output_dir, done, old, wanted):
  old.setdefault(_FACTS, wanted[_FACTS])  # of a version that kept none
  old, new = _flat(old), _flat(wanted)
  lines = [
    f'{name} was {old[name]!r}, now {new[name]!r}'
    for name in sorted(old.keys() & new.keys())  # versions differ in fields
    if old[name] != new[name]
    and not name.startswith(_FREE)
    and f'{_FACTS}.base' != name  # a name; the fingerprint decides
  ]
  steps = new['train.num_steps']
  if steps < done:
    lines.append(f'{done} steps are done, train.num_steps is {steps}')
  if lines:
    raise ValueError(
      f'{output_dir!r} holds a run of other settings:\n  '
      + '\n  '.join(lines)
      + '\ngive another --output_dir, or the settings of that run'
    )


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  found = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      found |= _flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found
