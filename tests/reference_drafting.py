# SPDX-License-Identifier: Apache-2.0
"""Slow oracles of drafters without a model: lists of one row, no arrays.

An oracle has `paths(text)`, the token paths that its tree holds below the last
token of `text`, and `advance(text, next_token)`, called after every call of the
model with the text that the call began with.
"""

import jax
import numpy as np
import reference_decoding as reference
import table_lm

from specstream_jax import sampling


class PromptLookup:
  """Copies of what followed the latest, longest earlier match."""

  def __init__(self, ngram, num_chains, chain_length):
    self.sizes = ngram, num_chains, chain_length

  def chains(self, text):
    ngram, num_chains, chain_length = self.sizes
    found = []
    for n in range(min(ngram, len(text) - 1), 0, -1):
      for end in range(len(text) - 1, n - 1, -1):
        if text[end - n : end] == text[-n:]:
          copy = list(text[end:])
          while len(copy) < chain_length:
            copy.append(copy[len(copy) - (len(text) - end)])
          copy = copy[:chain_length]
          if copy not in found:
            found.append(copy)
    return found[:num_chains]

  def paths(self, text):
    return prefixes(self.chains(text))

  def advance(self, text, next_token):
    pass


class Lookahead:
  """Window as a list of rows, pool as a list of tuples, newest first."""

  def __init__(self, window, pool_size, num_guesses):
    self.window = [list(row) for row in window]
    self.pool = []
    self.sizes = pool_size, num_guesses

  def columns(self, text):
    """The path from the root to the last row of each column."""
    self.window[0][0] = text[-1]
    return [
      self.window[0][1 : i + 1] + [row[i] for row in self.window[1:]]
      for i in range(len(self.window[0]))
    ]

  def paths(self, text):
    grams = [gram[1:] for gram in self.pool if gram[0] == text[-1]]
    return prefixes(grams[: self.sizes[1]] + self.columns(text))

  def advance(self, text, next_token):
    answers = [next_token(text + path) for path in self.columns(text)]
    grams = list(zip(*self.window, answers, strict=True))
    self.pool = list(dict.fromkeys(grams + self.pool))[: self.sizes[0]]
    self.window = [*self.window[1:], answers]


def prefixes(chains):
  return {tuple(c[:n]) for c in chains for n in range(1, len(c) + 1)}


def decode(oracle, next_token, prompt, limit, eos_ids, stop_sequences):
  """New tokens, finish reason and accept length of each call."""
  ends = limit, eos_ids, stop_sequences
  tokens, reason = reference.truncate([], [next_token(list(prompt))], *ends)
  accept_lengths = []
  while reason == 'running':
    text = list(prompt) + tokens
    paths, walked = oracle.paths(text), [next_token(text)]
    while tuple(walked) in paths:
      walked.append(next_token(text + walked))
    before = len(tokens)
    tokens, reason = reference.truncate(tokens, walked, *ends)
    accept_lengths.append(len(tokens) - before - 1)
    oracle.advance(text, next_token)
  return tokens, reason, accept_lengths


def table_next_token(params, cfg, key, length):
  """(all tokens) -> what the table draws, for texts up to `length` tokens."""
  noise = np.zeros((length + 1, table_lm.VOCAB_SIZE), np.float32)
  if cfg.temperature:
    positions = np.arange(length + 1)[None]
    noise = sampling.gumbel(key[None], positions, table_lm.VOCAB_SIZE)[0]
    noise = np.asarray(jax.device_get(noise))

  def next_token(tokens):
    logits = table_lm.next_logits(params, tokens)
    if cfg.temperature:
      logits = reference.process_logits(
        logits, cfg.temperature, cfg.top_k, cfg.top_p
      )
    return int(np.argmax(logits + noise[len(tokens)]))

  return next_token
