# SPDX-License-Identifier: Apache-2.0
"""Sampling settings act at every node as in plain decoding.

Plain decoding is held against an oracle written from transformers' definitions,
every drafter against plain decoding. Rows of one batch ask for different things.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference
import sampling_cases
import table_lm

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder as decoder_lib,
  edits,
  transformer_fns,
  tree as tree_lib,
  verifiers,
)
from specstream_jax.drafters import (
  draft_model,
  lookahead,
  none,
  prompt_lookup,
  streams,
)

VOCAB_SIZE = table_lm.VOCAB_SIZE
CASES = sampling_cases.cases(VOCAB_SIZE)
GREEDY_CASES = {k: v for k, v in CASES.items() if not v.temperature}
BUCKET, MAX_NEW = 11, 17
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW,
  prompt_bucket=BUCKET,
  eos_ids=(3, 99),
  stop_sequences=((2, 10), (7, 4, 1)),
)
TREE = config.TreeConfig('best_first', depth=3, branching=3, num_nodes=7)
FULL = config.TreeConfig('full', depth=2, branching=2)
BEAM = config.TreeConfig('best_first', depth=3, num_nodes=8)


def _streams(tree, **options):
  return streams.Streams(
    tree, table_lm.NUM_STREAMS, config_drafting.DrafterConfig(**options)
  )


def _draft_model(tree, **options):
  fns = table_lm.MODEL._replace(
    forward=_of_base(table_lm.forward), logits=_of_base(table_lm.logits)
  )
  cfg = config_drafting.DrafterConfig('draft_model', **options)
  return draft_model.DraftModel(fns, tree, CFG, cfg)


def _of_base(fn):
  """The table's function of `Params`."""
  return lambda params, *args, **kwargs: fn(params.base, *args, **kwargs)


MODEL = table_lm.MODEL._replace(
  forward=_of_base(table_lm.forward),
  logits=_of_base(table_lm.logits),
  stream_logits=_of_base(table_lm.stream_logits),
)
# Verified by the walk, so that tokens are those of plain decoding.
DRAFTERS = {
  'streams': lambda: _streams(TREE),
  'streams gumbel': lambda: _streams(FULL, drafting='gumbel_top_k'),
  'streams beam': lambda: _streams(BEAM, drafting='beam'),
  'random': table_lm.RandomDrafter,
  'draft_model': lambda: _draft_model(TREE),
  'draft_model beam': lambda: _draft_model(BEAM, drafting='beam'),
  'draft_model independent': lambda: _draft_model(FULL, drafting='independent'),
  'prompt_lookup': lambda: prompt_lookup.PromptLookup(
    config_drafting.DrafterConfig('prompt_lookup', num_guesses=2)
  ),
  'lookahead': lambda: lookahead.Lookahead(
    config_drafting.DrafterConfig('lookahead')
  ),
}


@functools.cache
def _decoder(drafter=None, verifier='walk', drafting='top_k'):
  options = config_drafting.DrafterConfig(drafting=drafting, verifier=verifier)
  made = DRAFTERS[drafter]() if drafter else none.NoDraft()
  return decoder_lib.Decoder(MODEL, made, CFG, verifier=verifiers.make(options))


def _rows(seed, count):
  """Weights, prompts and limits."""
  rng = np.random.default_rng(seed)
  base = table_lm.make_params(seed, quality=0.8)
  other = table_lm.make_params(seed + 100)['table']
  draft = base | {'table': 0.7 * base['table'] + 0.3 * other}
  lengths = rng.integers(1, BUCKET + 1, count)
  prompts = [rng.integers(0, VOCAB_SIZE, n).tolist() for n in lengths]
  limits = [
    MAX_NEW if i % 3 else int(rng.integers(9, 17)) for i in range(count)
  ]
  return transformer_fns.Params(base, drafter=draft), prompts, limits


@functools.cache
def _plain(seed):
  params, prompts, limits = _rows(seed, len(CASES))
  return _decoder().generate(
    params, prompts, limits, seed=seed, sampling=list(CASES.values())
  )


@pytest.mark.parametrize('seed', range(4))
def test_plain_decoding_is_the_oracle(seed):
  params, prompts, limits = _rows(seed, len(CASES))
  result = _plain(seed)
  keys = sampling.row_keys(seed, range(len(CASES)))
  for row, (name, cfg) in enumerate(CASES.items()):
    want = sampling_cases.plain(
      lambda tokens: table_lm.next_logits(params.base, tokens),
      prompts[row],
      cfg,
      keys[row],
      limits[row],
      CFG.eos_ids,
      CFG.stop_sequences,
    )
    assert (result.tokens[row], result.finish_reasons[row]) == want, name
    if cfg.min_new_tokens:
      assert len(result.tokens[row]) >= cfg.min_new_tokens or want[1] != 'eos'
    if cfg.ignore_eos:
      assert result.finish_reasons[row] != 'eos'
    assert not set(result.tokens[row]) & set(cfg.suppress_tokens)


def test_every_setting_changes_some_row():
  """The oracle would agree with a decoder that ignores them, if none did."""
  params, prompts, limits = _rows(0, len(CASES))
  run = lambda cfg: _decoder().generate(
    params, prompts, limits, sampling=[cfg] * len(CASES)
  )
  greedy = run(CASES['greedy']).tokens
  warm = {t: run(config.SamplingConfig(t)).tokens for t in (0.8, 1.3, 2.0)}
  for name, cfg in CASES.items():
    found = run(cfg).tokens
    if name != 'greedy':
      assert found != greedy, name
    if cfg.temperature in warm:
      assert found != warm[cfg.temperature], name


SLOW = (
  'streams gumbel',
  'streams beam',
  'draft_model',
  'draft_model beam',
  'draft_model independent',
)


@pytest.mark.parametrize(
  'drafter',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in DRAFTERS
  ],
)
def test_tokens_equal_plain_decoding(drafter):
  decoder, num_accepted = _decoder(drafter), 0
  for seed in range(4):
    params, prompts, limits = _rows(seed, len(CASES))
    got = decoder.generate(
      params, prompts, limits, seed=seed, sampling=list(CASES.values())
    )
    assert got.tokens == _plain(seed).tokens
    assert got.finish_reasons == _plain(seed).finish_reasons
    num_accepted += sum(map(sum, got.accept_lengths))
  assert num_accepted > 15
  assert decoder.num_compilations == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ('drafter', 'drafting', 'verifier'),
  [
    ('streams gumbel', 'gumbel_top_k', 'recursive_rejection'),
    ('streams', 'top_k', 'typical'),
    pytest.param(
      'draft_model beam', 'beam', 'recursive_rejection', marks=pytest.mark.slow
    ),
    pytest.param(
      'draft_model independent',
      'independent',
      'multi_step',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_other_verifiers_are_greedy_too(drafter, drafting, verifier):
  """Greedy rows have one right answer, whatever verifies."""
  decoder, plain = _decoder(drafter, verifier, drafting), _decoder()
  num_accepted = 0
  for seed in range(3):
    params, prompts, limits = _rows(seed, len(CASES))
    cfgs = (list(GREEDY_CASES.values()) * 2)[: len(CASES)]
    run = lambda d: d.generate(params, prompts, limits, sampling=cfgs)  # noqa: B023
    got = run(decoder)
    assert got.tokens == run(plain).tokens
    num_accepted += sum(map(sum, got.accept_lengths))
  assert num_accepted > 15


def _random_tree(rng, batch, num_nodes):
  """Trees of any shape, unused nodes among them."""
  parents = [[0] + [int(rng.integers(0, i)) for i in range(1, num_nodes)]
             for _ in range(batch)]  # fmt: skip
  tokens = rng.integers(-1, VOCAB_SIZE, (batch, num_nodes))
  tokens[:, 0] = np.maximum(tokens[:, 0], 0)
  depths = [reference.depths(row) for row in parents]
  return tree_lib.DraftTree(
    *(jnp.asarray(x, jnp.int32) for x in (tokens, parents, depths))
  )


def test_every_node_is_edited_by_its_own_path():
  rng = np.random.default_rng(0)
  cfgs = list(CASES.values())
  batch, num_nodes = len(cfgs), 9
  prompts = rng.integers(0, VOCAB_SIZE, (batch, 5)).astype(np.int32)
  lengths = rng.integers(1, 6, batch).astype(np.int32)
  output = rng.integers(0, VOCAB_SIZE, (batch, 4)).astype(np.int32)
  tree = _random_tree(rng, batch, num_nodes)
  output[:, -1] = tree.tokens[:, 0]
  logits = rng.normal(size=(batch, num_nodes, VOCAB_SIZE)).astype(np.float32)
  eos_ids = np.array([[-1 if c.ignore_eos else 3, 99] for c in cfgs], np.int32)

  @jax.jit
  def run(logits, tree, asked):
    made = edits.start(asked, eos_ids, prompts, lengths, VOCAB_SIZE)
    made = edits.remember(made, output)
    positions = lengths[:, None] + 4 + tree.depths
    paths = edits.tree_paths(tree, num_nodes)
    return edits.apply(made, logits, positions, paths)

  got = run(logits, tree, edits.request(cfgs))
  for row, cfg in enumerate(cfgs):
    text = [*prompts[row, : lengths[row]], *output[row]]
    for node in range(num_nodes):
      path, above = [], node
      while True:
        if not above:
          break
        path.append(int(tree.tokens[row, above]))
        above = int(tree.parents[row, above])
      if min(path, default=0) < 0:
        continue  # below an unused node, which nobody reaches
      want = reference.edit_logits(
        logits[row, node],
        [*text, *reversed(path)],
        cfg,
        num_new=4 + int(tree.depths[row, node]),
        eos_ids=(3, 99),
      )
      np.testing.assert_allclose(got[row, node], want, rtol=1e-6)


def test_batches_that_ask_for_nothing_are_left_alone():
  rng = np.random.default_rng(0)
  logits = jnp.float32(rng.normal(size=(2, 3, VOCAB_SIZE)))
  asked = edits.request([config.SamplingConfig(temperature=1.0)] * 2)
  ones = jnp.ones((2, 1), jnp.int32)
  made = edits.start(asked, 3 * ones, ones, ones[:, 0], VOCAB_SIZE)
  at = jnp.ones((2, 3), jnp.int32)
  np.testing.assert_array_equal(edits.apply(made, logits, at), logits)
  assert edits.apply(None, logits, at) is logits


def test_longer_lists_of_biases_have_room():
  many = config.SamplingConfig(suppress_tokens=tuple(range(1025)))
  asked = edits.request([many, config.SamplingConfig(logit_bias={0: 2.0})])
  assert asked.tokens.shape == asked.biases.shape == (2, 2048)
  assert asked.tokens[1, :2].tolist() == [0, -1]
  for count in (0, 1024):
    few = config.SamplingConfig(suppress_tokens=tuple(range(count)))
    assert edits.request([few]).tokens.shape == (1, 1024)
  ones = jnp.ones((2, 1), jnp.int32)
  made = edits.start(asked, 3 * ones, ones, ones[:, 0], 1100)
  assert np.isneginf(made.bias[0]).sum() == 1025
  assert np.flatnonzero(made.bias[1]).tolist() == [0]
  assert made.is_biased.tolist() == [True, True]
