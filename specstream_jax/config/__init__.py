# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses with every size and choice; the only place that validates.

Those of the model, of sampling, of tasks and of training are in `config.model`,
`config.sampling`, `config.tasks` and `config.training`, and are found here too.

Each dataclass is hashable, so it can be a static argument of `jax.jit`, and
gin-configurable (`--gin.StreamConfig.num_streams=3`). Validation, of every
field's type first, runs in `__post_init__`, that is, after gin overrides.
"""

import dataclasses
from typing import Any

import gin

from specstream_jax.config import bounds, checks
from specstream_jax.config.model import (
  DTYPES as DTYPES,
  WEIGHTS_DTYPES as WEIGHTS_DTYPES,
  AttentionConfig as AttentionConfig,
  MlpConfig as MlpConfig,
  ModelConfig as ModelConfig,
  NormConfig as NormConfig,
  RopeScaling as RopeScaling,
)
from specstream_jax.config.sampling import SamplingConfig as SamplingConfig
from specstream_jax.config.streaming import (
  StreamedWeightsConfig as StreamedWeightsConfig,
)
from specstream_jax.config.tasks import (
  EvalConfig as EvalConfig,
  TaskConfig as TaskConfig,
)
from specstream_jax.config.training import (
  DataConfig as DataConfig,
  ObjectiveConfig as ObjectiveConfig,
  OptimizerConfig as OptimizerConfig,
  TrainConfig as TrainConfig,
)

LORA_MODULES = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
# Beyond any draft; building and compiling take time for each.
MAX_STREAMS = 128
MAX_NODES = 4096
MAX_BRANCHING = 1024


@gin.configurable
@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adaptation of the projections; rank 0 switches it off.

  Attributes:
    rank: width of the two matrices.
    alpha: what LoRA adds is multiplied by alpha / rank.
    modules: projections that have one, of `LORA_MODULES`.
  """

  rank: int = 16
  alpha: float = 32.0
  modules: tuple[str, ...] = LORA_MODULES

  def __post_init__(self):
    checks.config_types(self)
    checks.count('LoraConfig.rank', self.rank, 0, bounds.RANK)
    checks.at_least('LoraConfig.alpha', self.alpha, 0.0)
    for module in self.modules:
      checks.one_of('LoraConfig.modules entry', module, LORA_MODULES)

  @property
  def scale(self) -> float:
    return self.alpha / self.rank if self.rank else 0.0


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """Speculative streams: how many, in which layers, and how they start.

  Attributes:
    num_streams: γ, the number of speculative streams J.
    num_msa_layers: N_s, the top layers that carry streams.
    mode: `fine_tuned`, LoRA acts on main and stream tokens; `lossless`, LoRA
      acts on stream tokens only and the main stream is the untouched base.
    insertion: what of the main stream's state M_t a stream starts from:
      f_η(M_t) with f_η `identity` or `low_rank`, or `mask`, nothing: stream j
      starts as the learned P_j and sees the token through attention alone.
    insertion_rank: rank of f_η when `low_rank`.
    embedding: `learned` adds P_j; `value_rotation` rotates the values of
      stream j by j·rotation_step and has no parameters (paper, appendix B).
    position: RoPE position of stream j at t: `anchor` = t, `future` = t + j.
    pruning_rank: rank of the pruning adapter o_θ; 0 leaves it out.
    pruning_residual: the early exit reads M + o_θ(M); if False, o_θ(M) alone.
    coupling_rank: width of the map from a draft token's parent to a correction
      of its logits (ours, not in the paper); 0 leaves it out.
    coupling: `bilinear` sees the parent alone; `mlp` also the state of the
      stream that drafts.
    embedding_init_scale: standard deviation of P_j relative to the RMS of the
      main stream's hidden state at insertion.
    rotation_step: ε of value rotation, in radians.
  """

  num_streams: int = 4
  num_msa_layers: int = 10
  mode: str = 'fine_tuned'
  insertion: str = 'identity'
  insertion_rank: int = 8
  embedding: str = 'learned'
  position: str = 'future'
  pruning_rank: int = 8
  pruning_residual: bool = True
  coupling_rank: int = 0
  coupling: str = 'bilinear'
  embedding_init_scale: float = 0.5
  rotation_step: float = 1e-3

  def __post_init__(self):
    checks.config_types(self)
    checks.at_least('StreamConfig.num_streams', self.num_streams, 1)
    checks.at_most('StreamConfig.num_streams', self.num_streams, MAX_STREAMS)
    checks.at_least('StreamConfig.num_msa_layers', self.num_msa_layers, 1)
    for name, least in (
      ('insertion_rank', 1),
      ('pruning_rank', 0),
      ('coupling_rank', 0),
    ):
      value = getattr(self, name)
      checks.count(f'StreamConfig.{name}', value, least, bounds.RANK)
    for name in ('embedding_init_scale', 'rotation_step'):
      checks.at_least(f'StreamConfig.{name}', getattr(self, name), 0.0)
    checks.one_of('StreamConfig.mode', self.mode, ('fine_tuned', 'lossless'))
    checks.one_of(
      'StreamConfig.insertion', self.insertion, ('identity', 'low_rank', 'mask')
    )
    checks.one_of(
      'StreamConfig.embedding', self.embedding, ('learned', 'value_rotation')
    )
    checks.one_of('StreamConfig.position', self.position, ('anchor', 'future'))
    checks.one_of('StreamConfig.coupling', self.coupling, ('bilinear', 'mlp'))
    checks.check(
      self.insertion != 'mask' or self.embedding == 'learned',
      f"StreamConfig.insertion is 'mask' but StreamConfig.embedding is "
      f"{self.embedding!r}; use embedding='learned', of which mask streams are "
      'made',
    )

  def check_fits(self, model: ModelConfig) -> None:
    """Raises ValueError if the model has fewer layers than N_s."""
    checks.check(
      self.num_msa_layers <= model.num_layers,
      f'StreamConfig.num_msa_layers is {self.num_msa_layers} but the model has '
      f'{model.num_layers} layers; use num_msa_layers <= {model.num_layers}',
    )


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """Shape of the draft tree.

  Attributes:
    kind: `full` (branching^depth Cartesian tree), `best_first` (num_nodes by
      joint stream probability), `fixed` (rank paths, Medusa "choices"),
      `chain` (top-1 of every stream).
    depth: deepest draft token; at most the number of streams.
    branching: k, children per node; for `best_first` the candidates per depth.
    num_nodes: M including the root, for `best_first`.
    choices: rank paths for `fixed`, e.g. ((0,), (1,), (0, 0)).
    keep_nodes: with a pruning adapter, nodes that survive into the MSA layers
      (root included); 0 keeps all.
  """

  kind: str = 'best_first'
  depth: int = 4
  branching: int = 4
  num_nodes: int = 16
  choices: tuple[tuple[int, ...], ...] = ()
  keep_nodes: int = 0

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of(
      'TreeConfig.kind', self.kind, ('full', 'best_first', 'fixed', 'chain')
    )
    checks.at_least('TreeConfig.depth', self.depth, 1)
    checks.at_least('TreeConfig.branching', self.branching, 1)
    checks.count('TreeConfig.num_nodes', self.num_nodes, 2, MAX_NODES)
    checks.count('TreeConfig.keep_nodes', self.keep_nodes, 0, MAX_NODES)
    if self.kind == 'fixed':
      self._check_choices()
    checks.at_most('TreeConfig.branching', self.branching, MAX_BRANCHING)
    checks.at_most('depth of TreeConfig', self.max_depth, MAX_STREAMS)
    checks.at_most('number of nodes of TreeConfig', self.size, MAX_NODES)

  def _check_choices(self) -> None:
    paths = set(self.choices)
    checks.check(
      bool(paths), "TreeConfig.choices is empty; kind 'fixed' needs rank paths"
    )
    checks.check(
      len(paths) == len(self.choices), 'TreeConfig.choices has duplicates'
    )
    for path in self.choices:
      checks.check(
        bool(path) and all(0 <= rank < MAX_BRANCHING for rank in path),
        f'TreeConfig.choices entry {path!r} is not a path of ranks >= 0 and < '
        f'{MAX_BRANCHING}',
      )
      checks.check(
        len(path) == 1 or path[:-1] in paths,
        f'TreeConfig.choices has {path!r} but not its parent {path[:-1]!r}',
      )

  @property
  def max_depth(self) -> int:
    """Depth of the deepest node; the root has depth 0."""
    return max(map(len, self.choices)) if self.kind == 'fixed' else self.depth

  @property
  def size(self) -> int:
    """M: nodes including the root."""
    if self.kind == 'full':
      return sum(self.branching**d for d in range(self.depth + 1))
    if self.kind == 'fixed':
      return 1 + len(self.choices)
    return self.num_nodes if self.kind == 'best_first' else 1 + self.depth

  def check_fits(self, streams: StreamConfig) -> None:
    """Raises ValueError if the tree is deeper than there are streams."""
    checks.check(
      self.max_depth <= streams.num_streams,
      f'draft tree has depth {self.max_depth} but the adapter has '
      f'{streams.num_streams} speculative streams; use tree depth <= '
      f'{streams.num_streams} or train with num_streams >= {self.max_depth}',
    )
    checks.check(
      not self.keep_nodes or streams.pruning_rank > 0,
      f'TreeConfig.keep_nodes is {self.keep_nodes} but the adapter has no '
      'pruning adapter; use keep_nodes=0 or train with pruning_rank >= 1',
    )


SCHEDULES = ('deferred', 'parallel', 'likely')


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """Static sizes of one compiled decoder.

  Attributes:
    max_new_tokens: size of the output buffer and the largest per-row limit.
    cache_length: S, cache slots per row; 0 derives it from the prompt bucket.
    schedule: `parallel` (streams at every node, one pass), `deferred` (verify
      first, then the streams of the accepted leaf alone) or `likely` (streams
      at the likeliest leaves, `deferred` where it was another node).
    eos_ids: token ids that end a row; the id itself is emitted.
    stop_sequences: token id sequences that end a row; emitted as well.
    prompt_bucket: prompts are padded to a multiple of this many tokens.
  """

  max_new_tokens: int = 64
  cache_length: int = 0
  schedule: str = 'deferred'
  eos_ids: tuple[int, ...] = ()
  stop_sequences: tuple[tuple[int, ...], ...] = ()
  prompt_bucket: int = 64

  def __post_init__(self):
    checks.config_types(self)
    checks.at_least('DecodeConfig.max_new_tokens', self.max_new_tokens, 1)
    checks.check(
      self.max_new_tokens <= bounds.TOKENS,
      f'DecodeConfig.max_new_tokens is {self.max_new_tokens}; it must be at '
      f'most {bounds.TOKENS}, and every one takes room in the cache',
    )
    for token in self.eos_ids:
      checks.at_least('an entry of DecodeConfig.eos_ids', token, 0)
    for name, least in (('cache_length', 0), ('prompt_bucket', 1)):
      value = getattr(self, name)
      checks.count(f'DecodeConfig.{name}', value, least, bounds.TOKENS)
    checks.one_of('DecodeConfig.schedule', self.schedule, SCHEDULES)
    checks.check(
      all(self.stop_sequences),
      'DecodeConfig.stop_sequences has an empty sequence; remove it',
    )


def _defaults(cls: type) -> dict[str, Any]:
  """Fields of a dataclass that have a plain default, with it."""
  fields = dataclasses.fields(cls)
  is_plain = lambda field: field.default is not dataclasses.MISSING
  return {field.name: field.default for field in filter(is_plain, fields)}


def to_json(cfg: Any) -> dict[str, Any]:
  """A config as plain JSON types."""
  return dataclasses.asdict(cfg)


def from_json(cls: type, values: dict[str, Any]) -> Any:
  """The config of class `cls` from `to_json` output.

  Fields that an older file lacks get the class's own defaults, whatever gin
  binds them to: a file says what it holds, not what the next run wants.

  Raises:
    ValueError: a field is unknown, with the accepted names, or has a value of
      another type.
  """
  checks.check(
    isinstance(values, dict),
    f'{cls.__name__} is {values!r}; accepted: an object of its fields',
  )
  names = {field.name for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - names)
  checks.check(
    not unknown,
    f'{cls.__name__} does not know {unknown}; accepted: {sorted(names)}',
  )
  values = _defaults(cls) | values
  for name, value in values.items():
    nested = checks.nested_config(cls, name)
    if nested and isinstance(value, dict):
      values[name] = from_json(nested, value)
  return cls(**values)
