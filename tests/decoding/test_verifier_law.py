# SPDX-License-Identifier: Apache-2.0
"""Same law: production verifiers by enumeration, then through the whole loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference
import scipy.special
import scipy.stats
import table_lm

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder as decoder_lib,
  enumerate_law,
  interface,
  random_trees,
  transformer_fns,
  tree as tree_lib,
  verifiers,
)
from specstream_jax.drafters import draft_model, streams

FULL = config.TreeConfig('full', depth=2, branching=2)
WARM = config.SamplingConfig(temperature=0.8)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_rules_are_exact_and_the_planted_bias_is_found(seed):
  checks = enumerate_law.run_checks(seed)
  assert len(checks) == 8
  names = [check.name for check in checks[:2]]
  assert names == ['walk', 'walk, 4 of 7 nodes kept']
  for check in checks:
    assert check.has_passed, check
    assert check.is_exact == (check.total_variation < enumerate_law.LIMIT)


def test_what_is_checked(monkeypatch):
  seen = []

  def distance(rule, problem, cfg, sampling_cfg):
    num_levels = len(problem.target_logits)
    sizes = problem.vocab_size, num_levels, cfg.size, cfg.max_depth
    seen.append((rule, *sizes, cfg.keep_nodes, sampling_cfg.temperature))
    return 0.5

  monkeypatch.setattr(enumerate_law, 'distance', distance)
  checks = enumerate_law.run_checks(4, keep_nodes=(0, 3))
  rules = enumerate_law.RULES
  assert seen == [(rule, 3, 3, 7, 2, n, 0.8) for rule in rules for n in (0, 3)]
  assert [check.is_exact for check in checks] == [True] * 6 + [False] * 2
  assert {check.total_variation for check in checks} == {0.5}


def test_draws_by_hand():
  probs = np.array([0.5, 0.0, 0.25, 0.25])
  pairs = dict(enumerate_law.draws_without_replacement(probs, 2))
  assert pairs == pytest.approx(
    {(0, 2): 1 / 4, (0, 3): 1 / 4, (2, 0): 1 / 6, (3, 0): 1 / 6}
    | {(2, 3): 1 / 12, (3, 2): 1 / 12}
  )
  assert set(enumerate_law.draws_without_replacement(probs[:2], 3)) == {
    ((0, -1, -1), 1.0)
  }
  assert dict(enumerate_law.draws_with_replacement(probs[[0, 1, 0]], 2)) == {
    (0, 0): 0.25, (0, 2): 0.25, (2, 0): 0.25, (2, 2): 0.25
  }  # fmt: skip
  best = enumerate_law.best_draws(np.array([0.2, 0.5, 0.3]), 2)
  assert best == [((1, 2), 1.0)]


def test_outcomes_of_tests_by_hand():
  outcomes = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]], np.float32)
  # The root takes no test; of the second case the last node takes none.
  probs = np.repeat([[-1, 0.25, 0.5], [-1, 0.25, -1]], 4, axis=0)
  found = enumerate_law._test_weights(np.float32(probs), outcomes, 2)
  want = [0.125, 0.125, 0.375, 0.375, 0.0, 0.25, 0.0, 0.75]
  assert found.tolist() == want


def test_paths_are_numbered_by_their_tokens():
  tree = tree_lib.DraftTree(
    np.array([[2, 1, 2, 0, -1]]),
    np.array([[0, 0, 1, 2, 1]]),
    np.array([[0, 1, 2, 3, 1]]),
  )
  assert enumerate_law.path_codes(tree, 3).tolist() == [[0, 1, 5, 15, 3]]


def test_when_a_check_has_passed():
  assert enumerate_law.total_variation(np.array([1, 0]), np.eye(2)[1]) == 1.0
  made = lambda distance, is_exact: enumerate_law.Check('', distance, is_exact)
  passed = [made(d, True).has_passed for d in (0.0, 9e-7, 1e-6, 0.02)]
  assert passed == [True, True, False, False]
  passed = [made(d, False).has_passed for d in (0.0, 1e-6, 0.01, 0.011)]
  assert passed == [False, False, False, True]


def test_laws_are_of_all_that_can_come():
  problem = enumerate_law.random_problem(5, vocab_size=3, depth=2)
  shapes = [table.shape for table in problem.target_logits]
  assert shapes == [(1, 3), (3, 3), (9, 3)]
  assert [table.shape for table in problem.exit_logits] == shapes
  assert problem.draft_logits.shape == (2, 3) and problem.vocab_size == 3
  first, second, third = (
    scipy.special.softmax(np.float64(table) / 0.8, axis=-1)
    for table in problem.target_logits
  )
  law = enumerate_law.target_law(problem, WARM).reshape(3, 3, 3)
  for a, b, c in np.ndindex(law.shape):
    want = first[0, a] * second[a, b] * third[3 * a + b, c]
    assert law[a, b, c] == pytest.approx(want, rel=1e-5)


CHOICES = ((0,), (2,), (1,), (0, 0), (0, 2), (1, 0))  # skips ranks
SHAPES = {
  'fixed': (config.TreeConfig('fixed', choices=CHOICES), WARM),
  # Too few tokens are left for three siblings.
  'truncated': (
    config.TreeConfig('full', depth=1, branching=3, keep_nodes=2),
    config.SamplingConfig(temperature=1.0, top_k=3, top_p=0.7),
  ),
  'chain': (config.TreeConfig('chain', depth=2, keep_nodes=2), WARM),
}


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('rule', ['recursive_rejection', 'multi_step'])
def test_other_shapes_and_truncated_laws(rule, name):
  cfg, sampling_cfg = SHAPES[name]
  problem = enumerate_law.random_problem(3, vocab_size=4, depth=cfg.max_depth)
  distance = enumerate_law.distance(rule, problem, cfg, sampling_cfg)
  assert distance < enumerate_law.LIMIT


def _pruned(problem, drawn_by=None):
  """All trees of `FULL` and what is verified of them, 4 nodes kept."""
  draws, _ = enumerate_law.RULES['recursive_rejection']
  cases = enumerate_law.enumerate_trees(problem, FULL, WARM, draws, drawn_by)
  return cases, enumerate_law.verification_of(problem, cases, keep_nodes=4)


def _distance(problem, cases, verification):
  _, reject = enumerate_law.RULES['recursive_rejection']
  law = enumerate_law.rejection_law(problem, cases, verification, WARM, reject)
  target = enumerate_law.target_law(problem, WARM)
  return enumerate_law.total_variation(law, target)


def test_nodes_that_share_draws_must_not_be_pruned():
  problem = enumerate_law.random_problem(1, vocab_size=3, depth=2)
  shared = random_trees.sources(FULL)
  assert len(shared.number) == 2  # one for each depth
  assert _distance(problem, *_pruned(problem, shared)) > 1e-3


def test_pruned_children_must_take_their_test():
  """Leaving them out, as if they had not been drawn, is biased."""
  problem = enumerate_law.random_problem(1, vocab_size=3, depth=2)
  kept = config.TreeConfig('full', depth=2, branching=2, keep_nodes=4)
  cases, verification = _pruned(problem, random_trees.sources(kept))
  assert _distance(problem, cases, verification) < enumerate_law.LIMIT
  tree, survivors = verification.tree, verification.survivors
  law = tree_lib.DraftLaw(
    tree.law.log_probs, np.take_along_axis(tree.law.index, survivors, axis=1)
  )
  small = tree_lib.restrict(tree, survivors)
  small = tree_lib.DraftTree(small.tokens, small.parents, small.depths, law)
  forgotten = verification._replace(tree=small, survivors=None)
  assert _distance(problem, cases, forgotten) > 1e-3


VOCAB_SIZE, MAX_NEW, NUM_ROWS = 4, 4, 8192
PROMPT = [2, 1, 3]
EOS_ID = 3
DECODE = config.DecodeConfig(
  max_new_tokens=MAX_NEW, prompt_bucket=len(PROMPT), eos_ids=(EOS_ID,)
)
PARAMS = table_lm.make_params(3, quality=0.6, vocab_size=VOCAB_SIZE, scale=1.2)
LAW = config.SamplingConfig(temperature=0.9, top_k=3)
# What a token's law is here depends on all tokens of its path.
EDITED = config.SamplingConfig(
  temperature=0.9,
  min_p=0.02,
  repetition_penalty=1.8,
  logit_bias={0: 0.7, 2: -0.4},
  min_new_tokens=3,
)
BEAM = config.TreeConfig('best_first', depth=3, num_nodes=8)
SMALL = config.TreeConfig('full', depth=3, branching=2)


def _pruning_model(keep_nodes):
  """The table model; what the target likes least survives."""

  def forward(
    params, tokens, positions, tree_mask, cache, *, with_streams, scores=None
  ):
    del scores
    full = table_lm.forward(
      params, tokens, positions, tree_mask, cache, with_streams=with_streams
    )
    if tokens.shape[1] <= keep_nodes:
      return full
    seen = tree_mask.sum(axis=-1)
    depths = seen - 1
    is_ancestor = tree_mask & (seen[:, None] == depths[..., None])
    parents = jnp.argmax(is_ancestor, axis=-1)
    logits = -table_lm.logits(params, full.hidden)
    rows = jnp.arange(tokens.shape[0])[:, None]
    own = jax.nn.log_softmax(logits, axis=-1)[rows, parents, tokens]
    tree = tree_lib.DraftTree(tokens, parents, depths)
    scores = tree_lib.path_scores(tree, own, max_depth=SMALL.depth)
    survivors = tree_lib.prune(tree, scores, keep_nodes)[1]
    pick = lambda x: jnp.take_along_axis(x, survivors, axis=1)
    return interface.Forward(
      pick(full.hidden[..., 0])[..., None],
      full.cache,
      {'token': pick(full.stream_state['token'])},
      interface.Pruned(survivors, num_early_layers=1),
    )

  return table_lm.MODEL._replace(forward=forward)


class _ChosenAsDrawn(streams.Streams):
  """Planted bias: the best tokens, with the law as if they had been drawn."""

  def propose(self, params, context, state):
    greedy = context._replace(settings=None)
    return super().propose(params, greedy, state)


RULES = {
  'recursive': ('gumbel_top_k', 'recursive_rejection', SMALL, 0),
  'recursive pruned': ('gumbel_top_k', 'recursive_rejection', SMALL, 6),
  'beam': ('beam', 'recursive_rejection', BEAM, 0),
  'multi-step': ('independent', 'multi_step', SMALL, 0),
  'multi-step pruned': ('independent', 'multi_step', SMALL, 6),
  'walk': ('top_k', 'walk', SMALL, 0),
  'planted bias': ('gumbel_top_k', 'recursive_rejection', SMALL, 0),
}


def _make_decoder(name):
  drafting, verifier, tree, keep = RULES[name]
  options = config_drafting.DrafterConfig(drafting=drafting, verifier=verifier)
  make = _ChosenAsDrawn if name == 'planted bias' else streams.Streams
  if keep:
    tree = config.TreeConfig(
      'full', depth=tree.depth, branching=tree.branching, keep_nodes=keep
    )
  return decoder_lib.Decoder(
    _pruning_model(keep) if keep else table_lm.MODEL,
    make(tree, table_lm.NUM_STREAMS, options),
    DECODE,
    verifier=verifiers.make(options),
  )


# Laws that depend on the path, unlike those of streams.
DRAFT_MODEL_RULES = {
  'walk': ('top_k', 'walk', SMALL),
  'recursive': ('gumbel_top_k', 'recursive_rejection', SMALL),
  'beam': ('beam', 'recursive_rejection', BEAM),
  'multi-step': ('independent', 'multi_step', SMALL),
}


def _draft_model_decoder(name):
  """The table model, and as its drafter a table half like it."""
  drafting, verifier, tree = DRAFT_MODEL_RULES[name]
  options = config_drafting.DrafterConfig(
    'draft_model', drafting=drafting, verifier=verifier
  )
  unwrap = lambda fn: (
    lambda params, *args, **kwargs: fn(params.base, *args, **kwargs)
  )
  fns = table_lm.MODEL._replace(
    forward=unwrap(table_lm.forward), logits=unwrap(table_lm.logits)
  )
  drafter = draft_model.DraftModel(fns, tree, DECODE, options)
  return decoder_lib.Decoder(
    fns, drafter, DECODE, verifier=verifiers.make(options)
  )


@functools.cache
def _expected(cfg):
  """Law [V ** MAX_NEW] of the output, from the table's definition.

  A text that EOS ends is counted as if it went on with token 0.
  """
  law, texts = np.ones(1), [[]]
  for num_new in range(MAX_NEW):
    scores = [
      reference.process_logits(
        reference.edit_logits(
          table_lm.next_logits(PARAMS, PROMPT + text),
          PROMPT + text,
          cfg,
          num_new=num_new,
          eos_ids=(EOS_ID,),
        ),
        *(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p),
      )
      for text in texts
    ]
    probs = scipy.special.softmax(np.float64(scores), axis=1)
    has_ended = np.array([EOS_ID in text for text in texts])
    probs[has_ended] = np.eye(VOCAB_SIZE)[0]
    law = (law[:, None] * probs).reshape(-1)
    texts = [[*text, token] for text in texts for token in range(VOCAB_SIZE)]
  return law


def _p_value(counts, probs):
  """Of a chi-square test; outcomes that are too rare share a cell."""
  expected = probs * counts.sum()
  assert not counts[expected == 0].any()
  is_rare = expected < 5
  pool = lambda x: np.append(x[~is_rare], x[is_rare].sum())
  counts, expected = pool(counts), pool(expected)
  statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
  return scipy.stats.chi2.sf(statistic, len(counts) - 1)


def _p_value_of(name, cfg=LAW):
  return _p_value_of_output(_make_decoder(name), PARAMS, cfg)


def _p_value_of_output(decoder, params, cfg):
  result = decoder.generate(
    params, [PROMPT] * NUM_ROWS, seed=11, row_ids=range(NUM_ROWS), sampling=cfg
  )
  digits = VOCAB_SIZE ** np.arange(MAX_NEW)[::-1]
  tokens = [row + [0] * (MAX_NEW - len(row)) for row in result.tokens]
  codes = np.array(tokens) @ digits
  counts = np.bincount(codes, minlength=VOCAB_SIZE**MAX_NEW)
  assert 0.3 < result.tokens_per_call() - 1 < 2.5
  return _p_value(counts, _expected(cfg))


@pytest.mark.slow
@pytest.mark.parametrize('name', DRAFT_MODEL_RULES)
def test_output_of_a_draft_model_follows_the_target_law(name):
  cfg = LAW if name in ('walk', 'beam') else EDITED
  other = table_lm.make_params(8, vocab_size=VOCAB_SIZE, scale=1.2)['table']
  draft = PARAMS | {'table': 0.6 * PARAMS['table'] + 0.4 * other}
  params = transformer_fns.Params(PARAMS, drafter=draft)
  assert _p_value_of_output(_draft_model_decoder(name), params, cfg) > 1e-3


@pytest.mark.parametrize(
  'name',
  [
    'recursive',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in sorted(set(RULES) - {'planted bias', 'recursive'})
    ),
  ],
)
def test_output_follows_the_target_law(name):
  cfg = EDITED if name == 'recursive' else LAW
  assert _p_value_of(name, cfg) > 1e-3


@pytest.mark.slow
def test_the_planted_bias_shows_in_the_output():
  assert _p_value_of('planted bias') < 1e-9
