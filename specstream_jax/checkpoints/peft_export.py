# SPDX-License-Identifier: Apache-2.0
"""LoRA of ours as the two files that PEFT loads."""

from collections.abc import Callable, Mapping
import functools

import numpy as np
from safetensors import numpy as safetensors_numpy

from specstream_jax import arrays, config
from specstream_jax.checkpoints import files, peft, peft_config


def writers(
  flat: arrays.FlatParams,
  lora: config.LoraConfig,
  model: config.ModelConfig,
  *,
  base: str,
  dtype: str = 'float32',
) -> dict[str, Callable[[str], None]]:
  """What writes each file of a PEFT folder.

  Modules whose LoRA is zero, as those that a PEFT folder left out, are left
  out. A fused module gets the LoRA of all its parts, and the sum of their ranks.

  Args:
    flat: `lora_a` and `lora_b` by path.
    lora: its settings.
    model: sizes of the base.
    base: name of the base.
    dtype: on disk, one that numpy knows with ml_dtypes.
  """
  tensors, ranks = {}, {}
  for name, stored in peft.linear_modules(model).items():
    stems = [path.removesuffix('kernel') for path in stored.paths]
    held = {
      f'{stem}{factor}': np.asarray(flat[f'{stem}{factor}'])
      for stem in stems
      for factor in ('lora_a', 'lora_b')
      if f'{stem}lora_b' in flat and np.any(flat[f'{stem}lora_b'])
    }
    if not held:
      continue
    low, high = stored.join_lora(held)
    ranks[name] = len(low)
    for factor, leaf in (('lora_A', low), ('lora_B', high)):
      tensors[f'{peft.PREFIX}{name}.{factor}.weight'] = np.ascontiguousarray(
        leaf, dtype=np.dtype(dtype)
      )
  content = safetensors_numpy.save(tensors, metadata={'format': 'pt'})
  raw = _config(ranks, lora, list(peft.linear_modules(model)), base)
  return {
    peft.WEIGHTS: functools.partial(files.write_bytes, content=content),
    peft_config.CONFIG: functools.partial(files.write_json, value=raw),
  }


def _config(
  ranks: Mapping[str, int], lora: config.LoraConfig, modules, base: str
) -> dict[str, object]:
  """The contents of adapter_config.json."""
  # Where every layer has it, the end of the name says all.
  ends = {name.rpartition('.')[2] for name in ranks}
  is_whole = all(
    name in ranks for name in modules if name.rpartition('.')[2] in ends
  )
  wider = {name: rank for name, rank in ranks.items() if rank != lora.rank}
  escaped = {name.replace('.', r'\.'): rank for name, rank in wider.items()}
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'inference_mode': True,
    'r': lora.rank,
    'lora_alpha': _number(lora.alpha),
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'modules_to_save': None,
    'target_modules': sorted(ends if is_whole else ranks),
    'rank_pattern': escaped,
    'alpha_pattern': {
      name: _number(lora.scale * rank) for name, rank in escaped.items()
    },
  }


def _number(value: float) -> float | int:
  """A whole number as such, as PEFT writes it."""
  return int(value) if value == int(value) else value
