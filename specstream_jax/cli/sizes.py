# SPDX-License-Identifier: Apache-2.0
"""Sizes of files and memory, as they are typed."""

import re

_SIZE = re.compile(r'(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]I?B)?', re.IGNORECASE)
_UNITS = {'': 1}
_UNITS |= {'KB': 10**3, 'MB': 10**6, 'GB': 10**9}
_UNITS |= {'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30}


def num_bytes(text: str, flag: str) -> int:
  """The bytes of a size such as 500MB or 1.5 GiB.

  Raises:
    ValueError: it is none; names the flag.
  """
  found = _SIZE.fullmatch(text.strip())
  unit = _UNITS[(found[2] or '').upper()] if found else 0
  size = int(float(found[1]) * unit) if found else 0
  if not size:
    raise ValueError(
      f'--{flag}={text} is no size; accepted: a number above 0, perhaps with KB, '
      'MB, GB, KiB, MiB or GiB behind it'
    )
  return size
