# SPDX-License-Identifier: Apache-2.0
"""Accept tests against a loop over one row; temperature 0 is greedy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference
import table_lm

from specstream_jax import config, sampling
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import (
  decoder as decoder_lib,
  interface,
  rejection,
  tree as tree_lib,
  typical,
  verifiers,
  verify,
)
from specstream_jax.drafters import none, streams

NUM_ROWS, NUM_NODES, VOCAB_SIZE, PATH_LENGTH = 211, 11, 5, 4
WARM = config.SamplingConfig(temperature=0.7, top_k=4)
GREEDY = config.SamplingConfig()
ROWS, GREEDY_ROWS = (sampling.row_settings([cfg]) for cfg in (WARM, GREEDY))
REJECT = {
  'recursive_rejection': rejection.without_replacement,
  'multi_step': rejection.with_replacement,
}


@functools.cache
def _verification(is_pruned):
  """Random trees with unused nodes, equal siblings and a law per depth."""
  rng = np.random.default_rng(7)
  shape = NUM_ROWS, NUM_NODES
  parents, depths = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  tokens = rng.integers(0, VOCAB_SIZE, size=shape).astype(np.int32)
  for row in range(NUM_ROWS):
    for node in range(1, NUM_NODES):
      usable = np.flatnonzero(
        (depths[row, :node] < PATH_LENGTH - 1) & (tokens[row, :node] >= 0)
      )
      if rng.random() < 0.1:
        tokens[row, node] = -1
      else:
        parents[row, node] = rng.choice(usable)
      depths[row, node] = depths[row, parents[row, node]] + 1
  law = rng.normal(size=(NUM_ROWS, 3, VOCAB_SIZE)).astype(np.float32)
  law = tree_lib.DraftLaw(
    jax.nn.log_softmax(law, axis=-1), jnp.minimum(depths, 2)
  )
  tree = tree_lib.DraftTree(*map(jnp.asarray, (tokens, parents, depths)), law)
  logits = rng.normal(size=(*shape, VOCAB_SIZE)).astype(np.float32) * 2
  survivors = None
  if is_pruned:
    own = jnp.asarray(-rng.random(size=shape), jnp.float32)
    scores = tree_lib.path_scores(tree, own, max_depth=3)
    survivors = tree_lib.prune(tree, scores, 6)[1]
    logits = np.take_along_axis(logits, np.array(survivors)[..., None], axis=1)
  keys = sampling.row_keys(0, range(NUM_ROWS))
  positions = jnp.arange(NUM_ROWS, dtype=jnp.int32)
  return interface.Verification(
    tree, survivors, jnp.asarray(logits), keys, positions
  )


def test_the_formulas():
  laws = rejection.Laws(jnp.array([[0.5, 0.3, 0.2]]), jnp.array([[0.2, 0.7, 0.1]]))  # fmt: skip
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  for token, prob in enumerate([1, 3 / 7, 1]):
    close(rejection.accept_probability(laws, jnp.array([token])), [prob])
  after = rejection.without_replacement(laws, jnp.array([1]))
  close(after.target_probs, [[0.75, 0, 0.25]])
  close(after.draft_probs, [[2 / 3, 0, 1 / 3]])
  after = rejection.with_replacement(laws, jnp.array([1]))
  close(after.target_probs, [[0.75, 0, 0.25]])
  close(after.draft_probs, laws.draft_probs)


def test_nothing_left_by_rounding_keeps_the_laws():
  """A sure draft law leaves no residual where it is right."""
  laws = rejection.Laws(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.0]]))
  for reject in REJECT.values():
    after = reject(laws, jnp.array([1]))
    np.testing.assert_array_equal(after.target_probs, [[0, 1]])
    assert np.isfinite(after.draft_probs).all()


def _walk_one(tree, row, target_of, uniforms, rule, survivors):
  """Leaf, depth, law left [V] and accepted pruned token (-1), by loops."""
  tokens, parents = np.array(tree.tokens[row]), np.array(tree.parents[row])
  leaf, depth = 0, 0
  while True:
    target = target_of(leaf)
    draft = np.exp(
      np.float64(tree.law.log_probs[row, tree.law.index[row, leaf]])
    )
    for node in range(1, len(tokens)):
      token = tokens[node]
      if parents[node] != leaf or token < 0:
        continue
      ratio = target[token] / draft[token] if draft[token] else np.inf
      if uniforms[node] < (ratio if target[token] else 0.0):
        break
      left = np.maximum(target - draft, 0.0)
      target = left / left.sum()
      if rule == 'recursive_rejection':
        draft[token] = 0.0
        draft /= draft.sum()
    else:
      return leaf, depth, target, -1
    if node not in survivors:
      return leaf, depth, target, token
    leaf, depth = node, depth + 1


@pytest.mark.parametrize('is_pruned', [False, True])
@pytest.mark.parametrize('rule', REJECT)
def test_walk(rule, is_pruned):
  verification = _verification(is_pruned)
  rng = np.random.default_rng(1)
  uniforms = rng.random(size=(NUM_ROWS, NUM_NODES)).astype(np.float32)
  walk = jax.jit(rejection.walk, static_argnums=3)
  got = walk(verification, ROWS, jnp.asarray(uniforms), REJECT[rule])
  probs = np.float64(sampling.law(verification.logits, ROWS))
  for row in range(NUM_ROWS):
    survivors = list(range(NUM_NODES))
    if is_pruned:
      survivors = verification.survivors[row].tolist()
    target_of = lambda node: probs[row, survivors.index(node)]  # noqa: B023
    leaf, depth, left, token = _walk_one(
      verification.tree, row, target_of, uniforms[row], rule, survivors
    )
    assert (got.leaf[row], got.accept_length[row]) == (leaf, depth)
    assert got.pruned_token[row] == token
    if token < 0:
      np.testing.assert_allclose(
        got.laws.target_probs[row], left, atol=2e-6, rtol=1e-4
      )
  assert np.unique(got.accept_length).tolist() == [0, 1, 2, 3]
  assert (np.array(got.pruned_token) >= 0).any() == is_pruned


@pytest.mark.parametrize('is_pruned', [False, True])
@pytest.mark.parametrize('rule', ['recursive_rejection', 'multi_step', 'typical'])  # fmt: skip
def test_greedy_is_the_walk(rule, is_pruned):
  options = config_drafting.DrafterConfig(
    drafting='independent' if rule == 'multi_step' else 'beam', verifier=rule
  )
  verification = _verification(is_pruned)
  run = lambda rule, settings: jax.jit(rule, static_argnums=2)(
    verification, settings, PATH_LENGTH
  )
  got = run(verifiers.make(options), GREEDY_ROWS)
  want = run(verify.walk, None)
  tree = verify.surviving_tree(verification)
  # `typical` takes the deepest of equal siblings, to which the random logits
  # here, unlike a model's, give different continuations.
  kept = np.ones(NUM_ROWS, bool)
  if rule == 'typical':
    kept = ~_has_equal_siblings(tree)
  assert kept.sum() > 30
  np.testing.assert_array_equal(got.path[kept], want.path[kept])
  np.testing.assert_array_equal(got.bonus[kept], want.bonus[kept])
  _check_paths(tree, got)
  assert np.array(got.accept_length).max() > 1


def _has_equal_siblings(tree):
  """[B] bool."""
  tokens, parents = np.array(tree.tokens), np.array(tree.parents)
  same = tokens[:, 1:, None] == tokens[:, None, 1:]
  same &= parents[:, 1:, None] == parents[:, None, 1:]
  same &= tokens[:, 1:, None] >= 0
  return np.triu(same, 1).any(axis=(1, 2))


def _check_paths(tree, verified):
  for row in range(NUM_ROWS):
    length, path = int(verified.accept_length[row]), verified.path[row]
    assert path[0] == 0 and path[length] == verified.leaf[row]
    assert (path[length:] == verified.leaf[row]).all()
    for above, node in itertools.pairwise(path[: length + 1].tolist()):
      assert tree.parents[row, node] == above and tree.tokens[row, node] >= 0


@pytest.mark.parametrize('is_pruned', [False, True])
def test_accepted_paths_are_paths_when_sampling(is_pruned):
  verification = _verification(is_pruned)
  verifier = jax.jit(rejection.recursive_rejection, static_argnums=2)
  got = verifier(verification, ROWS, PATH_LENGTH)
  _check_paths(verify.surviving_tree(verification), got)
  law = sampling.law(verification.logits, ROWS)
  rows = np.arange(NUM_ROWS)
  assert (law[rows, got.leaf, got.bonus] > 0).all()
  assert set(np.unique(got.accept_length)) >= {0, 1, 2}


def test_typical():
  """The longest path above min(epsilon, delta * exp(-entropy))."""
  epsilon, delta = 0.2, 0.6
  verification = _verification(True)
  got = typical.typical(
    verification, ROWS, PATH_LENGTH, epsilon=epsilon, delta=delta
  )
  tree = verify.surviving_tree(verification)
  probs = np.float64(sampling.law(verification.logits, ROWS))
  entropy = -np.sum(probs * np.log(np.maximum(probs, 1e-30)), axis=-1)
  threshold = np.minimum(epsilon, delta * np.exp(-entropy))
  for row in range(NUM_ROWS):
    tokens, parents = np.array(tree.tokens[row]), np.array(tree.parents[row])
    best = {0: (0, 0.0)}
    for node in range(1, len(tokens)):
      above, prob = parents[node], probs[row, parents[node], tokens[node]]
      if above in best and tokens[node] >= 0 and prob > threshold[row, above]:
        depth, score = best[above]
        best[node] = depth + 1, score + np.log(prob)
    leaf = max(best, key=best.get)
    assert got.accept_length[row] == best[leaf][0]
    assert best[int(got.leaf[row])][1] == pytest.approx(best[leaf][1])
  _check_paths(tree, got)
  drawn = sampling.draw(
    verification.logits[np.arange(NUM_ROWS), got.leaf][:, None],
    verification.row_keys,
    (verification.root_positions + got.accept_length)[:, None],
    ROWS,
  )
  np.testing.assert_array_equal(got.bonus, drawn[:, 0])


@pytest.mark.parametrize(
  ('epsilon', 'delta', 'is_typical'),
  [
    # Entropy of 1/2, 1/4, 1/4 is 1.04 nats: exp(-1.04) is 0.354.
    (0.9, 0.5, [True, True, True]),  # above 0.177
    (0.9, 0.8, [True, True, False]),  # above 0.283
    (0.9, 1.5, [True, False, False]),  # above 0.530
    (0.3, 1.5, [True, True, False]),  # above 0.3
    (0.25, 1.5, [True, True, False]),  # above 0.25
    (0.2, 1.5, [True, True, True]),  # above 0.2
  ],
)
def test_what_is_typical_by_hand(epsilon, delta, is_typical):
  probs = np.full((1, 3, 3), [0.5, 0.25, 0.25], np.float32)
  as_ids = lambda *ids: np.array([ids], np.int32)
  tree = tree_lib.DraftTree(as_ids(2, 0, 1), as_ids(0, 0, 0), as_ids(0, 1, 1))
  found, judged = typical._judge(tree, probs, epsilon, delta)
  np.testing.assert_array_equal(found[0, 1:], [0.5, 0.25])
  assert judged.tolist() == [is_typical]


def test_of_equally_long_paths_the_likelier_as_a_whole():
  # All but the first edge of the other path are the likelier ones.
  law = np.full((1, 7, 4), 0.1, np.float32)
  law[0, 0] = 0.6, 0.3, 0.05, 0.05
  law[0, 1] = 0.5, 0.2, 0.2, 0.1
  law[0, 2] = 0.05, 0.5, 0.25, 0.2
  law[0, 3] = 0.4, 0.3, 0.2, 0.1
  law[0, 4] = 0.1, 0.55, 0.25, 0.1
  as_ids = lambda *ids: np.array([ids], np.int32)
  tree = tree_lib.DraftTree(
    as_ids(0, 0, 1, 0, 1, 0, 1),
    as_ids(0, 0, 0, 1, 2, 3, 4),
    as_ids(0, 1, 1, 2, 2, 3, 3),
  )
  warm = sampling.row_settings([config.SamplingConfig(temperature=1.0)])
  keys = sampling.row_keys(0, [0])
  verification = interface.Verification(
    tree, None, jnp.log(law), keys, np.zeros(1, np.int32)
  )
  rule = functools.partial(typical.typical, epsilon=0.01, delta=0.3)
  got = jax.jit(rule, static_argnums=2)(verification, warm, 4)
  # 0.6 * 0.5 * 0.4 = 0.12 and 0.3 * 0.5 * 0.55 = 0.08, but 0.2 and 0.28
  assert (got.leaf.tolist(), got.accept_length.tolist()) == ([5], [3])


def test_chosen_drafts_have_no_law():
  verification = _verification(False)
  tree = tree_lib.root_only(verification.tree.tokens[:, 0])
  with pytest.raises(ValueError, match=r"no law.*use verifier 'walk'"):
    rejection.multi_step(verification._replace(tree=tree), ROWS, 1)


BUCKET, MAX_NEW = 11, 13
SMALL = config.TreeConfig('full', depth=2, branching=2)
BEAM = config.TreeConfig('best_first', depth=3, num_nodes=8)


def _decoder(drafting, verifier, sampling_cfg):
  options = config_drafting.DrafterConfig(drafting=drafting, verifier=verifier)
  tree = BEAM if drafting == 'beam' else SMALL
  return decoder_lib.Decoder(
    table_lm.MODEL,
    streams.Streams(tree, table_lm.NUM_STREAMS, options),
    config.DecodeConfig(max_new_tokens=MAX_NEW, prompt_bucket=BUCKET),
    sampling_cfg,
    verifier=verifiers.make(options),
  )


def _prompts(seed):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 13, size=n).tolist() for n in (2, 11, 5)]


@pytest.mark.parametrize(
  ('drafting', 'verifier'),
  [
    ('gumbel_top_k', 'recursive_rejection'),
    ('beam', 'recursive_rejection'),
    ('independent', 'multi_step'),
    ('top_k', 'typical'),
  ],
)
def test_greedy_output_is_plain_greedy_output(drafting, verifier):
  decoder, accepted = _decoder(drafting, verifier, GREEDY), 0
  for seed in range(4):
    params = table_lm.make_params(seed, quality=0.7)
    result = decoder.generate(params, _prompts(seed))
    for prompt, got in zip(_prompts(seed), result.tokens, strict=True):
      next_token = lambda tokens: int(
        np.argmax(table_lm.next_logits(params, tokens))  # noqa: B023
      )
      want = reference.autoregressive(next_token, prompt, MAX_NEW, (), ())
      assert got == want[0]
    accepted += sum(map(sum, result.accept_lengths))
  assert accepted > 20
  assert decoder.num_compilations == 2


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch():
  params, prompts = table_lm.make_params(2, quality=0.8), _prompts(3)
  decoder = _decoder('gumbel_top_k', 'recursive_rejection', WARM)
  together = decoder.generate(params, prompts, seed=7, row_ids=[4, 8, 6])
  other = decoder.generate(
    params, [prompts[2], prompts[0], [1]], seed=7, row_ids=[6, 4, 0]
  )
  for field in ('tokens', 'accept_lengths'):
    first, second = getattr(together, field), getattr(other, field)
    assert second[:2] == [first[2], first[0]]
  assert together.tokens_per_call() > 1


def test_the_walk_draws_what_plain_decoding_draws():
  """Random drafts are drafts: noise of their own leaves the output alone."""
  decoder = _decoder('beam', 'walk', WARM)
  plain = decoder_lib.Decoder(
    table_lm.MODEL, none.NoDraft(), decoder.setup.cfg, WARM
  )
  params = table_lm.make_params(5, quality=0.8)
  want = plain.generate(params, _prompts(0), seed=3)
  got = decoder.generate(params, _prompts(0), seed=3)
  assert got.tokens == want.tokens
  assert got.tokens_per_call() > 1
