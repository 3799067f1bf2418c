# SPDX-License-Identifier: Apache-2.0
"""What a family of checkpoints says of itself, and how its config is read.

A family's `config.json` is taken field by field. What is not known, or would
change the mathematics in a way that the architecture language cannot say, is
refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any

from specstream_jax import config
from specstream_jax.checkpoints import fields, huggingface_rope, weights
from specstream_jax.checkpoints.families import stored
from specstream_jax.config import checks

SIZES = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
}
SIZE = fields.Kind(
  'an integer above 0', lambda value: type(value) is int and value >= 1
)
# Activations by the names that config.json has for them.
ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
}
ACTIVATION = fields.Kind(
  f'one of {", ".join(map(repr, ACTIVATIONS))}',
  lambda value: isinstance(value, str) and value in ACTIVATIONS,
)
_LAYER_TYPES = {'full_attention': 'full', 'sliding_attention': 'window'}
# Fields that change the output of any model unless they have such a value.
_NEUTRAL = {
  'use_bidirectional_attention': (False,),
  'is_encoder_decoder': (False,),
  'is_decoder': (False, True),
  'add_cross_attention': (False,),
  'cross_attention_hidden_size': (),
  'tie_encoder_decoder': (False,),
  'pruned_heads': ({},),
}
# Fields that do not enter the forward pass.
_IGNORED = frozenset(
  """_name_or_path transformers_version transformers.js_config use_cache
  initializer_range attention_dropout hidden_dropout torch_dtype dtype
  bos_token_id pad_token_id sep_token_id unk_token_id eos_token_id
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
  _attn_implementation_autoset architectures model_type auto_map
  _num_labels output_past pretraining_tp unsloth_fixed unsloth_version
  """.split()  # noqa: SIM905 (a line per name)
)


@dataclasses.dataclass(frozen=True)
class Family:
  """One family of checkpoints; data and two small functions.

  Attributes:
    name: `ModelConfig.family`.
    architecture: of config.json.
    model_type: of config.json.
    top: modules outside the layers; the last is the LM head.
    layer: modules of a layer.
    prefix: of the layers' names.
    kinds: what each field that is understood may hold.
    defaults: what config.json leaves out, as transformers fills it in.
    neutral: fields with the values that change nothing.
    optional: fields that are understood but may be missing or null.
    ignored: fields that do not enter the forward pass.
    read_fields: fields of config.json, complete -> fields of `ModelConfig`.
    write_fields: `ModelConfig` -> fields of config.json.
    respell: rewrites fields that only this family spells so.
    theta: RoPE base of a file that names none; None without RoPE.
    derived: names of stored tables that follow from the config.
    old_names: (pattern, replacement) for names of older files.
  """

  name: str
  architecture: str
  model_type: str
  top: Sequence[stored.Module]
  layer: Sequence[stored.Module]
  prefix: str
  kinds: Mapping[str, fields.Kind]
  defaults: Mapping[str, Any]
  neutral: Mapping[str, tuple[Any, ...]]
  read_fields: Callable[[Mapping[str, Any]], dict[str, Any]]
  write_fields: Callable[[config.ModelConfig], dict[str, Any]]
  optional: frozenset[str] = frozenset(
    ['num_key_value_heads', 'head_dim', 'sliding_window', 'layer_types']
  )
  ignored: frozenset[str] = frozenset()
  respell: Callable[[dict[str, Any]], dict[str, Any]] = dict
  theta: float | None = 10000.0
  derived: re.Pattern[str] = re.compile(r'.*\.rotary_emb\.inv_freq')
  old_names: tuple[str, str] | None = None

  def read(
    self, raw: Mapping[str, Any], source: str, *, dtype: str = 'float32'
  ) -> config.ModelConfig:
    """The config from the contents of config.json.

    Args:
      raw: the JSON object.
      source: where it came from, for messages.
      dtype: of the model that will be built.

    Raises:
      ValueError: lists every field that is missing or would change the maths.
    """
    # A null in the file overrides a default, then counts as absent.
    merged = self.respell({**self.defaults, **huggingface_rope.lifted(raw)})
    raw = {name: value for name, value in merged.items() if value is not None}
    fix = 'write the file again, or get the checkpoint anew'
    weights.refuse(source, self._type_problems(raw), fix)
    weights.refuse(
      source,
      self._problems(raw) + huggingface_rope.problems(raw, self.theta),
      'use the unmodified config.json of the checkpoint; a model that needs '
      'more than is understood cannot be run',
    )
    try:
      values: dict[str, Any] = {'family': self.name, 'dtype': dtype}
      values |= self.read_fields(raw)
      return config.ModelConfig(**values)
    except ValueError as error:  # each number is one, but they do not fit
      raise ValueError(f'{source}: {checks.message(error)}') from error

  def _type_problems(self, raw: Mapping[str, Any]) -> list[str]:
    """Fields whose values are no sizes, numbers or tables where they belong."""
    lines = [
      fields.problem(name, raw[name], kind)
      for name, kind in self.kinds.items()
      if name in raw
    ]
    return list(filter(None, lines)) + huggingface_rope.type_problems(raw)

  def _problems(self, raw: Mapping[str, Any]) -> list[str]:
    lines = [
      f'missing {name}'
      for name in self.kinds
      if name not in raw and name not in self.optional
    ]
    neutral = _NEUTRAL | dict(self.neutral)
    known = (*self.kinds, *(huggingface_rope.FIELDS if self.theta else ()))
    for name, value in raw.items():
      if name in known or name in _IGNORED or name in self.ignored:
        continue
      is_list = name == 'layer_types' and isinstance(value, list)
      if is_list and all(kind == 'full_attention' for kind in value):
        continue
      if name not in neutral:
        lines.append(f'{name} = {fields.shown(value)} is not understood')
      elif value not in neutral[name]:
        accepted = neutral[name][0] if neutral[name] else None
        lines.append(f'{name} is {fields.shown(value)}; accepted: {accepted!r}')
    return lines

  def write(
    self, cfg: config.ModelConfig, *, dtype: str, eos_ids: Sequence[int]
  ) -> dict[str, Any]:
    """config.json in version 4's fields, which version 5 reads as well."""
    return {
      'architectures': [self.architecture],
      'model_type': self.model_type,
      **self.write_fields(cfg),
      'torch_dtype': dtype,
      'eos_token_id': list(eos_ids) if len(eos_ids) != 1 else eos_ids[0],
    }

  def tensors(self, cfg: config.ModelConfig) -> dict[str, stored.Stored]:
    """Every tensor of a checkpoint by name."""
    return stored.tensors(cfg, self.top, self.layer, self.prefix)

  @property
  def tied_names(self) -> tuple[str, str]:
    """The tensors of LM head and embedding, the same in a tied model."""
    return f'{self.top[-1].name}.weight', f'{self.top[0].name}.weight'

  def canonical(self, name: str) -> str:
    """The name that `tensors` has for a tensor of an older file."""
    return re.sub(*self.old_names, name) if self.old_names else name


def layer_kinds(types: Sequence[str], window: int | None) -> dict[str, Any]:
  """Fields of `ModelConfig` from the types of layers and their window.

  Raises:
    ValueError: a type is not understood, or there is no window for one.
  """
  for name in types:
    checks.one_of('an entry of layer_types', name, tuple(_LAYER_TYPES))
  kinds = tuple(_LAYER_TYPES[name] for name in types)
  if 'window' not in kinds:
    return {}
  checks.check(
    bool(window),
    "layer_types has 'sliding_attention', but there is no sliding_window; "
    'write it into the file',
  )
  return {'window': window, 'layer_kinds': kinds}


def layer_types(cfg: config.ModelConfig) -> list[str]:
  """Undoes `layer_kinds`."""
  names = {'full': 'full_attention', 'window': 'sliding_attention'}
  return [names[kind] for kind in cfg.kinds]


def rotary_dim(raw: Mapping[str, Any]) -> int:
  """`ModelConfig.rotary_dim` from the fraction of a head that RoPE turns."""
  head_dim = raw['hidden_size'] // raw['num_attention_heads']
  head_dim = raw.get('head_dim', head_dim)
  turned = int(head_dim * raw['partial_rotary_factor'])
  return 0 if turned == head_dim else turned


def renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
  """Fields under other names; those that have none keep theirs."""
  return {names.get(name, name): value for name, value in raw.items()}


def activation(cfg: config.ModelConfig, tanh_gelu: str) -> str:
  """Undoes `ACTIVATIONS`; the tanh form of GELU has several names."""
  name = cfg.mlp.activation
  return tanh_gelu if name == 'gelu_tanh' else name


def whole(number: float) -> float | int:
  """A number that stands for a whole one as that, free of rounding."""
  near = round(number)
  return near if abs(number - near) < 1e-6 * max(near, 1) else number
