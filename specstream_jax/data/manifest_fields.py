# SPDX-License-Identifier: Apache-2.0
"""What the manifest of token records must hold."""

from collections.abc import Mapping
from typing import Any

from specstream_jax.checkpoints import fields
from specstream_jax.outputs import names

_REQUIRED = ('num_examples', 'files', 'lengths')


def check(manifest: Mapping[str, Any], path: str) -> None:
  """Raises ValueError if a field is missing or of another kind.

  Args:
    manifest: its contents.
    path: of the file, for the message.
  """
  for name, kind in _KINDS.items():
    if name in _REQUIRED or manifest.get(name) is not None:
      fields.get(manifest, name, kind, path)


def _are_names(value: Any) -> bool:
  return (
    fields.TEXTS.fits(value) and bool(value) and all(map(names.is_plain, value))
  )


def _are_lengths(value: Any) -> bool:
  """Whether it is what `records.Lengths.summary` writes."""
  if not isinstance(value, dict):
    return False
  parts = [value.get(name) for name in ('inputs', 'targets', 'total')]
  return all(
    isinstance(part, dict)
    and fields.COUNT.fits(part.get('max'))
    and fields.POSITIVE.fits(part.get('mean', 1.0))
    for part in parts
  )


# By name, where the manifest holds it.
_KINDS = {
  'task': fields.TEXT,
  'split': fields.TEXT,
  'tokenizer_sha256': fields.TEXT,
  'eos_id': fields.COUNT,
  'bos_id': fields.COUNT,
  'max_token_id': fields.COUNT,
  'num_examples': fields.SIZE,
  'files': fields.Kind(
    'a list of one name at least, of files that lie beside it', _are_names
  ),
  'lengths': fields.Kind(
    'statistics of inputs, targets and total, with a max each', _are_lengths
  ),
}
