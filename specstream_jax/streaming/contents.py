# SPDX-License-Identifier: Apache-2.0
"""A hash of every byte of a model's weights, which is taken once per file.

`weights.fingerprint` looks at a sample in bfloat16, so that an adapter fits its
base in either dtype. What is copied from weights must belong to these very
ones: those of the same model in bfloat16 differ, and so may values between the
samples.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

from specstream_jax.checkpoints import files, weights
from specstream_jax.outputs import writing


def sha256(params: Mapping[str, Any], folder: str) -> str:
  """Of the files that weights come from, or of weights that have none.

  Args:
    params: flat base weights.
    folder: remembers hashes by path, size and time of files; made if it is not
      there. Where it cannot be written, files are hashed in every run.

  Raises:
    ValueError: a file cannot be read.
  """
  known = getattr(params, 'files', ())
  if not known:
    return weights.fingerprint(params, whole=True)
  found = [of_file(path, folder) for path in known]
  return files.sha256_of(json.dumps(found).encode())


def of_file(path: str, folder: str) -> str:
  """sha256 of a file, from `folder` if it is there; see `sha256`."""
  try:
    stat = os.stat(path)
    # A link is what it points to: a hub's cache keeps files by their hash.
    said = [os.path.realpath(path), stat.st_size, stat.st_mtime_ns]
    name = files.sha256_of(json.dumps(said).encode())[:32]
    place = os.path.join(folder, f'{name}.sha256')
    if remembered := _remembered(place):
      return remembered
    found = files.sha256(path)
  except OSError as error:
    raise ValueError(
      f'weights: {path!r} cannot be read ({error.strerror})'
    ) from error
  try:
    os.makedirs(folder, exist_ok=True)
    writing.write_text(place, found)
  except OSError:
    pass  # it is hashed again next time
  return found


def _remembered(place):
  """What a file says, '' if it is not there or holds no hash."""
  try:
    with open(place) as file:
      text = file.read(65)
  except (OSError, UnicodeDecodeError):
    return ''
  is_hash = len(text) == 64 and set(text) <= set('0123456789abcdef')
  return text if is_hash else ''
