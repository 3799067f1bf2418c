# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, opened and read with errors that name the file."""

import os
from typing import Any

import ml_dtypes  # noqa: F401 (numpy learns bfloat16)
import numpy as np
import safetensors

# Those that numpy knows; a file may hold others.
DTYPES = (
  *('F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8'),
  *('U64', 'U32', 'U16', 'U8', 'BOOL'),
)
_FIX = 'delete it and download or save it again'


def open_file(path: str, fix: str = _FIX) -> Any:
  """The `safetensors.safe_open` of a file, for numpy.

  Raises:
    ValueError: it does not exist, cannot be read, or is cut short or damaged.
  """
  try:
    return safetensors.safe_open(path, framework='np')
  except FileNotFoundError:
    raise ValueError(f'{path!r} does not exist; {fix}') from None
  except OSError as error:
    raise ValueError(f'{path!r} cannot be read ({error}); {fix}') from error
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path!r} ({os.path.getsize(path):,} bytes) is truncated or corrupt '
      f'({error}); {fix}'
    ) from error


def read(
  path: str, fix: str = _FIX
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """All tensors of a file by name, and its metadata.

  Raises:
    ValueError: see `open_file`, or a tensor of a type that numpy does not know.
  """
  opened = open_file(path, fix)
  names = list(opened.keys())
  for name in names:
    dtype = opened.get_slice(name).get_dtype()
    if dtype not in DTYPES:
      raise ValueError(
        f'{path!r}: tensor {name!r} is {dtype}; accepted: {", ".join(DTYPES)}; '
        f'{fix}'
      )
  tensors = {name: opened.get_tensor(name) for name in names}
  return tensors, dict(opened.metadata() or {})
