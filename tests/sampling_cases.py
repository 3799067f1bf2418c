# SPDX-License-Identifier: Apache-2.0
"""One setting of every kind, and plain decoding by an oracle that knows them."""

import jax
import numpy as np
import reference_decoding as reference

from specstream_jax import config, sampling


def cases(vocab_size):
  """Name -> settings; token ids are below `vocab_size`, 5 at least."""
  make = config.SamplingConfig
  last = vocab_size - 1
  return {
    'greedy': make(),
    'repetition_penalty': make(repetition_penalty=1.7),
    'reward for repetition': make(repetition_penalty=0.6),
    'presence_penalty': make(presence_penalty=1.5),
    'frequency_penalty': make(frequency_penalty=0.9),
    'reward for frequency': make(0.7, frequency_penalty=-0.3),
    'logit_bias': make(logit_bias={1: 3.0, 4: -2.5, last: 1.5}),
    'suppress_tokens': make(suppress_tokens=(0, 2, last)),
    'min_new_tokens': make(min_new_tokens=9),
    'ignore_eos': make(ignore_eos=True),
    'cold': make(temperature=1e-40, repetition_penalty=1.3),
    'sampled': make(0.8, 6, 0.9),
    'min_p': make(1.3, min_p=0.1, repetition_penalty=1.4),
    'hot and penalised': make(2.0, repetition_penalty=2.5, min_new_tokens=4),
    'everything': make(
      temperature=0.9,
      top_k=9,
      top_p=0.95,
      min_p=0.02,
      repetition_penalty=1.2,
      presence_penalty=0.4,
      frequency_penalty=0.3,
      logit_bias={1: 1.0, 4: -1.0},
      suppress_tokens=(2,),
      min_new_tokens=6,
    ),
    'everything but EOS': make(
      temperature=1.1,
      top_p=0.9,
      repetition_penalty=1.5,
      logit_bias={0: 0.5},
      ignore_eos=True,
    ),
  }


def plain(next_logits, prompt, cfg, key, limit, eos_ids, stop_sequences=()):
  """New tokens and finish reason of one row, from the definitions alone.

  Args:
    next_logits: all tokens so far -> logits [V].
    prompt: token ids.
    cfg: how tokens are drawn.
    key: of the row.
    limit: most new tokens.
    eos_ids: that end a text.
    stop_sequences: likewise.
  """
  vocab_size = len(next_logits(prompt))
  positions = len(prompt) + np.arange(limit)[None]
  noise = np.asarray(_gumbel(key[None], positions, vocab_size))[0]

  def next_token(tokens):
    num_new = len(tokens) - len(prompt)
    logits = reference.edit_logits(
      next_logits(tokens), tokens, cfg, num_new=num_new, eos_ids=eos_ids
    )
    if not cfg.temperature:
      return int(np.argmax(logits))
    scores = reference.process_logits(
      logits, max(cfg.temperature, 1e-30), cfg.top_k, cfg.top_p, cfg.min_p
    )
    return int(np.argmax(scores + noise[num_new]))

  ends = () if cfg.ignore_eos else eos_ids
  return reference.autoregressive(
    next_token, list(prompt), limit, ends, stop_sequences
  )


_gumbel = jax.jit(sampling.gumbel, static_argnums=2)
