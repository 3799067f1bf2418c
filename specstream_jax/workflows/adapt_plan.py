# SPDX-License-Identifier: Apache-2.0
"""What an adaptation trains, how long, and what that takes.

Settings are those that the adapters in docs/LOG.md were trained with: streams
in half of the layers, a coupling; alpha / rank is 2 where one LoRA serves
answers and drafts, 16 where it serves drafts alone. Whatever gin sets comes
before them.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import statistics
from typing import Any

import gin
import jax

from specstream_jax import config, memory
from specstream_jax.data import chat_rows, vocabulary as vocabulary_lib
from specstream_jax.outputs import scratch
from specstream_jax.report import plots
from specstream_jax.workflows import dry_run, train as train_workflow

# Times through the rows; the model's own answers are harder to learn by heart.
EPOCHS = {'fine_tuned': 6, 'lossless': 15}
_FEWEST_STEPS = 20
_MOST_STEPS = 4000
_PROBE_STEPS = 4
_ROUND = 64


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of the training examples.

  Attributes:
    num_examples: how many there are.
    mean: of prompt and answer.
    longest: of prompt and answer.
    answer: that 95 % of the answers keep to.
  """

  num_examples: int
  mean: float
  longest: int
  answer: int

  @property
  def num_tokens(self) -> float:
    """Of all examples."""
    return self.num_examples * self.mean


def of_manifest(manifest: Mapping[str, Any]) -> Lengths:
  """Lengths of records."""
  total = manifest['lengths']['total']
  answer = int(manifest['lengths']['targets']['p95'])
  return Lengths(manifest['num_examples'], total['mean'], total['max'], answer)


def of_turns(
  turns: Sequence[chat_rows.Turn],
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  longest: int,
  own_tokens: int,
) -> Lengths:
  """Lengths of examples that are not written yet, cut at `longest`.

  Args:
    turns: at least one.
    vocabulary: of the model.
    longest: tokens of an example, at most.
    own_tokens: that are taken for an answer where there is none.
  """
  totals, answers = [], []
  for turn in turns:
    prompt = len(vocabulary.encode_inputs(turn.prompt))
    answer = own_tokens
    if turn.answer is not None:
      answer = len(vocabulary.encode_targets(turn.answer))
    answers.append(answer)
    totals.append(min(prompt + answer, longest))
  answers.sort()
  return Lengths(
    len(totals),
    statistics.mean(totals),
    max(totals),
    answers[int(0.95 * (len(answers) - 1))],
  )


def is_accelerated() -> bool:
  """Whether there is more than a CPU to compute with."""
  return jax.default_backend() != 'cpu'


def longest_example(cfg: config.ModelConfig) -> int:
  """Tokens of an example, at most; prompts that are longer lose their start."""
  most = 2048 if is_accelerated() else 512
  known = (cfg.max_position_embeddings, cfg.most_positions)
  return min([most, *(n for n in known if n > 0)])


def recipe(
  cfg: config.ModelConfig,
  mode: str,
  lengths: Lengths,
  *,
  num_steps: int,
  batch_size: int = 0,
) -> train_workflow.Recipe:
  """The settings of a run.

  Args:
    cfg: of the base model.
    mode: `fine_tuned` or `lossless`.
    lengths: of its examples.
    num_steps: how many.
    batch_size: rows of a step; 0 takes what fits this kind of device.
  """
  fast, own = is_accelerated(), mode == 'lossless'
  length = min(
    max(_round(lengths.longest), 256), max(longest_example(cfg), _ROUND)
  )
  stream = _made(
    config.StreamConfig,
    mode=mode,
    num_streams=8 if fast else 4,
    num_msa_layers=max(cfg.num_layers // 2, 1),
    coupling_rank=256 if own else 64,
    coupling='mlp' if own else 'bilinear',
  )
  data = _made(
    config.DataConfig,
    sequence_length=length,
    eval_batch_size=_eval_batch(),
  )
  tree = _made(
    config.TreeConfig,
    depth=stream.num_streams,
    branching=min(32, cfg.vocab_size),
    num_nodes=8,
  )
  return train_workflow.Recipe(
    stream=stream,
    lora=_made(config.LoraConfig, rank=16, alpha=256.0 if own else 32.0),
    data=data,
    tree=tree,
    train=_train(num_steps, batch_size or default_batch()),
    **_learning(mode, num_steps),
  )


def lora_alone(made: train_workflow.Recipe) -> train_workflow.Recipe:
  """The same settings for a LoRA without streams, to compare answers with."""
  return dataclasses.replace(
    made,
    stream=dataclasses.replace(made.stream, coupling_rank=0),
    objective=dataclasses.replace(
      made.objective, stream_weight=0.0, pruning_weight=0.0
    ),
  )


def schedule() -> str:
  """When streams run on this kind of device."""
  return 'parallel' if is_accelerated() else 'deferred'


def _learning(mode, num_steps):
  """Objective and optimiser of a mode."""
  own = mode == 'lossless'
  return {
    'objective': _made(
      config.ObjectiveConfig,
      stream_weight=0.25 if own else 0.1,
      stream_decay=0.9 if own else 1.0,
      anchors_per_sequence=96,
      chunk_size=8192 if is_accelerated() else 1024,
    ),
    'optimizer': _made(
      config.OptimizerConfig,
      learning_rate=2e-3 if own else 1e-3,
      warmup_steps=min(20, max(num_steps // 10, 1)),
    ),
  }


def _train(num_steps, batch_size):
  """Length and cadence: six evaluations, three without gain end it.

  A row costs a third in an evaluation of what it costs in a step, so that they
  take a tenth of the time or one batch each, whichever is more.
  """
  every = max(num_steps // 6, 1)
  rows = 0.3 * every * batch_size
  return _made(
    config.TrainConfig,
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=max(min(num_steps // 20, 10), 1),
    eval_every=every,
    eval_batches=min(max(int(rows / _eval_batch()), 1), 3),
    save_every=every,
    keep_checkpoints=1,
    patience=3,
  )


def default_batch() -> int:
  """Rows of a step: a CPU's time goes to more steps instead."""
  return 16 if is_accelerated() else 1


def _eval_batch():
  """Rows of a batch of an evaluation."""
  return 32 if is_accelerated() else 4


def _made(cls: type, **settings: Any) -> Any:
  """A config of these settings, but for those that gin sets."""
  bound = gin.get_bindings(cls)
  return cls(**{k: v for k, v in settings.items() if k not in bound})


def _round(count: int) -> int:
  return -(-count // _ROUND) * _ROUND


def wanted_steps(made: train_workflow.Recipe, lengths: Lengths) -> int:
  """Steps that go through the examples often enough."""
  tokens = made.train.batch_size * made.data.sequence_length
  epochs = EPOCHS[made.stream.mode]
  steps = int(epochs * lengths.num_tokens / tokens)
  return min(max(steps, _FEWEST_STEPS), _MOST_STEPS)


def steps_in(seconds: float, seconds_per_step: float, wanted: int) -> int:
  """Steps that fit into the time, at most those wanted."""
  return min(max(int(seconds / seconds_per_step), _FEWEST_STEPS), wanted)


def remat(base: str, made: train_workflow.Recipe, dtype: str) -> str:
  """What the backward pass computes again so that a step fits into memory."""
  free = memory.available(jax.local_devices()[0])
  for name in ('none', 'minimal'):
    needed = dry_run.memory_bytes(base, made, dtype=dtype, remat=name)
    if free is None or needed < 0.8 * free:
      return name
  return 'full'


def measure(
  base: str,
  data_dir: str,
  folder: str,
  made: train_workflow.Recipe,
  *,
  fold_adapter: str | None,
  dtype: str,
  execution: train_workflow.Execution,
) -> float:
  """Seconds of a training step, by a few of them.

  Args:
    base: model.
    data_dir: token records.
    folder: in which the steps leave nothing.
    made: settings; the number of steps does not matter.
    fold_adapter: see `train.train`.
    dtype: of weights and activations.
    execution: how to compute.

  Raises:
    KeyboardInterrupt: a signal came.
  """
  train = dataclasses.replace(
    made.train,
    num_steps=_PROBE_STEPS,
    log_every=1,
    eval_every=_PROBE_STEPS,
    save_every=_PROBE_STEPS,
  )
  with scratch.folder(folder, 'measured-steps') as place:
    done = train_workflow.train(
      base,
      data_dir,
      place,
      fold_adapter=fold_adapter,
      recipe=dataclasses.replace(made, train=train),
      dtype=dtype,
      execution=execution,
      export='last',
      progress=False,
    )
    if done.interrupted:
      raise KeyboardInterrupt
    lines = plots.read_metrics(os.path.join(place, 'metrics.jsonl'))
  # The first one compiles, and the next may still wait for memory.
  return 1 / max(line['steps_per_second'] for line in lines[1:])
