# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files: names of tensors, and what metadata means there.

As llama.cpp writes and reads them; what its files leave unsaid is said here.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields
from specstream_jax.checkpoints.families import stored
from specstream_jax.config import model as config_model

RMS_EPSILON = 'attention.layer_norm_rms_epsilon'
_EPSILON = 'attention.layer_norm_epsilon'
_WINDOW = 'attention.sliding_window'
_PATTERN = 'attention.sliding_window_pattern'
_LOCAL_THETA = 'rope.freq_base_swa'
_ATTENTION_CAP, _LOGIT_CAP = 'attn_logit_softcapping', 'final_logit_softcapping'
SHORT_FACTORS, LONG_FACTORS = 'rope_factors_short', 'rope_factors_long'

_TOP = (
  stored.Module('token_embd', ('embed',)),
  stored.Module('position_embd', ('positions',)),
  stored.Module('output_norm', ('final_norm',)),
  stored.Module('output', ('lm_head',)),
)
_SEPARATE = (
  stored.Module('attn_q', ('attention/query',)),
  stored.Module('attn_k', ('attention/key',)),
  stored.Module('attn_v', ('attention/value',)),
)
_FUSED = (
  stored.Module(
    'attn_qkv', ('attention/query', 'attention/key', 'attention/value')
  ),
)
_FUSED_IF = 'blk.0.attn_qkv.weight'
_COMMON = (
  stored.Module('attn_output', ('attention/out',)),
  stored.Module('attn_q_norm', ('attention/query_norm',)),
  stored.Module('attn_k_norm', ('attention/key_norm',)),
  stored.Module('attn_norm', ('attention_norm',)),
  stored.Module('post_attention_norm', ('attention_post_norm',)),
  stored.Module('ffn_norm', ('mlp_norm',)),
  stored.Module('post_ffw_norm', ('mlp_post_norm',)),
  stored.Module('ffn_down', ('mlp/down',)),
)
_MLP = (
  stored.Module('ffn_gate', ('mlp/gate',)),
  stored.Module('ffn_up', ('mlp/up',)),
)
_FUSED_MLP = (stored.Module('ffn_up', ('mlp/gate', 'mlp/up')),)

Get = Callable[..., Any]
"""(name, default) -> the metadata of that name in this architecture."""


def _nothing(get: Get, head_dim: int) -> dict[str, Any]:
  del get, head_dim
  return {}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One value of `general.architecture`.

  Attributes:
    name: that value.
    family: `ModelConfig.family` of its models.
    read: (metadata, H) -> fields of `ModelConfig` beside the sizes.
    understood: metadata that it has beside what all have, and of which kind.
    epsilon: metadata with the epsilon of the norms.
    mlp: modules of the MLP beside the projection back.
    is_permuted: rows of query and key stand in pairs (2i, 2i+1), not in halves.
    is_shifted: the weights of norms are stored with 1 added.
    has_partial_rope: RoPE may turn a part of each head.
  """

  name: str
  family: str
  read: Callable[[Get, int], dict[str, Any]] = _nothing
  understood: Mapping[str, fields.Kind] = dataclasses.field(
    default_factory=dict
  )
  epsilon: str = RMS_EPSILON
  mlp: Sequence[stored.Module] = _MLP
  is_permuted: bool = False
  is_shifted: bool = False
  has_partial_rope: bool = False

  def tensors(
    self, cfg: config.ModelConfig, found: Mapping[str, Any]
  ) -> dict[str, stored.Stored]:
    """Every tensor by name.

    Args:
      cfg: of the model.
      found: tensors of the file by name; query, key and value may be one.
    """
    attention = _FUSED if _FUSED_IF in found else _SEPARATE
    layer = (*attention, *_COMMON, *self.mlp)
    return stored.tensors(cfg, _TOP, layer, 'blk')


def _attention(**values) -> Callable[[Get, int], dict[str, Any]]:
  made = {'attention': config.AttentionConfig(**values)}
  return lambda get, head_dim: dict(made)


def _gemma(get: Get, head_dim: int) -> dict[str, Any]:
  del head_dim
  return {
    'norm': config.NormConfig(is_unit_offset=True),
    'mlp': config.MlpConfig(activation='gelu_tanh'),
    'embedding_scale': math.sqrt(get('embedding_length')),
  }


def _query_scale(get: Get, head_dim: int, num_layers: int) -> float:
  """llama.cpp knows the largest Gemma, the one with another scale, by its
  number of layers."""
  if get('block_count') == num_layers:
    return (get('embedding_length') / get('attention.head_count')) ** -0.5
  return head_dim**-0.5


def _local_layers(get: Get, window: int, period: int) -> dict[str, Any]:
  """Every so many layers, one sees all; the others have a window."""
  window, period = int(get(_WINDOW, window)), int(get(_PATTERN, period))
  # A wrong number of layers is refused later, and not listed here.
  count = min(int(get('block_count')), config_model.MAX_LAYERS + 1)
  kinds = tuple('window' if (i + 1) % period else 'full' for i in range(count))
  if not window or 'window' not in kinds:
    return {}
  return {'window': window, 'layer_kinds': kinds}


def _gemma2(get: Get, head_dim: int) -> dict[str, Any]:
  attention = config.AttentionConfig(
    query_scale=_query_scale(get, head_dim, 46),
    softcap=float(get(_ATTENTION_CAP, 50.0)),
  )
  return (
    _gemma(get, head_dim)
    | _local_layers(get, 4096, 2)
    | {
      'block': 'pre_post',
      'attention': attention,
      'logit_softcap': float(get(_LOGIT_CAP, 30.0)),
    }
  )


def _gemma3(get: Get, head_dim: int) -> dict[str, Any]:
  attention = config.AttentionConfig(
    qk_norm='head', query_scale=_query_scale(get, head_dim, 62)
  )
  layers = _local_layers(get, 0, 6)
  if layers:
    layers['local_rope_theta'] = float(get(_LOCAL_THETA, 10000.0))
  return (
    _gemma(get, head_dim)
    | layers
    | {
      'block': 'pre_post',
      'attention': attention,
      'logit_softcap': float(get(_LOGIT_CAP, 0.0)),
    }
  )


def _layer_norms(get: Get, head_dim: int) -> dict[str, Any]:
  """LayerNorm and biases throughout, and no gate."""
  del get, head_dim
  return {
    'norm': config.NormConfig('layer'),
    'attention': config.AttentionConfig(has_bias=True, has_out_bias=True),
    'mlp': config.MlpConfig('gelu_tanh', is_gated=False, has_bias=True),
  }


def _gpt2(get: Get, head_dim: int) -> dict[str, Any]:
  positions = int(get('context_length'))
  return _layer_norms(get, head_dim) | {'num_learned_positions': positions}


def _rotary(get: Get, head_dim: int) -> dict[str, Any]:
  turned = int(get('rope.dimension_count', head_dim))
  return {'rotary_dim': 0 if turned == head_dim else turned}


def _phi2(get: Get, head_dim: int) -> dict[str, Any]:
  return (
    _layer_norms(get, head_dim)
    | _rotary(get, head_dim)
    | {'block': 'parallel_shared', 'has_head_bias': True}
  )


def _phi3(get: Get, head_dim: int) -> dict[str, Any]:
  return _rotary(get, head_dim) | _local_layers(
    get, 0, int(get('block_count')) + 1
  )


_CAPS = dict.fromkeys((_ATTENTION_CAP, _LOGIT_CAP), fields.POSITIVE)
_LOCAL = {_WINDOW: fields.COUNT, _PATTERN: fields.SIZE}
_KNOWN = (
  Architecture('llama', 'llama', is_permuted=True),
  Architecture('qwen2', 'qwen2', _attention(has_bias=True)),
  Architecture('qwen3', 'qwen3', _attention(qk_norm='head')),
  Architecture('gemma', 'gemma', _gemma, is_shifted=True),
  Architecture('gemma2', 'gemma2', _gemma2, _CAPS | _LOCAL, is_shifted=True),
  Architecture(
    'gemma3',
    'gemma3',
    _gemma3,
    _LOCAL | {_LOGIT_CAP: fields.POSITIVE, _LOCAL_THETA: fields.POSITIVE},
    is_shifted=True,
  ),
  Architecture('phi2', 'phi', _phi2, epsilon=_EPSILON, has_partial_rope=True),
  Architecture(
    'phi3',
    'phi3',
    _phi3,
    {
      _WINDOW: fields.COUNT,
      'rope.scaling.original_context_length': fields.SIZE,
      'rope.scaling.attn_factor': fields.POSITIVE,
    },
    mlp=_FUSED_MLP,
    has_partial_rope=True,
  ),
  Architecture('gpt2', 'gpt2', _gpt2, epsilon=_EPSILON),
)
ARCHITECTURES = {one.name: one for one in _KNOWN}
