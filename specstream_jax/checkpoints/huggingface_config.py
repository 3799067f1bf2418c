# SPDX-License-Identifier: Apache-2.0
"""Hugging Face `config.json` to `ModelConfig` and back, refusing the unknown.

Reads what transformers 4 writes (`rope_theta`, `rope_scaling`, `torch_dtype`)
and what version 5 writes (`rope_parameters`, `dtype`).
"""

from collections.abc import Mapping
from typing import Any

from specstream_jax import config, config_checks as checks
from specstream_jax.checkpoints import (
  fields,
  huggingface_rope as rope,
  weights,
)

# Architectures with the same mathematics, and what they leave out of the file.
ARCHITECTURES = {
  'LlamaForCausalLM': {'rms_norm_eps': 1e-6, 'max_position_embeddings': 2048},
  'MistralForCausalLM': {
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
}
_SIZES = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
}
_UNDERSTOOD = (
  *_SIZES,
  'architectures',
  'model_type',
  'num_key_value_heads',
  'head_dim',
  'rms_norm_eps',
  'max_position_embeddings',
  'tie_word_embeddings',
  'rope_theta',
  'rope_scaling',
  'rope_parameters',
  'eos_token_id',
)
# Fields that change the output unless they have one of these values.
_NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'pretraining_tp': (1,),
  'rope_interleaved': (False,),
  'partial_rotary_factor': (1.0,),
  'use_sliding_window': (False,),
  'is_encoder_decoder': (False,),
  'is_decoder': (False, True),
  'add_cross_attention': (False,),
  'tie_encoder_decoder': (False,),
  'pruned_heads': ({},),
}
# Fields that do not enter the forward pass.
_IGNORED = frozenset(
  """_name_or_path transformers_version transformers.js_config use_cache
  initializer_range attention_dropout hidden_dropout torch_dtype dtype
  bos_token_id pad_token_id sep_token_id unk_token_id is_llama_config
  torchscript output_attentions output_hidden_states return_dict
  return_dict_in_generate output_scores chunk_size_feed_forward id2label
  label2id num_labels problem_type task_specific_params prefix
  decoder_start_token_id tokenizer_class use_bfloat16 finetuning_task
  tf_legacy_loss max_length min_length do_sample early_stopping num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
  forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  _attn_implementation_autoset""".split()  # noqa: SIM905 (a line per name)
)


def parse(
  raw: Mapping[str, Any], source: str, *, dtype: str = 'float32'
) -> config.ModelConfig:
  """The model's sizes from the contents of config.json.

  Args:
    raw: the JSON object.
    source: where it came from, for messages.
    dtype: of the model that will be built.

  Raises:
    ValueError: lists every field that is missing or would change the maths.
  """
  names = raw.get('architectures') or []
  is_one = isinstance(names, list) and len(names) == 1
  defaults = ARCHITECTURES.get(str(names[0])) if is_one else None
  if defaults is None:
    raise ValueError(
      f'{source} has architectures {fields.shown(names)}; accepted: one of '
      f'{", ".join(map(repr, ARCHITECTURES))}'
    )
  # A null in the file overrides a default, then counts as absent.
  merged = {**defaults, **raw}
  raw = {name: value for name, value in merged.items() if value is not None}
  fix = 'write the file again, or get the checkpoint anew'
  weights.refuse(source, _type_problems(raw), fix)
  weights.refuse(
    source,
    _problems(raw) + rope.problems(raw),
    'use a checkpoint without these, or one that needs none of them',
  )
  try:
    return _model_config(raw, dtype)
  except ValueError as error:  # each number is one, but they do not fit
    raise ValueError(f'{source}: {checks.message(error)}') from error


def _type_problems(raw: Mapping[str, Any]) -> list[str]:
  """Fields whose values are no sizes, numbers or tables where such belong."""
  lines = []
  sizes = (
    *_SIZES,
    'num_key_value_heads',
    'head_dim',
    'max_position_embeddings',
  )
  for name in sizes:
    value = raw.get(name, 1)
    if type(value) is not int or value < 1:
      lines.append(
        f'{name} is {fields.shown(value)}; accepted: an integer above 0'
      )
  eps = raw.get('rms_norm_eps', 1.0)
  lines += filter(None, [fields.problem('rms_norm_eps', eps, fields.POSITIVE)])
  tied = raw.get('tie_word_embeddings', False)
  if not isinstance(tied, bool):
    lines.append(
      f'tie_word_embeddings is {fields.shown(tied)}; accepted: true or false'
    )
  return lines + rope.type_problems(raw)


def _problems(raw: Mapping[str, Any]) -> list[str]:
  needed = (*_SIZES, *ARCHITECTURES['LlamaForCausalLM'])
  lines = [f'missing {name}' for name in needed if name not in raw]
  for name, value in raw.items():
    if name in _IGNORED or name in _UNDERSTOOD:
      continue
    full = name == 'layer_types' and isinstance(value, list)
    if full and all(kind == 'full_attention' for kind in value):
      continue
    if name not in _NEUTRAL:
      lines.append(f'{name} = {str(value)[:60]} is not understood')
    elif value not in _NEUTRAL[name]:
      lines.append(
        f'{name} is {fields.shown(value)}; accepted: {_NEUTRAL[name][0]!r}'
      )
  return lines


def _model_config(raw: Mapping[str, Any], dtype: str) -> config.ModelConfig:
  theta, scaling = rope.read(raw)
  heads = raw['num_attention_heads']
  return config.ModelConfig(
    **{ours: raw[theirs] for theirs, ours in _SIZES.items()},
    num_kv_heads=raw.get('num_key_value_heads', heads),
    head_dim=raw.get('head_dim', raw['hidden_size'] // heads),
    rope_theta=theta,
    rope_scaling=scaling,
    rms_norm_eps=float(raw['rms_norm_eps']),
    max_position_embeddings=raw['max_position_embeddings'],
    tie_word_embeddings=raw.get('tie_word_embeddings', False),
    dtype=dtype,
  )


def dump(
  cfg: config.ModelConfig, *, dtype: str, eos_ids: tuple[int, ...]
) -> dict[str, Any]:
  """The config.json of a plain Llama checkpoint, in version 4's fields.

  Version 5 reads those as well.
  """
  raw = {theirs: getattr(cfg, ours) for theirs, ours in _SIZES.items()}
  return raw | {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'num_key_value_heads': cfg.num_kv_heads,
    'head_dim': cfg.head_dim,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'rms_norm_eps': cfg.rms_norm_eps,
    'max_position_embeddings': cfg.max_position_embeddings,
    'tie_word_embeddings': cfg.tie_word_embeddings,
    'rope_theta': cfg.rope_theta,
    'rope_scaling': rope.dump(cfg.rope_scaling),
    'torch_dtype': dtype,
    'eos_token_id': list(eos_ids) if len(eos_ids) != 1 else eos_ids[0],
  }
