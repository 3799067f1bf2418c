# SPDX-License-Identifier: Apache-2.0
"""The safetensors files of a checkpoint folder: one, or shards and their index.

Nothing here reads a pickle: it may run any program.
"""

import os
import re
from typing import Any

from absl import logging

from specstream_jax.checkpoints import fields, files, tensor_files
from specstream_jax.outputs import names as names_lib

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
_SHARD = re.compile(r'model-\d+-of-\d+\.safetensors')
_MOST = 5  # names in a message
_FILES = fields.Kind(
  'an object that gives the file of every tensor',
  lambda value: (
    isinstance(value, dict)
    and len(value) > 0
    and fields.TEXTS.fits([*value.values()])
  ),
)


def open_tensors(folder: str) -> dict[str, Any]:
  """The opened file of every tensor, by tensor name.

  Raises:
    ValueError: there are no such files, or some are missing or damaged.
  """
  if os.path.isfile(os.path.join(folder, WEIGHTS)):
    opened = tensor_files.open_file(os.path.join(folder, WEIGHTS))
    return dict.fromkeys(opened.keys(), opened)
  if not os.path.isfile(os.path.join(folder, INDEX)):
    raise ValueError(_without(folder))
  places = _places(folder)
  shards = {
    shard: tensor_files.open_file(os.path.join(folder, shard))
    for shard in sorted(set(places.values()))
  }
  held = {shard: set(opened.keys()) for shard, opened in shards.items()}
  others = [n for n in sorted(os.listdir(folder)) if _SHARD.fullmatch(n)]
  if extra := [name for name in others if name not in shards]:
    logging.warning(
      '%r: %s does not name %s; not read', folder, INDEX, _listed(extra)
    )
  absent = [name for name, shard in places.items() if name not in held[shard]]
  if absent:
    raise ValueError(
      f'{folder!r}: {INDEX} places {absent[0]!r} in {places[absent[0]]}, which '
      f'does not hold it ({len(absent)} such tensors); download the checkpoint '
      'again'
    )
  return {name: shards[shard] for name, shard in places.items()}


def paths(folder: str) -> list[str]:
  """The files that `open_tensors` opens."""
  if os.path.isfile(os.path.join(folder, WEIGHTS)):
    return [os.path.join(folder, WEIGHTS)]
  return [os.path.join(folder, name) for name in set(_places(folder).values())]


def pickled(path: str | os.PathLike) -> str:
  """What a user reads who brings pickled weights: a file, or a folder of them."""
  path = os.fspath(path)
  folder = path if os.path.isdir(path) else os.path.dirname(path) or '.'
  folder = folder.rstrip(os.sep) or folder
  return (
    f'{path!r} holds its weights as pickles, which may run any program when '
    'they are read; convert them where you trust them: python -c "from '
    'transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    f"[c.from_pretrained('{folder}').save_pretrained('{folder}-safetensors') "
    'for c in (M, T)]"'
  )


def _without(folder: str) -> str:
  """What a user reads whose folder has no weights that are read."""
  held = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  if any(name.endswith(PICKLES) for name in held):
    return pickled(folder)
  shards = [name for name in held if _SHARD.fullmatch(name)]
  if shards:
    return (
      f'{folder!r} has {_listed(shards)} but no {INDEX}, which says what is in '
      'them; download it as well'
    )
  return (
    f'{folder!r} has neither {WEIGHTS} nor {INDEX}; weights in other formats '
    'must be saved as safetensors first'
  )


def _places(folder: str) -> dict[str, str]:
  """The file of every tensor, by the index of a sharded checkpoint.

  Raises:
    ValueError: it gives no file for each tensor, one outside its folder, or
      some that are not there.
  """
  path = os.path.join(folder, INDEX)
  places = fields.get(files.read_json(path), 'weight_map', _FILES, repr(path))
  for tensor, shard in places.items():
    names_lib.check(f'the file of {tensor!r} in {path!r}', shard)
  named = sorted(set(places.values()))
  absent = [
    name for name in named if not os.path.isfile(os.path.join(folder, name))
  ]
  if absent:
    raise ValueError(
      f'{folder!r} lacks {_listed(absent)}, of the {len(named)} files that '
      f'{INDEX} names; download the rest'
    )
  return places


def _listed(names: list[str]) -> str:
  """Names in one line, cut where there are many."""
  more = f' and {len(names) - _MOST} more' if len(names) > _MOST else ''
  return ', '.join(names[:_MOST]) + more
