# SPDX-License-Identifier: Apache-2.0
"""The whole way from logits to token, against loops of numpy.

Rows of one batch ask for anything that can be asked for, at random; half of
them have many equal logits, as those of a bfloat16 model are. Written from
transformers' definitions, see `reference_decoding`.

Axis letters: B rows, M positions after the same text, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference

from specstream_jax import config, sampling
from specstream_jax.decoding import edits

# Beyond 256 top tokens their threshold is searched for.
BATCH, NUM_POSITIONS, VOCAB_SIZE = 22, 3, 283
PROMPT, OUTPUT = 5, 4
EOS_IDS = (3, 280)


def _asked(rng):
  """Settings of any kind; most rows combine several."""
  one_of = lambda *options: options[rng.integers(len(options))]
  tokens = lambda most: rng.choice(
    VOCAB_SIZE, rng.integers(most), replace=False
  ).tolist()
  few, many, share = rng.integers(2, 60), rng.integers(257, 290), rng.random()
  bias = {token: one_of(-7.5, -1.5, 0.5, 2.0) for token in tokens(40)}
  return config.SamplingConfig(
    temperature=one_of(0.0, 1e-30, 0.4, 1.0, 1.0, 1.7, 3.0),
    top_k=int(one_of(0, 1, few, few, few, 255, 256, 257, many, many, 5000)),
    top_p=float(one_of(1.0, 1.0, 1e-7, share, share, 0.99)),
    min_p=float(one_of(0.0, 0.0, 0.3 * rng.random(), 0.01, 1.0)),
    repetition_penalty=one_of(1.0, 1.0, 0.7, 1.4),
    logit_bias=one_of({}, bias),
    suppress_tokens=tuple(one_of([], tokens(VOCAB_SIZE - 1))),
    min_new_tokens=one_of(0, 0, 5, 6, 99),
    ignore_eos=one_of(False, True),
  )


def _inputs(rng):
  """Prompts, their lengths, outputs, logits [B, M, V] and row keys."""
  tokens = lambda *shape: rng.integers(0, VOCAB_SIZE, shape, np.int32)
  logits = 2 * rng.normal(size=(BATCH, NUM_POSITIONS, VOCAB_SIZE))
  # Plus 0, as what is rounded up to 0 is -0.
  logits[::2] = np.round(logits[::2]) + 0.0
  return (
    tokens(BATCH, PROMPT),
    rng.integers(1, PROMPT + 1, BATCH, np.int32),
    tokens(BATCH, OUTPUT),
    logits.astype(np.float32),
    sampling.row_keys(int(rng.integers(99)), range(BATCH)),
  )


@jax.jit
def _run(asked, settings, eos_ids, inputs):
  """Edited logits, processed ones, tokens, and the noise they were drawn with."""
  prompts, lengths, output, logits, keys = inputs
  made = edits.start(asked, eos_ids, prompts, lengths, VOCAB_SIZE)
  made = edits.remember(made, output)
  # Of the tokens after the output: 4, 5 and 6 new ones come before them.
  positions = lengths[:, None] + OUTPUT + jnp.arange(NUM_POSITIONS)[None]
  edited = edits.apply(made, logits, positions)
  return (
    edited,
    sampling.process_logits(edited, settings),
    sampling.draw(edited, keys, positions, settings),
    sampling.gumbel(keys, positions, VOCAB_SIZE),
  )


def _outcome(cfgs, inputs):
  eos_ids = [[-1] * 2 if cfg.ignore_eos else EOS_IDS for cfg in cfgs]
  got = _run(
    edits.request(cfgs),
    sampling.row_settings(cfgs),
    np.array(eos_ids, np.int32),
    inputs,
  )
  return [np.asarray(x) for x in got]


def _process(logits, cfg, nudge=0.0):
  """The oracle's logits, with shares that are a little smaller or larger."""
  temperature = max(cfg.temperature, 1e-30) if cfg.temperature else 0.0
  share = lambda x: x if x == 1.0 else min(x * (1 + nudge), 1.0)
  return reference.process_logits(
    logits, temperature, cfg.top_k, share(cfg.top_p), share(cfg.min_p)
  )


def _is_close_call(logits, cfg):
  """Whether rounding decides what is kept, so that either is right."""
  return not np.array_equal(
    _process(logits, cfg, -1e-5), _process(logits, cfg, 1e-5)
  )


@functools.cache
def _case(seed):
  rng = np.random.default_rng(seed)
  return [_asked(rng) for _ in range(BATCH)], _inputs(rng)


@pytest.mark.parametrize('seed', range(12))
def test_logits_and_tokens_are_the_oracles(seed):
  cfgs, inputs = _case(seed)
  prompts, lengths, output, logits, _ = inputs
  edited, processed, drawn, noise = _outcome(cfgs, inputs)
  num_close = 0
  for row, cfg in enumerate(cfgs):
    text = [*prompts[row, : lengths[row]], *output[row]]
    for m in range(NUM_POSITIONS):
      want = reference.edit_logits(
        logits[row, m], text, cfg, num_new=OUTPUT + m, eos_ids=EOS_IDS
      )
      np.testing.assert_allclose(edited[row, m], want, rtol=1e-6, err_msg=cfg)
      if _is_close_call(edited[row, m], cfg):
        num_close += 1
        continue
      want = _process(edited[row, m], cfg)
      if cfg.temperature:
        np.testing.assert_allclose(
          processed[row, m], want, rtol=1e-5, err_msg=cfg
        )
        want = want + noise[row, m]
      assert drawn[row, m] == np.argmax(want), cfg
  assert num_close < 0.05 * BATCH * NUM_POSITIONS


@pytest.mark.parametrize('row', range(0, BATCH, 3))
def test_a_row_does_not_depend_on_what_others_ask_for(row):
  cfgs, inputs = _case(0)
  together = _outcome(cfgs, inputs)
  alike = _outcome([cfgs[row]] * BATCH, inputs)
  for one, other in zip(together, alike):
    np.testing.assert_array_equal(one[row], other[row])
