# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of training; see `config` for the others."""

import dataclasses

import gin

from specstream_jax.config import bounds, checks


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Weights of the n-gram objective (paper, eq. 5) and its chunking.

  Attributes:
    main_weight: a_0.
    stream_weight: a_j, the same for every stream; 0 is plain LoRA, no streams
      run.
    stream_decay: a_j = stream_weight * stream_decay**(j - 1).
    teacher_weight: share of the streams' loss that is the cross-entropy with
      the main stream's own distribution at the same token; 0 to 1.
    total_variation_weight: share that is the total variation to that
      distribution, how often sampling refuses what the stream draws; 0 to 1,
      and at most 1 with teacher_weight. The rest is cross-entropy with the
      token.
    hidden_weight: beside those shares, weight of the squared distance to the
      main stream's last hidden state at the same token.
    pruning_weight: weight of the pruning adapter's next-token loss.
    pruning_anchors: anchors per row the pruning adapter is trained on; its
      loss goes through the LM head, so a subset keeps it cheap.
    anchors_per_sequence: positions per row that carry loss, hence streams;
      rows with more are sampled.
    stream_tokens: stream tokens per row of a training step, whatever the number
      of streams: random positions get random numbers of their first streams,
      see `training.anchors`. 0 gives every anchor all streams.
    curriculum_steps: steps during which no position gets more than a number of
      streams that grows evenly from 1 to all; needs stream_tokens.
    coupling_weight: of the loss of stream states that know their token's
      parent, with the a_j of the streams; see `modeling.streams.Coupling`.
    chunk_size: rows of the LM head product that a device computes at once.
  """

  main_weight: float = 1.0
  stream_weight: float = 0.25
  stream_decay: float = 1.0
  teacher_weight: float = 0.0
  total_variation_weight: float = 0.0
  hidden_weight: float = 0.0
  pruning_weight: float = 0.1
  pruning_anchors: int = 16
  coupling_weight: float = 1.0
  anchors_per_sequence: int = 128
  stream_tokens: int = 0
  curriculum_steps: int = 0
  chunk_size: int = 512

  def __post_init__(self):
    checks.config_types(self)
    for field in dataclasses.fields(self):
      name, value = f'ObjectiveConfig.{field.name}', getattr(self, field.name)
      if isinstance(field.default, int):
        checks.count(name, value, 0, bounds.COUNT)
      else:
        checks.at_least(name, value, 0.0)
    checks.at_least('ObjectiveConfig.chunk_size', self.chunk_size, 1)
    checks.check(
      self.teacher_weight <= 1,
      f'ObjectiveConfig.teacher_weight is {self.teacher_weight}; accepted: 0 to '
      '1',
    )
    room = 1 - self.teacher_weight
    checks.check(
      self.total_variation_weight <= room + 1e-9,
      f'ObjectiveConfig.total_variation_weight is {self.total_variation_weight} '
      f'beside a teacher_weight of {self.teacher_weight}; accepted: 0 to '
      f'{room:g}, as both are shares of one loss',
    )
    checks.check(
      self.stream_tokens > 0 or not self.curriculum_steps,
      f'ObjectiveConfig.curriculum_steps is {self.curriculum_steps} but '
      'stream_tokens is 0; set stream_tokens, whose blocks it keeps short, or '
      'curriculum_steps=0',
    )
    checks.at_least(
      'ObjectiveConfig.anchors_per_sequence', self.anchors_per_sequence, 1
    )

  @property
  def stream_terms(self) -> dict[str, float]:
    """Weights of the terms of a stream's loss, see `training.losses`."""
    shares = self.teacher_weight + self.total_variation_weight
    terms = {
      'stream': max(1.0 - shares, 0.0),
      'teacher': self.teacher_weight,
      'total_variation': self.total_variation_weight,
      'hidden': self.hidden_weight,
    }
    return {name: weight for name, weight in terms.items() if weight}

  def num_groups(self, num_streams: int) -> int:
    """Groups of slots per row, with room for all streams of one anchor each."""
    return self.stream_tokens // num_streams

  def check_fits(self, num_streams: int) -> None:
    """Raises ValueError if the streams of an anchor exceed the budget."""
    checks.check(
      not self.stream_tokens or self.stream_tokens >= num_streams,
      f'ObjectiveConfig.stream_tokens is {self.stream_tokens} but '
      f'StreamConfig.num_streams is {num_streams}; use stream_tokens >= '
      f'{num_streams}, or 0 for all streams of every anchor',
    )

  def stream_weights(self, num_streams: int) -> tuple[float, ...]:
    """a_1 … a_γ."""
    return tuple(
      self.stream_weight * self.stream_decay**j for j in range(num_streams)
    )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and linear decay to zero.

  Attributes:
    learning_rate: peak rate of every adapter weight but P_j.
    embedding_learning_rate: peak rate of the stream embeddings P_j.
    warmup_steps: updates until the peak is reached.
    weight_decay: AdamW's.
    beta1: AdamW's decay of the mean of gradients.
    beta2: AdamW's decay of the mean of their squares.
    clip_norm: gradients of a larger norm are scaled down to it.
    accumulation_steps: batches that make one update, with the gradient of one
      batch of all their rows; the run's last update may have fewer.
    trainable: regular expression of the paths of adapter weights to train,
      such as `coupling/`; the others stay as they are. Empty trains all.
  """

  learning_rate: float = 1e-3
  embedding_learning_rate: float = 0.05
  warmup_steps: int = 20
  weight_decay: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.99
  clip_norm: float = 1.0
  accumulation_steps: int = 1
  trainable: str = ''

  def __post_init__(self):
    checks.config_types(self)
    for name in ('learning_rate', 'embedding_learning_rate', 'weight_decay'):
      checks.at_least(f'OptimizerConfig.{name}', getattr(self, name), 0.0)
    for name, least in (('warmup_steps', 0), ('accumulation_steps', 1)):
      value = getattr(self, name)
      checks.count(f'OptimizerConfig.{name}', value, least, bounds.COUNT)
    checks.pattern('OptimizerConfig.trainable', self.trainable)
    checks.check(
      self.clip_norm > 0,
      f'OptimizerConfig.clip_norm is {self.clip_norm}; it must be > 0',
    )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length of a run and how often it logs, evaluates and saves.

  Attributes:
    num_steps: batches; with `accumulation_steps` an update takes several.
    batch_size: rows of a step over all devices and processes.
    seed: of the weights' initialisation and the order of the data.
    log_every: steps between two lines of metrics.
    eval_every: steps between two evaluations.
    eval_batches: batches of an evaluation.
    save_every: steps between two checkpoints.
    keep_checkpoints: how many of them stay, beside the best.
    patience: evaluations in a row that better neither drafts nor answers, after
      which the run ends; 0 goes to the last step.
  """

  num_steps: int = 1000
  batch_size: int = 8
  seed: int = 0
  log_every: int = 10
  eval_every: int = 200
  eval_batches: int = 8
  save_every: int = 100
  keep_checkpoints: int = 2
  patience: int = 0

  def __post_init__(self):
    checks.config_types(self)
    checks.at_least('TrainConfig.seed', self.seed, 0)
    checks.seed('TrainConfig.seed', self.seed)
    for field in dataclasses.fields(self):
      name, value = f'TrainConfig.{field.name}', getattr(self, field.name)
      most = bounds.ROWS if field.name == 'batch_size' else bounds.COUNT
      if field.name != 'seed':
        checks.count(name, value, 0 if field.name == 'patience' else 1, most)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DataConfig:
  """How token records become batches.

  Attributes:
    sequence_length: T of a training row.
    packed: several examples to a row.
    eval_batch_size: B of evaluation batches, one example to a row.
  """

  sequence_length: int = 256
  packed: bool = True
  eval_batch_size: int = 8

  def __post_init__(self):
    checks.config_types(self)
    checks.count(
      'DataConfig.sequence_length', self.sequence_length, 2, bounds.TOKENS
    )
    checks.count(
      'DataConfig.eval_batch_size', self.eval_batch_size, 1, bounds.ROWS
    )
