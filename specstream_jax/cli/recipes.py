# SPDX-License-Identifier: Apache-2.0
"""The recipes that come with the package: gin files, by name.

In a checkout `specstream_jax/recipes` is a link to `configs`, in an installed
package a copy of it.
"""

from collections.abc import Sequence
import difflib
import pathlib

_FOLDER = pathlib.Path(__file__).parents[1] / 'recipes'


def names() -> list[str]:
  """Names of all recipes, such as `e2e_smollm2` and `tasks/e2e`."""
  found = (path.relative_to(_FOLDER) for path in _FOLDER.rglob('*.gin'))
  return sorted(path.with_suffix('').as_posix() for path in found)


def paths(wanted: Sequence[str]) -> list[str]:
  """The gin files of recipes, in the order of `wanted`.

  Raises:
    ValueError: there is no such recipe; names the nearest, and all.
  """
  known = names()
  for name in wanted:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(
        f'recipe {name!r} does not come with this package; {hint}Accepted: '
        f'{", ".join(known)}. A file of your own goes with --gin_file=FILE'
      )
  return [str(_FOLDER / f'{name}.gin') for name in wanted]
