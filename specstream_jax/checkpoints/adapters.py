# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk: what one task adds to a base model, and to which one.

`adapter.safetensors` holds the weights, `adapter_config.json` everything else.
Axis letters: J streams (γ), D model width (h in the paper).
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

import numpy as np

from specstream_jax import arrays, config
from specstream_jax.checkpoints import (
  adapter_shapes,
  eos,
  loading,
  pair,
  peft_config,
  weights,
)
from specstream_jax.config import checks
from specstream_jax.modeling import lora as lora_lib

FORMAT_VERSION = 1
WEIGHTS = 'adapter.safetensors'
CONFIG = 'adapter_config.json'
KIND = pair.Kind('adapter', WEIGHTS, CONFIG, FORMAT_VERSION, 'specstream train')
_SECTIONS = {
  'stream': config.StreamConfig,
  'lora': config.LoraConfig,
  'tree': config.TreeConfig,
  'folded_lora': config.LoraConfig,
}
_FOLDED = 'folded/'


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What an adapter is and which base it belongs to.

  Attributes:
    base_model_id: name of the base, for people.
    base_config_hash: `weights.config_hash` of the base.
    base_fingerprint: `weights.fingerprint` of the base.
    stream: settings of the streams.
    lora: settings of LoRA; rank 0 if it was folded into the base.
    tree: the draft tree to use unless told otherwise.
    provenance: how it was trained, JSON types; `eos_ids` among them, where it
      made answers end.
    folded_lora: settings of the LoRA that tuned the model which lossless streams
      were trained on; it comes with the adapter, under `folded/`, and is folded
      into the base. Rank 0: they were trained on the base itself.
    format_version: of the two files.
  """

  base_model_id: str
  base_config_hash: str
  base_fingerprint: str
  stream: config.StreamConfig
  lora: config.LoraConfig
  tree: config.TreeConfig
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
  folded_lora: config.LoraConfig = config.LoraConfig(rank=0)
  format_version: int = FORMAT_VERSION

  def __post_init__(self):
    checks.option_types(self)
    _ = self.eos_ids

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Token ids that ended the answers it was trained on."""
    ids = self.provenance.get('eos_ids', [])
    return eos.check('provenance.eos_ids', ids, None)

  @property
  def is_chat(self) -> bool:
    """Whether it was trained on prompts that a chat template wrote."""
    return self.provenance.get('is_chat') is True


def is_adapter(folder: str | os.PathLike) -> bool:
  """True if the folder holds an adapter."""
  return KIND.is_in(folder)


def save_adapter(
  folder: str | os.PathLike,
  flat: arrays.FlatParams,
  cfg: AdapterConfig,
  *,
  dtype: str = 'bfloat16',
) -> None:
  """Writes an adapter; if that fails, the one that was there stays whole.

  Args:
    folder: made if it is not there.
    flat: adapter weights by path.
    cfg: goes to adapter_config.json.
    dtype: on disk, but for folded LoRA that it would round: answers stay those
      of that LoRA.

  Raises:
    ValueError: weights that do not fit `cfg`, or a disk that is full.
  """
  tensors = {
    path: _stored(path, leaf, np.dtype(dtype))
    for path, leaf in sorted(flat.items())
  }
  _check_tensors(os.fspath(folder), tensors, cfg)
  pair.write(folder, KIND, tensors, dataclasses.asdict(cfg))


def writers(
  flat: arrays.FlatParams, cfg: AdapterConfig
) -> dict[str, Callable[[str], None]]:
  """What writes each file of an adapter, every weight as it is."""
  tensors = {path: np.asarray(leaf) for path, leaf in sorted(flat.items())}
  return pair.writers(KIND, tensors, dataclasses.asdict(cfg))


def _stored(path: str, leaf: Any, dtype: np.dtype) -> np.ndarray:
  """A weight as it lies on disk."""
  narrow = np.ascontiguousarray(leaf, dtype=dtype)
  wide = np.ascontiguousarray(leaf)
  is_rounded = path.startswith(_FOLDED) and (narrow != wide).any()
  return wide if is_rounded else narrow


def load_adapter(
  folder: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], AdapterConfig]:
  """Reads an adapter.

  Returns:
    (float32 weights by flat path, its config).

  Raises:
    ValueError: a file is missing, damaged, of another version or does not fit
      the other.
  """
  folder = os.fspath(folder)
  cfg, digest = _read_config(folder)
  tensors = pair.read_tensors(folder, KIND, digest)
  _check_tensors(folder, tensors, cfg)
  return {p: leaf.astype(np.float32) for p, leaf in tensors.items()}, cfg


def read_config(folder: str | os.PathLike) -> AdapterConfig:
  """The config of an adapter, without its weights."""
  return _read_config(os.fspath(folder))[0]


def split(
  flat: arrays.FlatParams, cfg: AdapterConfig
) -> tuple[dict[str, Any], config.LoraConfig, dict[str, Any]]:
  """What of an adapter is folded into the base, and what stays beside it.

  Args:
    flat: all weights of the adapter.
    cfg: of the adapter.

  Returns:
    (flat LoRA by paths of the base, its settings, all other weights). LoRA of
    fine-tuned streams is folded; that of lossless streams acts on them alone and
    stays, and `folded_lora` is folded.
  """
  folded = {
    path.removeprefix(_FOLDED): leaf
    for path, leaf in flat.items()
    if path.startswith(_FOLDED)
  }
  rest = {p: leaf for p, leaf in flat.items() if not p.startswith(_FOLDED)}
  if cfg.stream.mode == 'lossless':
    return folded, cfg.folded_lora, rest
  kept = lora_lib.without(rest)
  return {p: v for p, v in rest.items() if p not in kept}, cfg.lora, kept


def with_folded(
  flat: arrays.FlatParams, folded: arrays.FlatParams
) -> dict[str, Any]:
  """An adapter's weights and the LoRA to fold, as `split` parts them."""
  return {**flat, **{f'{_FOLDED}{p}': leaf for p, leaf in folded.items()}}


def _read_config(folder: str) -> tuple[AdapterConfig, str]:
  """The config and the sha256 of the weights it belongs to."""
  expected = {field.name for field in dataclasses.fields(AdapterConfig)}
  checks.check(
    not peft_config.is_peft(folder),
    f'adapter {folder!r} is a PEFT LoRA, which has no streams; it can be decoded '
    'with, and train --fold_adapter teaches streams on top of it',
  )
  fields, digest = pair.read_fields(
    folder, KIND, expected, optional=frozenset(['folded_lora'])
  )
  with pair.naming(folder, KIND):
    for name in _SECTIONS.keys() & fields.keys():
      checks.check(
        isinstance(fields[name], dict),
        f'{name} is {fields[name]!r}; accepted: an object of its fields',
      )
      fields[name] = config.from_json(_SECTIONS[name], fields[name])
    return AdapterConfig(**fields), digest


def _check_tensors(
  folder: str, tensors: Mapping[str, Any], cfg: AdapterConfig
) -> None:
  """Raises ValueError if the weights are not what the config says."""
  lines = []
  wanted = {
    'streams/embedding': cfg.stream.embedding == 'learned',
    'streams/insertion/': cfg.stream.insertion == 'low_rank',
    'pruning/': cfg.stream.pruning_rank > 0,
    'coupling/': cfg.stream.coupling_rank > 0,
    'coupling/state': cfg.stream.coupling_rank > 0
    and cfg.stream.coupling == 'mlp',
    'layers/': cfg.lora.rank > 0,
    _FOLDED: cfg.folded_lora.rank > 0,
  }
  for prefix, is_wanted in wanted.items():
    if any(path.startswith(prefix) for path in tensors) != is_wanted:
      lines.append(f'{prefix} {"is missing" if is_wanted else "is unexpected"}')
  for path in tensors:
    if not path.startswith(tuple(wanted)):
      lines.append(f'{path} is unexpected')
  lines += _size_problems(tensors, cfg)
  if lines:
    raise ValueError(
      f'adapter {folder!r}: its weights do not fit its config: '
      f'{"; ".join(lines)}; save it again'
    )


def _size_problems(tensors, cfg: AdapterConfig) -> list[str]:
  """Streams and ranks that differ between weights and config."""
  lines = []
  for path, leaf in tensors.items():
    axis, size = -1, None
    if path == 'streams/embedding':
      axis, size = 0, cfg.stream.num_streams
    elif path == 'pruning/down':
      size = cfg.stream.pruning_rank
    elif path in ('coupling/down', 'coupling/state'):
      size = cfg.stream.coupling_rank
    elif path == 'streams/insertion/down':
      size = cfg.stream.insertion_rank
    elif path.endswith('/lora_a'):
      is_folded = path.startswith(_FOLDED)
      size = (cfg.folded_lora if is_folded else cfg.lora).rank
    if leaf.ndim != 2:
      lines.append(f'{path} has {leaf.ndim} axes, not 2')
    elif size is not None and leaf.shape[axis] != size:
      lines.append(f'{path} has {leaf.shape[axis]} in axis {axis}, not {size}')
  return lines


def is_of(cfg: AdapterConfig, loaded: loading.LoadedModel) -> bool:
  """Whether the adapter was trained on this base."""
  return (
    cfg.base_config_hash == loaded.config_hash
    and cfg.base_fingerprint == loaded.fingerprint
  )


def check_base(cfg: AdapterConfig, loaded: loading.LoadedModel) -> None:
  """Raises ValueError unless the adapter was trained on this base.

  Args:
    cfg: of the adapter.
    loaded: the base it is about to be used with.
  """
  if is_of(cfg, loaded):
    return
  difference = (
    f'the same sizes but other weights ({loaded.fingerprint[:12]}…, not '
    f'{cfg.base_fingerprint[:12]}…)'
  )
  if cfg.base_config_hash != loaded.config_hash:
    difference = (
      f'other sizes or constants (config {loaded.config_hash[:12]}…, not '
      f'{cfg.base_config_hash[:12]}…)'
    )
  name, same = cfg.base_model_id, cfg.base_model_id == loaded.source
  raise ValueError(
    f'adapter was trained on base {name!r}, but the base '
    + ('is another of that name, ' if same else f'is {loaded.source!r}, ')
    + f'which has {difference}; load '
    + (f'the {name!r} of the training' if same else repr(name))
    + ', or train an adapter on this base'
  )


def check_weights(
  folder: str | os.PathLike,
  flat: arrays.FlatParams,
  cfg: AdapterConfig,
  model: config.ModelConfig,
) -> None:
  """Raises ValueError if an adapter does not fit a base's sizes.

  Args:
    folder: of the adapter, for the message.
    flat: all its weights.
    cfg: of the adapter.
    model: sizes of the base that it was trained on.
  """
  with pair.naming(os.fspath(folder), KIND):
    cfg.stream.check_fits(model)
    _ = eos.check('provenance.eos_ids', cfg.eos_ids, model.vocab_size)
  is_lossless = cfg.stream.mode == 'lossless'
  num_layers = cfg.stream.num_msa_layers if is_lossless else model.num_layers
  folded = adapter_shapes.of_lora(model, cfg.folded_lora, model.num_layers)
  expected = (
    adapter_shapes.of_streams(model, cfg.stream)
    | dict(adapter_shapes.of_lora(model, cfg.lora, num_layers))
    | {f'{_FOLDED}{path}': shape for path, shape in folded}
  )
  found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
  source = f'adapter {os.fspath(folder)!r}'
  weights.refuse(
    source, weights.problems(expected, found), 'copy or save it again'
  )


def parameter_counts(flat: arrays.FlatParams) -> dict[str, int]:
  """Parameters of an adapter by part.

  Returns:
    `embedding` (γh), `pruning` (16h at rank 8), `insertion`, `coupling`, their
    sum `streams`, `lora`, `folded` (LoRA that lossless streams stand on), and
    `total`.
  """
  parts = {
    'embedding': 'streams/embedding',
    'pruning': 'pruning/',
    'insertion': 'streams/insertion/',
    'coupling': 'coupling/',
    'lora': 'layers/',
    'folded': _FOLDED,
  }
  counts = {
    name: sum(int(v.size) for p, v in flat.items() if p.startswith(prefix))
    for name, prefix in parts.items()
  }
  counts['streams'] = sum(
    counts[n] for n in ('embedding', 'pruning', 'insertion', 'coupling')
  )
  total = counts['streams'] + counts['lora'] + counts['folded']
  return counts | {'total': total}
