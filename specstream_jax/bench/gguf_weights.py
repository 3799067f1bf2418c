# SPDX-License-Identifier: Apache-2.0
"""A model's weights, LoRA folded in, as a GGUF file for other programs."""

import os

import numpy as np

from specstream_jax import runtime
from specstream_jax.bench import external
from specstream_jax.checkpoints import gguf, gguf_export, loading


def write(path: str, model: runtime.Model, program: str, dtype: str) -> None:
  """Writes the file.

  Args:
    path: to write.
    model: read from a GGUF file, whose tokenizer and names it keeps.
    program: who wants it, for errors.
    dtype: of matrices, one of `gguf_export.DTYPES`.

  Raises:
    ValueError: the model does not come from a GGUF file.
  """
  weights = external.plain_weights(model)
  gguf_export.save(
    path,
    source(model, program),
    {name: np.asarray(leaf) for name, leaf in weights.items()},
    dtype=dtype,
  )


def source(model: runtime.Model, program: str) -> str:
  """The GGUF file that a model was read from.

  Raises:
    ValueError: it was read from something else.
  """
  name = model.source['base']
  path = str(loading.resolve(name))
  if not (os.path.isfile(path) and gguf.is_gguf(path)):
    raise ValueError(
      f'{program} references read GGUF files, and {name!r} is none; take a '
      'model from a GGUF file, or leave them out'
    )
  return path
