# SPDX-License-Identifier: Apache-2.0
"""Quantised Hugging Face checkpoints: told apart and refused, in one line."""

from collections.abc import Mapping
import os
from typing import Any

from specstream_jax.checkpoints import fields

_FIELD = 'quantization_config'
_METHODS = {
  'gptq': 'GPTQ',
  'awq': 'AWQ',
  'bitsandbytes': 'bitsandbytes',
  'fp8': 'FP8',
  'fbgemm_fp8': 'FP8',
  'compressed-tensors': 'compressed-tensors',
  'mxfp4': 'MXFP4',
}
# What the tools of each method wrote before config.json had a field for it.
_FILES = {'quantize_config.json': 'gptq', 'quant_config.json': 'awq'}


def refuse(raw: Mapping[str, Any], folder: str | os.PathLike) -> None:
  """Raises ValueError if the weights of a checkpoint are quantised.

  Args:
    raw: contents of its config.json.
    folder: that it lies in.
  """
  said = raw.get(_FIELD)
  if said:
    method = _method(said) if isinstance(said, Mapping) else said
    shown = fields.shown(method) if method else 'a method that is not named'
    name = _METHODS.get(str(method), shown)
  else:
    held = (f for f in _FILES if os.path.isfile(os.path.join(folder, f)))
    name = _METHODS.get(_FILES.get(next(held, ''), ''), '')
  if name:
    raise ValueError(
      f'{os.fspath(folder)!r} is quantised with {name}, which is not read; load '
      'the checkpoint in bfloat16 or float32 that it was made from, or a GGUF '
      'file of it'
    )


def _method(said: Mapping[str, Any]) -> Any:
  """The method; bitsandbytes did not write its name at first."""
  is_bits = said.get('load_in_8bit') or said.get('load_in_4bit')
  return said.get('quant_method') or ('bitsandbytes' if is_bits else None)
