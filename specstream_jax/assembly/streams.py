# SPDX-License-Identifier: Apache-2.0
"""Speculative streams of the loaded adapter, and perhaps an n-gram table."""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from specstream_jax import assembly
from specstream_jax.data import draft_vocabulary, ngram_table, records
from specstream_jax.decoding import ngrams, topology, transformer_fns
from specstream_jax.decoding.drafters import streams
from specstream_jax.modeling import build


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The model with its streams.

  Raises:
    ValueError: no adapter is loaded, the tree is deeper than its streams, or
      the n-gram table does not fit.
  """
  if model.stream is None:
    raise ValueError(
      "drafter is 'streams' but no adapter is loaded; load one with "
      "adapter=…, or use drafter='none'"
    )
  tree = cfg.tree or model.tree
  tree.check_fits(model.stream)
  built = build.build(model.config, model.stream, model.lora, model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(
      built,
      decode.schedule,
      tree.keep_nodes,
      has_draft_head=bool(cfg.vocabulary),
    ),
    streams.Streams(tree, model.stream.num_streams, cfg),
    transformer_fns.Params(
      model.base,
      model.adapter,
      transformer_fns.StreamExtras(
        _table(model, cfg), _head(model, cfg, built, topology.width(tree))
      ),
    ),
    prompt_model=transformer_fns.model_fns(built, is_prompt=True),
  )


def _file(value: str, model, name: str) -> str:
  """The file that a setting names; 'adapter' is `name` in the adapter's folder.

  Raises:
    ValueError: the adapter has no such file.
  """
  if value != 'adapter':
    return value
  path = os.path.join(model.adapter_dir, name)
  if not (model.adapter_dir and os.path.isfile(path)):
    raise ValueError(
      f"'adapter' asks for {name} in the adapter's folder "
      f'{model.adapter_dir!r}, which has none; name a file'
    )
  return path


def _head(model, cfg, built, width) -> Any:
  """The LM head of the draft vocabulary; () without."""
  if not cfg.vocabulary:
    return ()
  is_known = isinstance(model.tokenizer, tokenizers.Tokenizer)
  ids = draft_vocabulary.load(
    _file(cfg.vocabulary, model, draft_vocabulary.FILE),
    tokenizer_sha256=(
      records.tokenizer_hash(model.tokenizer) if is_known else None
    ),
    vocab_size=model.config.vocab_size,
    size=cfg.vocabulary_size,
  )
  if len(ids) < width:
    raise ValueError(
      f'draft vocabulary {cfg.vocabulary!r} has {len(ids)} tokens but the tree '
      f'branches into {width}; use a smaller branching or more tokens'
    )
  merged = built.merge(model.base, model.adapter)
  return transformer_fns.draft_head(merged, jnp.asarray(ids))


def _table(model, cfg) -> Any:
  """The n-gram table on device; () without."""
  if not cfg.ngram_table:
    return ()
  path = pathlib.Path(_file(cfg.ngram_table, model, ngram_table.FILE))
  written = path.stat().st_mtime_ns if path.is_file() else 0
  table, metadata = _load(str(path), written)
  if isinstance(model.tokenizer, tokenizers.Tokenizer):
    ngram_table.check_tokenizer(
      str(path), metadata, records.tokenizer_hash(model.tokenizer)
    )
  return table


@functools.lru_cache(maxsize=2)
def _load(path: str, written: int) -> tuple[ngrams.NgramTable, dict[str, Any]]:
  """Table on device and metadata; once for all decoders."""
  del written  # A table that was written anew is read anew.
  table, metadata = ngram_table.load(path)
  return jax.tree.map(jnp.asarray, table), metadata
