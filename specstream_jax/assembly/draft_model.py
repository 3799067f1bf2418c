# SPDX-License-Identifier: Apache-2.0
"""A second checkpoint as the drafter."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from specstream_jax import assembly, config
from specstream_jax.checkpoints import loading
from specstream_jax.decoding import topology, transformer_fns
from specstream_jax.decoding.drafters import draft_model
from specstream_jax.modeling import build, params as params_lib

LAYOUT = 'out_in'
DEFAULT_TREE = config.TreeConfig()
# Drafts that are drawn need a tree whose shape is known beforehand.
DEFAULT_RANDOM_TREE = config.TreeConfig('full', depth=3, branching=2)


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The model without streams, and the draft model at `cfg.path`.

  Raises:
    ValueError: no path, or a checkpoint that cannot be read or has another
      vocabulary; a tree wider than the vocabulary.
  """
  if not cfg.path:
    raise ValueError(
      "drafter 'draft_model' has no path; name its checkpoint: "
      'draft_model:path=FOLDER (a known name, a Hugging Face folder, a hub id '
      'or a GGUF file)'
    )
  default = DEFAULT_TREE if cfg.drafting == 'top_k' else DEFAULT_RANDOM_TREE
  tree = cfg.tree or default
  _check_width(tree, model.config)
  path = loading.resolve(cfg.path)
  draft_cfg, weights, tokenizer = _load(
    cfg.path, model.config.dtype, os.stat(path).st_mtime_ns
  )
  _check_vocabulary(model, cfg.path, draft_cfg, tokenizer)
  fns = transformer_fns.model_fns(build.build(draft_cfg, layout=LAYOUT))
  built = build.build(model.config, layout=model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(built),
    draft_model.DraftModel(fns, tree, decode, cfg),
    transformer_fns.Params(model.base, drafter=weights),
    prompt_model=transformer_fns.model_fns(built, is_prompt=True),
  )


@functools.lru_cache(maxsize=2)
def _load(path: str, dtype: str, written: int) -> tuple[Any, Any, Any]:
  """Config, nested weights on device and tokenizer; once for all decoders."""
  del written  # A checkpoint that was written anew is read anew.
  loaded = loading.load_model(path, dtype=dtype)
  flat = params_lib.transpose_kernels(loaded.params)
  arrays = {name: jnp.asarray(leaf, dtype) for name, leaf in flat.items()}
  weights = jax.block_until_ready(params_lib.unflatten(arrays))
  return loaded.config, weights, loaded.tokenizer


def _check_width(tree, cfg):
  width = topology.width(tree)
  if width > cfg.vocab_size:
    raise ValueError(
      f'draft tree needs the top {width} tokens of a node but the vocabulary '
      f'has {cfg.vocab_size}; use branching <= {cfg.vocab_size}'
    )


def _check_vocabulary(model, path, draft_cfg, draft_tokenizer) -> None:
  """Raises ValueError unless token ids mean the same to both models.

  A checkpoint without a tokenizer is taken at its word: drafts that mean
  something else are rejected, the output stays the same.
  """
  fix = 'use a draft model of the same family, or train one (specstream train'
  fix = f'{fix} --draft_model_layers=4)'
  if draft_cfg.vocab_size != model.config.vocab_size:
    raise ValueError(
      f'draft model {path!r} has a vocabulary of {draft_cfg.vocab_size} tokens '
      f'but the target has {model.config.vocab_size}; {fix}'
    )
  pair = (model.tokenizer, draft_tokenizer)
  if not all(isinstance(t, tokenizers.Tokenizer) for t in pair):
    return
  own, other = (t.get_vocab(with_added_tokens=True) for t in pair)
  different = sorted(t for t in own if own[t] != other.get(t))
  if different or len(own) != len(other):
    example = different[0] if different else min(set(other) - set(own))
    raise ValueError(
      f'draft model {path!r} has another tokenizer than the target: token '
      f'{example!r} is {other.get(example)} there and {own.get(example)} here; '
      f'{fix}'
    )
