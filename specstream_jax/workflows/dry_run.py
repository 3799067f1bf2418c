# SPDX-License-Identifier: Apache-2.0
"""What a training run would be: sizes, memory, records; nothing is run."""

import math
from typing import Any

import jax

from specstream_jax import config, memory, partitioning
from specstream_jax.checkpoints import loading
from specstream_jax.decoding import topology
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.workflows import record_checks, train, train_run


def check_records(
  base: str, data_dir: str, eval_data_dir: str | None, recipe: Any
) -> None:
  """Asks of records and tree all that training asks before its first step.

  Args:
    base: model name, folder, hub id or GGUF file.
    data_dir: records, or a mixture.
    eval_data_dir: records as well, or None.
    recipe: with `train`, `data` and `tree`.

  Raises:
    ValueError: records of another tokenizer, with tokens that the model does
      not embed, or longer than a row; a tree of more tokens than there are.
  """
  outline = loading.load_outline(base)
  topology.check_vocabulary(recipe.tree, outline.config.vocab_size)
  record_checks.check(outline, data_dir, eval_data_dir)
  train_run.open_training(data_dir, recipe, partitioning.default())


def describe(base: str, recipe: train.Recipe, *, dtype: str, remat: str) -> str:
  """A page of text: parameters, tokens per step and memory of a run."""
  cfg = loading.load_config(base, dtype=dtype)
  built = build.build(cfg, recipe.stream, recipe.lora)
  flat = params_lib.flatten(built.adapter)
  num_lora = sum(v.size for k, v in flat.items() if 'lora_' in k)
  num_adapter = params_lib.count(built.adapter)
  parts = _parts(built, recipe, remat)
  rows = [
    f'  {name:30} {value / 1e6:10.1f} MB' for name, value in parts.items()
  ]
  tokens = recipe.train.batch_size * recipe.data.sequence_length
  return '\n'.join(
    [
      f'base: {params_lib.count(built.base):,} parameters, {dtype}',
      f'adapter: {num_adapter:,} parameters '
      f'({num_lora:,} LoRA, {num_adapter - num_lora:,} streams and pruning)',
      f'step: {tokens:,} tokens on {partitioning.default().mesh.size} device(s), '
      f'{recipe.train.num_steps:,} steps',
      'memory:',
      *rows,
      f'  {"total":30} {sum(parts.values()) / 1e6:10.1f} MB',
    ]
  )


def warn_if_large(
  base: str, recipe: train.Recipe, *, dtype: str, remat: str
) -> None:
  """Warns of a run that will hardly fit; arguments as for `describe`."""
  memory.warn(
    'weights, adapter and activations of a step',
    memory_bytes(base, recipe, dtype=dtype, remat=remat),
    'a smaller --batch_size, --remat=full or --dtype=bfloat16 need less',
    num_devices=partitioning.default().mesh.size,
  )


def memory_bytes(
  base: str, recipe: train.Recipe, *, dtype: str, remat: str
) -> int:
  """Estimate of what a run takes, over all devices."""
  cfg = loading.load_config(base, dtype=dtype)
  built = build.build(cfg, recipe.stream, recipe.lora)
  return sum(_parts(built, recipe, remat).values())


def _parts(built, recipe, remat):
  """Bytes by what takes them, over all devices."""
  activations = activation_bytes(built.cfg, recipe, remat=remat)
  return {
    'base weights': _bytes(built.base),
    'adapter, gradient, 2 moments': 4 * 4 * params_lib.count(built.adapter),
    'activations (estimate)': activations,
  }


def activation_bytes(
  cfg: config.ModelConfig, recipe: train.Recipe, *, remat: str
) -> int:
  """Estimate of what the backward pass keeps, in bytes.

  Counts per layer and token: the block input twice, q, k, v and the attention
  output, and the MLP's activations, three with a gate and two without, in the
  model's dtype; attention weights in float32 and in the model's dtype; one chunk
  of logits and its gradient.
  """
  rows, length = recipe.train.batch_size, recipe.data.sequence_length
  objective = recipe.objective
  anchors = min(objective.anchors_per_sequence, length)
  if objective.stream_tokens:
    anchors = objective.num_groups(recipe.stream.num_streams)
  streams = recipe.stream.num_streams * anchors
  size = 2 if cfg.dtype == 'bfloat16' else 4
  width = cfg.num_heads * cfg.head_dim + cfg.num_kv_heads * cfg.head_dim
  wide = (3 if cfg.mlp.is_gated else 2) * cfg.intermediate_size
  per_token = size * (2 * cfg.hidden_size + 2 * width + wide)
  keeps_all = remat == 'none'
  if remat == 'full':
    per_token = size * cfg.hidden_size
  msa = recipe.stream.num_msa_layers
  tokens = rows * (cfg.num_layers * length + msa * streams)
  attention = (4 + size) * cfg.num_heads * tokens * length * keeps_all
  logits = 2 * 4 * objective.chunk_size * cfg.vocab_size
  return tokens * per_token + attention + logits


def _bytes(tree) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
