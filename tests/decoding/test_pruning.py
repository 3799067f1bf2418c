# SPDX-License-Identifier: Apache-2.0
"""Pruning drops drafts that would have been accepted, and changes no token."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import known_text
import numpy as np
import pytest
import reference_decoding as reference
import sampling_cases
import tiny

from specstream_jax import config
from specstream_jax.decoding import decoder, pruning, transformer_fns
from specstream_jax.drafters import none

DECODE = config.DecodeConfig(max_new_tokens=13, prompt_bucket=8, eos_ids=(5,))
TREE = config.TreeConfig('full', depth=2, branching=3)
CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=2)
STREAMS = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=2)
NUM_MODELS, KEEP = 3, 6
CASES = list(sampling_cases.cases(CONFIG.vocab_size).values())
NUM_ROWS = 13 + len(CASES)
SAMPLING = {
  'greedy': [config.SamplingConfig()] * NUM_ROWS,
  # Half at temperature 1, half with settings of every kind.
  'sampled': [config.SamplingConfig(temperature=1.0)] * 13 + CASES,
}


@functools.cache
def _decoder(keep_nodes):
  """Keeps all nodes at 0; None decodes plainly."""
  built, _, _ = tiny.model(CONFIG, STREAMS, None)
  drafter = known_text.KnownText(TREE, CONFIG.vocab_size)
  return decoder.Decoder(
    transformer_fns.model_fns(built, keep_nodes=keep_nodes or 0),
    none.NoDraft() if keep_nodes is None else drafter,
    DECODE,
    prompt_model=transformer_fns.model_fns(built),
  )


def _decode(how, keep_nodes, seed, tokens=None):
  """What the rows come to with weights of their own for each seed."""
  _, base, adapter = tiny.model(CONFIG, STREAMS, None, seed=10 * seed)
  text = () if tokens is None else known_text.as_text(tokens, 13)
  rng = np.random.default_rng(seed)
  prompts = [
    rng.integers(0, CONFIG.vocab_size, n).tolist()
    for n in rng.integers(1, 9, NUM_ROWS)
  ]
  return _decoder(keep_nodes).generate(
    transformer_fns.Params(base, adapter, text),
    prompts,
    seed=seed,
    sampling=SAMPLING[how],
  )


def _num_short(result):
  """(calls that accepted less than the depth before the last, all those)."""
  lengths = [n for row in result.accept_lengths for n in row[:-1]]
  return sum(n < TREE.max_depth for n in lengths), len(lengths)


@pytest.mark.parametrize('how', SAMPLING)
def test_pruning_loses_drafts_but_no_token(how):
  dropped = calls = 0
  for seed in range(NUM_MODELS):
    plain = _decode(how, None, seed)
    pruned = _decode(how, KEEP, seed, plain.tokens)
    assert pruned.tokens == plain.tokens
    assert pruned.finish_reasons == plain.finish_reasons
    short, count = _num_short(pruned)
    dropped, calls = dropped + short, calls + count
  # Every draft is right: what is not accepted was pruned.
  assert 0.05 < dropped / calls < 0.95


def test_without_pruning_every_draft_is_accepted():
  plain = _decode('greedy', None, 0)
  whole = _decode('greedy', 0, 0, plain.tokens)
  assert whole.tokens == plain.tokens
  assert _num_short(whole)[0] == 0


class _Exit:
  """An early exit whose logits are twice the states."""

  stream_settings = types.SimpleNamespace(num_streams=3)

  def early_hidden(self, x):
    return 2 * x

  def logits(self, hidden):
    return hidden


EXIT = _Exit()
PARENTS = [[0, 0, 0, 1, 1, 2, 3], [0, 0, 1, 2, 0, 4, 4]]


@pytest.mark.parametrize('keep', [1, 2, 3, 5, 6])
def test_the_likeliest_paths_survive(keep):
  rng = np.random.default_rng(keep)
  logits = rng.normal(size=(2, 7, 5)).astype(np.float32)
  tokens = rng.integers(0, 5, size=(2, 7))
  mask = np.stack([reference.ancestor_mask(parents) for parents in PARENTS])
  positions = np.array([[4], [9]]) + mask.sum(axis=-1) - 1
  found = jax.jit(pruning.best(keep), static_argnums=0)(
    EXIT, *map(jnp.asarray, (logits, tokens, positions, mask))
  )
  for row, parents in enumerate(PARENTS):
    scores = [0.0]
    for node in range(1, 7):
      law = np.exp(2 * np.float64(logits[row, parents[node]]))
      given = np.log(law[tokens[row, node]] / law.sum())
      scores.append(scores[parents[node]] + given)
    best = np.argsort(-np.array(scores), kind='stable')[:keep]
    assert found[row].tolist() == sorted(best.tolist())


def test_nothing_is_pruned_where_all_may_stay():
  assert pruning.best(0) is None
  tokens = jnp.zeros((1, 3), jnp.int32)
  assert pruning.best(3)(EXIT, None, tokens, None, None) is None
