# SPDX-License-Identifier: Apache-2.0
"""A runtime.Model that decodes in no time, with tokenizer and chat template."""

import numpy as np
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from specstream_jax import config, runtime
from specstream_jax.modeling import params

TEMPLATE = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)


def model(vocab_size: int = 257) -> runtime.Model:
  """A byte-level model of two layers, with two streams of random weights."""
  cfg = config.ModelConfig(
    vocab_size=vocab_size,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
  )
  _, base, _ = tiny.model(cfg, None, None)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {'<eos>': 0} | {c: i + 1 for i, c in enumerate(alphabet)}
  tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  flat = params.transpose_kernels(params.flatten(base))
  plain = runtime.Model(
    config=cfg,
    base=params.unflatten({k: np.asarray(v) for k, v in flat.items()}),
    adapter={},
    stream=None,
    lora=None,
    tree=config.TreeConfig(),
    source={'base': 'tiny'},
    tokenizer=tokenizer,
    chat_template=TEMPLATE,
    eos_ids=(0,),
  )
  stream = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)
  return runtime.with_random_streams(plain, stream)
