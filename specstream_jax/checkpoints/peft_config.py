# SPDX-License-Identifier: Apache-2.0
"""The adapter_config.json of a PEFT LoRA: what is understood, and what is not."""

from collections.abc import Mapping
import dataclasses
import math
import os
import re
from typing import Any

from specstream_jax.checkpoints import fields as fields_lib, files, weights

CONFIG = 'adapter_config.json'
ALL_LINEAR = 'all-linear'
_MARK = 'peft_type'
_LONGEST = 1000  # characters of a pattern
_TEXT = fields_lib.TEXT
_NAMES = fields_lib.Kind(
  'a text or a list of texts',
  lambda value: fields_lib.TEXT.fits(value) or fields_lib.TEXTS.fits(value),
)
_LAYERS = fields_lib.Kind(
  'an integer >= 0 or a list of them',
  lambda value: fields_lib.COUNT.fits(value) or fields_lib.COUNTS.fits(value),
)
_RANKS = fields_lib.Kind(
  'an object of integers above 0',
  lambda value: (
    isinstance(value, dict)
    and all(fields_lib.SIZE.fits(v) for v in value.values())
  ),
)
_ALPHAS = fields_lib.Kind(
  'an object of numbers above 0',
  lambda value: (
    isinstance(value, dict)
    and all(fields_lib.POSITIVE.fits(v) for v in value.values())
  ),
)
_KINDS = {
  'r': fields_lib.SIZE,
  'lora_alpha': fields_lib.POSITIVE,
  'use_rslora': fields_lib.BOOL,
  'rank_pattern': _RANKS,
  'alpha_pattern': _ALPHAS,
  'target_modules': _NAMES,
  'exclude_modules': _NAMES,
  'layers_to_transform': _LAYERS,
  'layers_pattern': _NAMES,
  'modules_to_save': fields_lib.TEXTS,
  'base_model_name_or_path': _TEXT,
}
# Other ways of adapting, by the field that switches each on.
_METHODS = {
  'use_dora': 'DoRA',
  'use_qalora': 'QALoRA',
  'use_bdlora': 'BD-LoRA',
  'alora_invocation_tokens': 'activated LoRA',
  'arrow_config': 'Arrow',
  'kasa_config': 'KaSA',
  'monteclora_config': 'MonteCLoRA',
  'velora_config': 'VeLoRA',
  'megatron_config': 'LoRA on Megatron layers',
  'layer_replication': 'replicated layers',
  'lora_bias': 'LoRA with biases',
  'target_parameters': 'LoRA on bare parameters',
  'trainable_token_indices': 'trained embeddings of single tokens',
}
# Say how it was trained, or nothing; transposition is the kernel's own affair.
_IGNORED = frozenset(
  """auto_mapping revision inference_mode lora_dropout megatron_core peft_version
  loftq_config eva_config corda_config lora_ga_config qalora_group_size
  runtime_config parent_library unsloth_version unsloth_fixed ensure_weight_tying fan_in_fan_out""".split()  # noqa: SIM905 (a line per name)
)
# Of the ways to begin, those that leave the base as it is.
_BEGINNINGS = (True, False, None, 'gaussian', 'eva', 'orthogonal')
_FIX = (
  'merge it into the model with peft (`merge_and_unload`, `save_pretrained`) '
  'and use that folder as --model'
)


@dataclasses.dataclass(frozen=True)
class PeftConfig:
  """A LoRA as PEFT describes it.

  Attributes:
    rank: r, unless a pattern of `ranks` fits the module.
    alpha: likewise, with `alphas`.
    is_rank_stabilised: the scale is alpha / √r, not alpha / r.
    ranks: rank by pattern of module names.
    alphas: alpha by pattern.
    targets: ends of module names, or one pattern for whole names.
    excluded: modules left out, likewise.
    layers: numbers of the layers that have it; None for all.
    layers_pattern: patterns for what stands before those numbers.
    saved_modules: modules whose weights were saved whole.
    base: what it was trained on, by name or path; '' where it is not said.
  """

  rank: int
  alpha: float
  is_rank_stabilised: bool = False
  ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
  targets: tuple[str, ...] | str = ALL_LINEAR
  excluded: tuple[str, ...] | str = ()
  layers: tuple[int, ...] | None = None
  layers_pattern: tuple[str, ...] = ()
  saved_modules: tuple[str, ...] = ()
  base: str = ''

  def is_on(self, module: str) -> bool:
    """Whether the linear module of that name has LoRA.

    Args:
      module: a whole name, such as model.layers.0.self_attn.q_proj.
    """
    if _names(self.excluded, module):
      return False
    if isinstance(self.targets, str):
      is_any = self.targets.lower() == ALL_LINEAR
      return is_any or _names(self.targets, module)
    return _names(self.targets, module) and self._is_in_layers(module)

  def _is_in_layers(self, module: str) -> bool:
    if self.layers is None:
      return True
    before = '|'.join(self.layers_pattern) or r'[^.]*'
    found = re.match(rf'(?:.*?\.)?(?:{before})\.(\d+)\.', module)
    return bool(found) and int(found.group(1)) in self.layers

  def rank_of(self, module: str) -> int:
    """The rank of a module's LoRA."""
    return _by_pattern(self.ranks, module, self.rank)

  def scale_of(self, module: str) -> float:
    """What the product of a module's LoRA is multiplied by."""
    alpha, rank = (
      _by_pattern(self.alphas, module, self.alpha),
      self.rank_of(module),
    )
    return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def is_peft(folder: str | os.PathLike) -> bool:
  """True if the folder holds what PEFT saved."""
  path = os.path.join(folder, CONFIG)
  return os.path.isfile(path) and _MARK in files.read_json(path)


def read(folder: str | os.PathLike) -> PeftConfig:
  """The config of a PEFT LoRA.

  Raises:
    ValueError: it is no plain LoRA of a causal language model; lists all that
      would change the result.
  """
  path = os.path.join(folder, CONFIG)
  raw = {k: v for k, v in files.read_json(path).items() if v is not None}
  source = f'PEFT adapter {os.fspath(folder)!r}'
  weights.refuse(source, _problems(raw), _FIX)
  layers = raw.get('layers_to_transform')
  if layers is not None:
    layers = (layers,) if fields_lib.is_integer(layers) else tuple(layers)
  patterns = raw.get('layers_pattern', ())
  return PeftConfig(
    rank=raw['r'],
    alpha=raw['lora_alpha'],
    is_rank_stabilised=raw.get('use_rslora', False),
    ranks=raw.get('rank_pattern', {}),
    alphas=raw.get('alpha_pattern', {}),
    targets=_text_or_tuple(raw['target_modules']),
    excluded=_text_or_tuple(raw.get('exclude_modules', ())),
    layers=layers or None,
    layers_pattern=(patterns,)
    if isinstance(patterns, str)
    else tuple(patterns),
    saved_modules=tuple(raw.get('modules_to_save', ())),
    base=raw.get('base_model_name_or_path', ''),
  )


def _text_or_tuple(value: Any) -> str | tuple[str, ...]:
  return value if isinstance(value, str) else tuple(value)


def _problems(raw: Mapping[str, Any]) -> list[str]:
  """Everything that is not understood or would change the result."""
  if raw.get(_MARK) != 'LORA':
    return [
      f"peft_type is {fields_lib.shown(raw.get(_MARK))}; accepted: 'LORA'"
    ]
  needed = ('r', 'lora_alpha', 'target_modules')
  lines = [f'missing {name}' for name in needed if name not in raw]
  for name, value in raw.items():
    shown = f'{name} = {fields_lib.shown(value)}'
    if name in _KINDS:
      lines.append(fields_lib.problem(name, value, _KINDS[name]))
    elif name in _METHODS and value not in (False, [], {}):
      lines.append(f'{shown}: {_METHODS[name]} is not understood')
    elif name == 'init_lora_weights' and value not in _BEGINNINGS:
      lines.append(
        f'{shown}: it began by changing the weights of the base, or trains '
        'otherwise; accepted: what was saved with '
        'path_initial_model_for_weight_conversion'
      )
    elif name == 'bias' and value != 'none':
      lines.append(f"bias is {fields_lib.shown(value)}; accepted: 'none'")
    elif name == 'task_type' and value != 'CAUSAL_LM':
      lines.append(
        f"task_type is {fields_lib.shown(value)}; accepted: 'CAUSAL_LM'"
      )
    elif name not in (*_METHODS, *_IGNORED, *_OTHERS) and value not in _OFF:
      lines.append(f'{shown} is not understood')
  lines = list(filter(None, lines))
  return lines or _pattern_problems(raw)


_OTHERS = (_MARK, 'init_lora_weights', 'bias', 'task_type')
_OFF = (False, '', [], {})


def _pattern_problems(raw: Mapping[str, Any]) -> list[str]:
  """Patterns that are none, or longer than any is."""
  # These stand within a larger pattern, where flags like (?i) may not.
  within = [*raw.get('rank_pattern', {}), *raw.get('alpha_pattern', {})]
  patterns = [f'({pattern})' for pattern in within]
  for name in ('target_modules', 'exclude_modules', 'layers_pattern'):
    value = raw.get(name, ())
    values = [value] if isinstance(value, str) else [*value]
    if name == 'layers_pattern':
      patterns += [f'({pattern})' for pattern in values]
    elif isinstance(value, str):
      patterns += values
  lines = []
  for pattern in patterns:
    try:
      is_good = len(pattern) <= _LONGEST and bool(re.compile(pattern))
    except (re.error, OverflowError, RecursionError):
      is_good = False
    if not is_good:
      lines.append(
        f'{fields_lib.shown(pattern)} is no regular expression of up to '
        f'{_LONGEST:,} characters'
      )
  return lines


def _names(wanted: tuple[str, ...] | str, module: str) -> bool:
  """Whether a module is one of those that are named."""
  if isinstance(wanted, str):
    return bool(wanted) and bool(re.fullmatch(wanted, module))
  return any(f'.{module}'.endswith(f'.{name}') for name in wanted)


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
  """The value of the first pattern that fits the end of a module's name."""
  for pattern, value in values.items():
    if re.fullmatch(rf'(.*\.)?({pattern})', module):
      return value
  return default
