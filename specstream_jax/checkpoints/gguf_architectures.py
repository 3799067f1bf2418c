# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files, and what their metadata leaves unsaid."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from specstream_jax import config


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One value of `general.architecture`.

  Attributes:
    name: that value.
    family: `ModelConfig.family` of its models.
    is_permuted: rows of query and key stand in pairs (2i, 2i+1), not in halves.
    is_shifted: the weights of norms are stored with 1 added.
    implied: fields of `ModelConfig` that follow from the width D.
  """

  name: str
  family: str
  is_permuted: bool = False
  is_shifted: bool = False
  implied: Callable[[int], dict[str, Any]] = lambda hidden_size: {}


_QWEN2 = config.AttentionConfig(has_bias=True)
_QWEN3 = config.AttentionConfig(qk_norm='head')

ARCHITECTURES = {
  one.name: one
  for one in (
    Architecture('llama', 'llama', is_permuted=True),
    Architecture('qwen2', 'qwen2', implied=lambda _: {'attention': _QWEN2}),
    Architecture('qwen3', 'qwen3', implied=lambda _: {'attention': _QWEN3}),
    Architecture(
      'gemma',
      'gemma',
      is_shifted=True,
      implied=lambda hidden_size: {
        'norm': config.NormConfig(is_unit_offset=True),
        'mlp': config.MlpConfig(activation='gelu_tanh'),
        'embedding_scale': math.sqrt(hidden_size),
      },
    ),
  )
}
