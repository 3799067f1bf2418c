# SPDX-License-Identifier: Apache-2.0
"""A tiny model of bytes as a folder that every command can load."""

import numpy as np
import tiny
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from specstream_jax import config
from specstream_jax.checkpoints import huggingface, token_ids
from specstream_jax.data import records
from specstream_jax.modeling import params


def byte_tokenizer(extra=(), alphabet=None):
  """257 tokens: <eos> and every byte, or those of an alphabet."""
  alphabet = alphabet or pre_tokenizers.ByteLevel.alphabet()
  names = ['<eos>', *sorted(alphabet), *extra]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[])
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(['<eos>'])
  return tokenizer


def model_config(**sizes):
  """Three layers of a few numbers each."""
  return config.ModelConfig(
    **dict(
      vocab_size=257,
      hidden_size=24,
      intermediate_size=36,
      num_layers=3,
      num_heads=2,
      num_kv_heads=1,
      head_dim=12,
      tie_word_embeddings=True,
    )
    | sizes
  )


def write_model(folder, cfg, tokenizer=None):
  """Random weights and a tokenizer, as a Hugging Face folder."""
  _, base, _ = tiny.model(cfg, None, None)
  flat = {k: np.asarray(v) for k, v in params.flatten(base).items()}
  extras = huggingface.Extras(tokenizer or byte_tokenizer(), eos_ids=(0,))
  huggingface.export(folder, cfg, flat, extras)


def write_records(folder, rows):
  """Token records of (prompt, completion) texts."""
  tokenizer = byte_tokenizer()
  encode = lambda text: np.array(tokenizer.encode(text).ids, np.int32)
  pairs = [
    (encode(a), np.append(encode(b), 0).astype(np.int32)) for a, b in rows
  ]
  metadata = {
    'task': 'jsonl',
    'split': 'train',
    'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer),
    'eos_id': 0,
  }
  records.write(pairs, str(folder), metadata=metadata)
