# SPDX-License-Identifier: Apache-2.0
"""Adapters that come with the package, by name."""

import pathlib

from specstream_jax.outputs import names

FOLDER = pathlib.Path(__file__).parents[1] / 'adapters'


def adapter_folder(name: str) -> str:
  """`name` if it is a folder, else the adapter of that name that ships.

  Raises:
    ValueError: it is neither.
  """
  shipped = FOLDER / name
  if pathlib.Path(name).is_dir():
    return name
  if names.is_plain(name) and shipped.is_dir():
    return str(shipped)
  raise ValueError(
    f'adapter {name!r} is neither a folder nor one that ships; those are '
    f'{shipped_adapters()}'
  )


def shipped_adapters() -> list[str]:
  """Names of the adapters that come with the package."""
  if not FOLDER.is_dir():
    return []
  return sorted(path.name for path in FOLDER.iterdir())
