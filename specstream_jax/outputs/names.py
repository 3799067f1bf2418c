# SPDX-License-Identifier: Apache-2.0
"""Names that become files stay inside their folder."""

import re

_PLAIN = re.compile(r'\w[\w.-]{0,99}')


def is_plain(name: object) -> bool:
  """Whether a name is that of a file in a folder, and of no other place."""
  return isinstance(name, str) and bool(_PLAIN.fullmatch(name))


def check(what: str, name: object) -> None:
  """Raises ValueError unless `name` is plain.

  Args:
    what: where it comes from, such as a flag.
    name: that becomes a file.
  """
  if not is_plain(name):
    raise ValueError(
      f'{what} is {name!r}, which names a file; accepted: up to 100 letters, '
      'digits, _, - and dots, with a letter, a digit or _ in front'
    )
