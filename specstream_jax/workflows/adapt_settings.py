# SPDX-License-Identifier: Apache-2.0
"""A folder of `adapt` goes on only with what it was started with."""

from collections.abc import Mapping
import json
import os
from typing import Any

from specstream_jax.checkpoints import files
from specstream_jax.outputs import writing

FILE = 'adapt.json'


def check(folder: str, settings: Mapping[str, Any]) -> bool:
  """Writes the settings of a run, or holds them to those that are there.

  Args:
    folder: of the run; made if it is not there.
    settings: JSON types by the name that a user gives them.

  Returns:
    Whether the run goes on.

  Raises:
    ValueError: the folder is of other settings, which are named, or holds
      something else.
  """
  path = os.path.join(folder, FILE)
  if os.path.isfile(path):
    old = files.read_json(path)
    lines = [
      f'  {name} was {old.get(name)!r}, now {value!r}'
      for name, value in settings.items()
      if old.get(name) != value
    ]
    if lines:
      raise ValueError(
        f'{folder!r} holds a run of other settings:\n'
        + '\n'.join(lines)
        + '\ngive another --output_dir, or the settings of that run'
      )
    return True
  others = (
    [n for n in os.listdir(folder) if n[0] != '.']
    if os.path.isdir(folder)
    else []
  )
  if others:
    raise ValueError(
      f'--output_dir={folder} holds {", ".join(sorted(others)[:5])}, but no run '
      'of adapt; give a folder that is new or empty'
    )
  writing.write_text(path, json.dumps(settings, indent=2) + '\n')
  return False
