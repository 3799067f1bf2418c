# SPDX-License-Identifier: Apache-2.0
"""The language in which an architecture is said: one block, configured.

What the fields cannot say is not supported. Their defaults are a Llama's, and
a field at its default does not enter a checkpoint's hash: an adapter stays
valid when the language grows.
"""

import dataclasses

import gin

from specstream_jax.config import checks

DTYPES = ('float32', 'bfloat16')
WEIGHTS_DTYPES = ('', 'int8')
# Beyond any model; building and compiling take time for each.
MAX_LAYERS = 1024
_MAX_SIZE = 2**31 - 1  # of an axis
ROPE_KINDS = ('default', 'linear', 'llama3', 'dynamic', 'yarn', 'longrope')
ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh', 'relu')
BLOCKS = ('pre', 'pre_post', 'post', 'parallel', 'parallel_shared')
LAYER_KINDS = ('full', 'window', 'nope')


@gin.configurable
@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How RoPE frequencies are stretched (Hugging Face `rope_type`).

  Attributes:
    kind: of `ROPE_KINDS`; the others say which fields it reads.
    factor: linear, llama3, dynamic, yarn.
    low_freq_factor: llama3.
    high_freq_factor: llama3.
    original_max_position_embeddings: llama3, dynamic, yarn, longrope.
    attention_factor: yarn, longrope: cosine and sine are multiplied by it.
    beta_fast: yarn.
    beta_slow: yarn.
    is_truncated: yarn, whether the ramp's ends are whole numbers.
    divisors: longrope, what each of the H/2 frequencies is divided by in texts
      within the original positions.
    long_divisors: longrope, the same of longer texts, which are not supported.
  """

  kind: str = 'default'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192
  attention_factor: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  is_truncated: bool = True
  divisors: tuple[float, ...] = ()
  long_divisors: tuple[float, ...] = ()

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of('RopeScaling.kind', self.kind, ROPE_KINDS)
    for name in ('factor', 'attention_factor', 'beta_fast', 'beta_slow'):
      value = getattr(self, name)
      checks.check(value > 0, f'RopeScaling.{name} is {value}; it must be > 0')
    checks.check(
      self.high_freq_factor > self.low_freq_factor,
      f'RopeScaling.high_freq_factor is {self.high_freq_factor}; it must be '
      f'greater than low_freq_factor, which is {self.low_freq_factor}',
    )
    checks.check(
      all(divisor > 0 for divisor in self.divisors),
      f'RopeScaling.divisors is {self.divisors}; each must be > 0',
    )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class NormConfig:
  """How hidden states are normalised; epsilon is `ModelConfig.rms_norm_eps`.

  Attributes:
    kind: `rms`, or `layer` (mean taken off, scale and bias).
    is_unit_offset: the weight w stands for a scale of 1 + w.
  """

  kind: str = 'rms'
  is_unit_offset: bool = False

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of('NormConfig.kind', self.kind, ('rms', 'layer'))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """What attention adds to plain grouped queries.

  Attributes:
    has_bias: of query, key and value.
    has_out_bias: of the projection back.
    qk_norm: RMS norm of queries and keys: `none`, per `head`, or over the
      `full` width.
    query_scale: what queries are multiplied by; 0 is H ** -0.5.
    softcap: logits become softcap * tanh(logits / softcap); 0 leaves them.
  """

  has_bias: bool = False
  has_out_bias: bool = False
  qk_norm: str = 'none'
  query_scale: float = 0.0
  softcap: float = 0.0

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of(
      'AttentionConfig.qk_norm', self.qk_norm, ('none', 'head', 'full')
    )
    for name in ('query_scale', 'softcap'):
      checks.at_least(f'AttentionConfig.{name}', getattr(self, name), 0.0)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MlpConfig:
  """down(act(gate(x)) * up(x)) or, without a gate, down(act(up(x))).

  Attributes:
    activation: of `ACTIVATIONS`: `silu`, `gelu`, `gelu_tanh` or `relu`.
    is_gated: whether there is a gate.
    has_bias: of all its projections.
  """

  activation: str = 'silu'
  is_gated: bool = True
  has_bias: bool = False

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of('MlpConfig.activation', self.activation, ACTIVATIONS)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dense decoder; `hidden_size` is D, `vocab_size` is V.

  Attributes:
    vocab_size: rows of the embedding.
    hidden_size: width of the hidden states.
    intermediate_size: width of the MLP.
    num_layers: layers, all of one structure.
    num_heads: query heads N.
    num_kv_heads: key-value heads K.
    head_dim: H, apart from D / N.
    rope_theta: RoPE base of `full` layers and, but for `local_rope_theta`, of
      `window` layers.
    rope_scaling: of the frequencies of `rope_theta`.
    rms_norm_eps: epsilon of every norm.
    max_position_embeddings: longest text.
    tie_word_embeddings: the LM head is the embedding.
    dtype: of weights and activations.
    weights_dtype: of the matrices where they decode, `int8` (see
      `modeling.int8`); empty is `dtype`.
    family: whose checkpoints look like this, see `checkpoints.families`.
    norm: how hidden states are normalised.
    attention: biases, norms and scale of attention.
    mlp: activation and form of the MLP.
    block: where norms stand: `pre`, `pre_post`, `post`; `parallel` runs
      attention and MLP on the same input, each after its norm, and
      `parallel_shared` after one norm.
    layer_kinds: per layer `full` (attends to all before), `window` (to the
      last `window` tokens, itself included) or `nope` (to all, without RoPE);
      empty if all are full.
    window: of the layers of that kind.
    local_rope_theta: RoPE base of `window` layers, without scaling; 0 is as
      the others.
    rotary_dim: leading dims of a head that RoPE turns; 0 is all of them.
    num_learned_positions: rows of a table of learned positions, which then
      stand in for RoPE; 0 is RoPE.
    position_offset: row of that table that position 0 has.
    embedding_scale: token embeddings are multiplied by it.
    residual_scale: what a block adds is multiplied by it.
    logit_divisor: the LM head's logits are divided by it.
    logit_softcap: as `AttentionConfig.softcap`, of the LM head.
    has_head_bias: the LM head has a bias.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling = RopeScaling()
  rms_norm_eps: float = 1e-5
  max_position_embeddings: int = 2048
  tie_word_embeddings: bool = False
  dtype: str = 'float32'
  weights_dtype: str = ''
  family: str = 'llama'
  norm: NormConfig = NormConfig()
  attention: AttentionConfig = AttentionConfig()
  mlp: MlpConfig = MlpConfig()
  block: str = 'pre'
  layer_kinds: tuple[str, ...] = ()
  window: int = 0
  local_rope_theta: float = 0.0
  rotary_dim: int = 0
  num_learned_positions: int = 0
  position_offset: int = 0
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  logit_divisor: float = 1.0
  logit_softcap: float = 0.0
  has_head_bias: bool = False

  @property
  def numbers(self) -> str:
    """Number types in words: 'float32', or 'float32, int8 weights'."""
    weights = f', {self.weights_dtype} weights' if self.weights_dtype else ''
    return self.dtype + weights

  def __post_init__(self):
    checks.config_types(self)
    for name in (
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_layers',
      'num_heads',
      'num_kv_heads',
      'head_dim',
      'max_position_embeddings',
    ):
      checks.at_least(f'ModelConfig.{name}', getattr(self, name), 1)
      checks.at_most(f'ModelConfig.{name}', getattr(self, name), _MAX_SIZE)
    checks.at_most('ModelConfig.num_layers', self.num_layers, MAX_LAYERS)
    for name in (
      'window',
      'rotary_dim',
      'num_learned_positions',
      'position_offset',
    ):
      checks.at_least(f'ModelConfig.{name}', getattr(self, name), 0)
      checks.at_most(f'ModelConfig.{name}', getattr(self, name), _MAX_SIZE)
    self._check_numbers()
    checks.one_of('ModelConfig.dtype', self.dtype, DTYPES)
    checks.one_of(
      'ModelConfig.weights_dtype', self.weights_dtype, WEIGHTS_DTYPES
    )
    checks.one_of('ModelConfig.block', self.block, BLOCKS)
    checks.check(
      self.num_heads % self.num_kv_heads == 0,
      f'ModelConfig.num_heads is {self.num_heads}, not a multiple of '
      f'num_kv_heads, which is {self.num_kv_heads}',
    )
    checks.check(
      not (self.has_head_bias and self.tie_word_embeddings),
      'ModelConfig.has_head_bias is True, but the LM head is the embedding; set '
      'tie_word_embeddings to False',
    )
    checks.check(
      not self.num_learned_positions
      or self.num_learned_positions > self.position_offset,
      f'ModelConfig.num_learned_positions is {self.num_learned_positions}; it '
      f'must be more than position_offset, which is {self.position_offset}',
    )
    self._check_rope()
    self._check_layers()

  def _check_numbers(self) -> None:
    for name in (
      'rope_theta',
      'rms_norm_eps',
      'local_rope_theta',
      'logit_softcap',
    ):
      checks.at_least(f'ModelConfig.{name}', getattr(self, name), 0.0)
    for name in ('embedding_scale', 'residual_scale', 'logit_divisor'):
      checks.at_least(f'ModelConfig.{name}', getattr(self, name), 1e-30)

  def _check_rope(self) -> None:
    checks.check(
      self.head_dim % 2 == 0,
      f'ModelConfig.head_dim is {self.head_dim}; RoPE needs an even number',
    )
    checks.check(
      self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
      f'ModelConfig.rotary_dim is {self.rotary_dim}; it must be even and at '
      f'most head_dim, which is {self.head_dim}',
    )
    divisors = self.rope_scaling.divisors
    wanted = (
      self.num_rotated // 2 if self.rope_scaling.kind == 'longrope' else 0
    )
    checks.check(
      len(divisors) == wanted,
      f'RopeScaling.divisors has {len(divisors)} numbers; kind '
      f'{self.rope_scaling.kind!r} of a model that turns {self.num_rotated} '
      f'dims of a head needs {wanted}',
    )

  def _check_layers(self) -> None:
    for kind in self.layer_kinds:
      checks.one_of('ModelConfig.layer_kinds entry', kind, LAYER_KINDS)
    checks.check(
      len(self.layer_kinds) in (0, self.num_layers),
      f'ModelConfig.layer_kinds has {len(self.layer_kinds)} entries, but '
      f'num_layers is {self.num_layers}',
    )
    checks.check(
      ('window' in self.layer_kinds) == (self.window > 0),
      f'ModelConfig.window is {self.window}, and layer_kinds '
      f'{"has" if "window" in self.layer_kinds else "has no"} layers of that '
      'kind; name both or neither',
    )

  @property
  def group_size(self) -> int:
    """Query heads per KV head, G = N/K."""
    return self.num_heads // self.num_kv_heads

  @property
  def num_rotated(self) -> int:
    """Leading dims of a head that RoPE turns."""
    return self.rotary_dim or self.head_dim

  @property
  def most_positions(self) -> int:
    """The longest text that has an answer at all; 0 where any has."""
    scaling = self.rope_scaling
    if self.num_learned_positions:
      return self.num_learned_positions - self.position_offset
    has_other = scaling.divisors != scaling.long_divisors
    return scaling.original_max_position_embeddings if has_other else 0

  @property
  def kinds(self) -> tuple[str, ...]:
    """Kind of every layer."""
    return self.layer_kinds or ('full',) * self.num_layers


def lowest_layers(cfg: ModelConfig, num_layers: int) -> ModelConfig:
  """A model of the first layers alone, each of the kind it has.

  Args:
    cfg: the whole model.
    num_layers: of the new one; at most those of `cfg`.
  """
  kinds = cfg.layer_kinds[:num_layers]
  has_window = 'window' in kinds
  return dataclasses.replace(
    cfg,
    num_layers=num_layers,
    layer_kinds=kinds if set(kinds) != {'full'} else (),
    window=cfg.window if has_window else 0,
    local_rope_theta=cfg.local_rope_theta if has_window else 0.0,
  )


def beyond_defaults(cfg: ModelConfig) -> dict[str, object]:
  """The config as a dict; fields that came later only where they say more.

  A field left out is at its default, as it was before there was the field.
  """
  return _spoken(cfg, _FIRST)


# Fields that every file of the first language has.
_FIRST = {
  'ModelConfig': (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_layers',
    'num_heads',
    'num_kv_heads',
    'head_dim',
    'rope_theta',
    'rope_scaling',
    'rms_norm_eps',
    'max_position_embeddings',
    'tie_word_embeddings',
    'dtype',
  ),
  'RopeScaling': (
    'kind',
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
}


def _spoken(cfg, first):
  named = first.get(type(cfg).__name__, ())
  values = {}
  for field in dataclasses.fields(cfg):
    value = getattr(cfg, field.name)
    if field.name in named or value != field.default:
      is_config = dataclasses.is_dataclass(value)
      values[field.name] = _spoken(value, first) if is_config else value
  return values
