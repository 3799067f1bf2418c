# SPDX-License-Identifier: Apache-2.0
"""The law of what the verifiers emit, by exact enumeration.

On a small vocabulary every draft tree and every outcome of every accept test
can be listed. The production verifier decides each of them: a uniform of 0
passes any possible test, one of 1 fails every test, and the accept
probabilities that the verifier reports weigh the outcomes. What one call emits
is continued with the target itself; the distance of the result to the target's
law (paper, section 3, "Sampling") is rounding for an exact rule.

Axis letters: R enumerated cases, M tree nodes, D depth, V vocabulary.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config, sampling
from specstream_jax.decoding import (
  interface,
  random_trees,
  rejection,
  tree as tree_lib,
  verify,
)

# Above float32 rounding of a few hundred sums, below any bias of a rule.
LIMIT = 1e-6

_walk = jax.jit(rejection.walk, static_argnums=3)
_verify = jax.jit(verify.verify, static_argnames='path_length')
_surviving_tree = jax.jit(verify.surviving_tree)
_mark_unused = jax.jit(random_trees.mark_unused, static_argnums=0)
_process_logits = jax.jit(sampling.process_logits)


class Problem(NamedTuple):
  """Random laws on a small vocabulary.

  Attributes:
    target_logits: for d = 0 … D, float32 [V^d, V]: after d tokens, which number
      the row as digits to the base V.
    exit_logits: the same of the early exit that prunes.
    draft_logits: [D, V] float32, of the drafts of depth d + 1.
  """

  target_logits: list[np.ndarray]
  exit_logits: list[np.ndarray]
  draft_logits: np.ndarray

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.draft_logits.shape[1]


class Cases(NamedTuple):
  """Everything that can be drawn.

  Attributes:
    tree: R trees with the law of their drafts.
    weights: [R] float64 probability of each.
    codes: [R, M] number of the tokens on the path to each node.
  """

  tree: tree_lib.DraftTree
  weights: np.ndarray
  codes: np.ndarray


def random_problem(seed: int, vocab_size: int, depth: int) -> Problem:
  """Laws that agree no more than by chance."""
  rng = np.random.default_rng(seed)
  table = lambda n: (1.5 * rng.normal(size=(n, vocab_size))).astype(np.float32)
  tables = lambda: [table(vocab_size**d) for d in range(depth + 1)]
  return Problem(tables(), tables(), table(depth))


def draws_without_replacement(
  probs: np.ndarray, count: int
) -> list[tuple[tuple[int, ...], float]]:
  """Every sequence of distinct draws and its probability; -1 if none is left."""
  support = np.flatnonzero(probs > 0)
  unused = (-1,) * (count - len(support))
  drawn = []
  for tokens in itertools.permutations(support, min(count, len(support))):
    weight, left = 1.0, probs.copy()
    for token in tokens:
      weight *= left[token] / left.sum()
      left[token] = 0.0
    drawn.append((tokens + unused, weight))
  return drawn


def draws_with_replacement(
  probs: np.ndarray, count: int
) -> list[tuple[tuple[int, ...], float]]:
  """Every sequence of independent draws and its probability."""
  support = np.flatnonzero(probs > 0)
  return [
    (tuple(map(int, tokens)), float(np.prod(probs[list(tokens)])))
    for tokens in itertools.product(support, repeat=count)
  ]


def best_draws(
  probs: np.ndarray, count: int
) -> list[tuple[tuple[int, ...], float]]:
  """The most probable tokens, as if nothing else could have been drawn."""
  return [(tuple(np.argsort(-probs)[:count]), 1.0)]


Draws = Callable[[np.ndarray, int], list[tuple[tuple[int, ...], float]]]


def enumerate_trees(
  problem: Problem,
  cfg: config.TreeConfig,
  sampling_cfg: config.SamplingConfig,
  draws: Draws,
  drawn_by: random_trees.Sources | None = None,
) -> Cases:
  """Every static tree that `draws` can grow.

  Args:
    problem: the laws.
    cfg: shape of the tree.
    sampling_cfg: how drafts are drawn.
    draws: siblings of a law [V], and the probability of each outcome.
    drawn_by: which nodes share their draws; None as production has it.
  """
  drawn_by = drawn_by or random_trees.sources(cfg)
  probs = _probs(problem.draft_logits[: cfg.max_depth], sampling_cfg)
  width = 1 + int(drawn_by.rank.max())
  outcomes = [draws(probs[level], width) for level in drawn_by.level]
  chosen = list(itertools.product(*outcomes))
  weights = np.array([np.prod([w for _, w in case]) for case in chosen])
  tokens = np.array([[tokens for tokens, _ in case] for case in chosen])
  root = np.zeros(len(chosen), np.int32)
  drafts = tokens[:, drawn_by.of_node, drawn_by.rank]
  tree = _mark_unused(cfg, root, drafts)
  with np.errstate(divide='ignore'):
    log_probs = np.log(probs).astype(np.float32)
  log_probs = np.broadcast_to(log_probs, (len(chosen), *log_probs.shape))
  index = np.minimum(tree.depths, cfg.max_depth - 1)
  law: Any = log_probs, index  # of NumPy, as there are so many
  tree = dataclasses.replace(tree, law=tree_lib.DraftLaw(*law))
  return Cases(tree, weights, path_codes(tree, problem.vocab_size))


def path_codes(tree: tree_lib.DraftTree, vocab_size: int) -> np.ndarray:
  """Number [R, M] of the tokens on the path to each node, base V."""
  tokens, parents = np.array(tree.tokens), np.array(tree.parents)
  codes, rows = np.zeros_like(tokens), np.arange(len(tokens))
  for node in range(1, tokens.shape[1]):
    above = codes[rows, parents[:, node]]
    codes[:, node] = above * vocab_size + np.maximum(tokens[:, node], 0)
  return codes


def verification_of(
  problem: Problem, cases: Cases, keep_nodes: int = 0
) -> interface.Verification:
  """What the loop would hand to the verifier, pruned by the early exit."""
  tree, survivors = cases.tree, None
  logits = _at_nodes(problem.target_logits, cases)
  if keep_nodes:
    early = _at_nodes(problem.exit_logits, cases)
    survivors = np.array(_survivors(tree, early, keep_nodes))
    logits = np.take_along_axis(logits, survivors[..., None], axis=1)
  # The noise is enumerated.
  seen: Any = tree, survivors, logits, None, None
  return interface.Verification(*seen)


def _at_nodes(tables, cases):
  """Logits [R, M, V] after each node's path."""
  depths = np.array(cases.tree.depths)
  choices = [table[cases.codes % len(table)] for table in tables]
  return np.choose(depths[..., None], choices)


@functools.partial(jax.jit, static_argnums=2)
def _survivors(tree, early, keep_nodes):
  """Nodes [R, keep_nodes] of the best paths by early-exit logits."""
  rows = jnp.arange(tree.tokens.shape[0])[:, None]
  log_probs = jax.nn.log_softmax(early, axis=-1)
  own = log_probs[rows, tree.parents, jnp.maximum(tree.tokens, 0)]
  num_nodes = tree.tokens.shape[1]
  scores = tree_lib.path_scores(tree, own, max_depth=num_nodes - 1)
  return tree_lib.prune(tree, scores, keep_nodes)[1]


def _repeat(arrays, count):
  """Every row `count` times."""
  return jax.tree.map(lambda x: np.repeat(np.array(x), count, axis=0), arrays)


def rejection_law(
  problem: Problem,
  cases: Cases,
  verification: interface.Verification,
  sampling_cfg: config.SamplingConfig,
  reject: rejection.Reject,
) -> np.ndarray:
  """Law [V^(D+1)] of the next tokens, over trees and accept tests."""
  tree = verification.tree
  num_cases, num_nodes = tree.tokens.shape
  fails = itertools.product((0.0, 1.0), repeat=num_nodes - 1)
  uniforms = np.array([(1.0, *outcome) for outcome in fails], np.float32)
  walked = _walk(
    _repeat(verification, len(uniforms)),
    sampling.row_settings([sampling_cfg]),
    np.tile(uniforms, (num_cases, 1)),
    reject,
  )
  weights = _test_weights(np.array(walked.accept_probs), uniforms, num_cases)
  weights *= np.repeat(cases.weights, len(uniforms))
  token = np.array(walked.pruned_token)[:, None]
  certain = np.arange(problem.vocab_size) == token
  left = np.array(walked.laws.target_probs, np.float64)
  bonus = np.where(token >= 0, certain, left)
  codes = path_codes(tree, problem.vocab_size)
  codes = np.repeat(codes, len(uniforms), axis=0)
  rows, leaf = np.arange(len(codes)), np.array(walked.leaf)
  length = np.array(walked.accept_length)
  emitted = codes[rows, leaf], length, bonus, weights
  return _continue(problem, sampling_cfg, *emitted)


def _test_weights(accept_probs, uniforms, num_cases):
  """Probability [R] of these outcomes; nodes without a test count as failed."""
  fails = np.tile(uniforms, (num_cases, 1)) > 0
  probs = np.float64(accept_probs)
  is_tested = probs >= 0
  outcome = np.where(fails, 1.0 - probs, probs)
  return np.where(is_tested, outcome, fails).prod(axis=1)


def walk_law(
  problem: Problem,
  cases: Cases,
  verification: interface.Verification,
  sampling_cfg: config.SamplingConfig,
) -> np.ndarray:
  """The same for the default rule, over the target's draws at every node."""
  tree = _surviving_tree(verification)
  num_cases, num_nodes = tree.tokens.shape
  draws = itertools.product(range(problem.vocab_size), repeat=num_nodes)
  draws = np.array(list(draws), np.int32)
  tiled = np.tile(draws, (num_cases, 1))
  verified = _verify(
    _repeat(tree, len(draws)),
    tiled,
    path_length=len(problem.target_logits),
  )
  probs = _probs(verification.logits, sampling_cfg)
  probs = np.repeat(probs, len(draws), axis=0)
  weights = np.take_along_axis(probs, tiled[..., None], axis=2)[..., 0].prod(1)
  weights *= np.repeat(cases.weights, len(draws))
  codes = np.repeat(path_codes(tree, problem.vocab_size), len(draws), axis=0)
  rows, leaf = np.arange(len(codes)), np.array(verified.leaf)
  bonus = np.eye(problem.vocab_size)[np.array(verified.bonus)]
  length = np.array(verified.accept_length)
  emitted = codes[rows, leaf], length, bonus, weights
  return _continue(problem, sampling_cfg, *emitted)


def _continue(problem, sampling_cfg, codes, accept_length, bonus, weights):
  """Law of D + 1 tokens: those of a call, then the target's own."""
  size = problem.vocab_size
  law = np.zeros(1)
  for depth, table in enumerate(_target_probs(problem, sampling_cfg)):
    law = law[:, None] * table
    here = accept_length == depth
    np.add.at(law, codes[here], weights[here, None] * bonus[here])
    law = law.reshape(size ** (depth + 1))
  return law


def _target_probs(problem, sampling_cfg):
  """For d = 0 … D, float64 [V^d, V]."""
  return [_probs(table, sampling_cfg) for table in problem.target_logits]


def _probs(logits, sampling_cfg):
  """float64 [..., V]; temperature > 0."""
  settings = sampling.row_settings([sampling_cfg])
  scores = np.float64(_process_logits(logits, settings))
  probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return probs / probs.sum(axis=-1, keepdims=True)


def target_law(
  problem: Problem, sampling_cfg: config.SamplingConfig
) -> np.ndarray:
  """Law [V^(D+1)] of the target's own next tokens."""
  law = np.ones(1)
  for table in _target_probs(problem, sampling_cfg):
    law = (law[:, None] * table).reshape(-1)
  return law


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
  """Half the sum of absolute differences."""
  return 0.5 * float(np.abs(first - second).sum())


class Check(NamedTuple):
  """A rule and how far what it emits is from the target's law.

  Attributes:
    name: of the rule and of what it verified.
    total_variation: to the target's law, 0 to 1.
    is_exact: whether it should be below `LIMIT`; else it should be far above.
  """

  name: str
  total_variation: float
  is_exact: bool

  @property
  def has_passed(self) -> bool:
    """Exact rules are exact, and the planted bias is found."""
    if self.is_exact:
      return self.total_variation < LIMIT
    return self.total_variation > 1e4 * LIMIT


RULES = {
  'walk': (best_draws, None),
  'recursive_rejection': (
    draws_without_replacement,
    rejection.without_replacement,
  ),
  'multi_step': (draws_with_replacement, rejection.with_replacement),
  'planted bias: top-k drafts in recursive_rejection': (
    best_draws,
    rejection.without_replacement,
  ),
}


def distance(
  rule: str,
  problem: Problem,
  cfg: config.TreeConfig,
  sampling_cfg: config.SamplingConfig,
) -> float:
  """Total variation of a rule of `RULES` to the target's law."""
  law = emitted_law(rule, problem, cfg, sampling_cfg)
  return total_variation(law, target_law(problem, sampling_cfg))


def emitted_law(
  rule: str,
  problem: Problem,
  cfg: config.TreeConfig,
  sampling_cfg: config.SamplingConfig,
) -> np.ndarray:
  """Law [V^(D+1)] of the next tokens by a rule of `RULES`."""
  draws, reject = RULES[rule]
  cases = enumerate_trees(problem, cfg, sampling_cfg, draws)
  verification = verification_of(problem, cases, cfg.keep_nodes)
  arguments = problem, cases, verification, sampling_cfg
  return rejection_law(*arguments, reject) if reject else walk_law(*arguments)


def run_checks(
  seed: int = 0, keep_nodes: Sequence[int] = (0, 4)
) -> list[Check]:
  """Every rule of `RULES` on two children a node, two deep, V = 3."""
  problem = random_problem(seed, vocab_size=3, depth=2)
  sampling_cfg = config.SamplingConfig(temperature=0.8)
  checks = []
  for rule, keep in itertools.product(RULES, keep_nodes):
    cfg = config.TreeConfig('full', depth=2, branching=2, keep_nodes=keep)
    found = distance(rule, problem, cfg, sampling_cfg)
    name = f'{rule}, {keep} of {cfg.size} nodes kept' if keep else rule
    checks.append(Check(name, found, not rule.startswith('planted')))
  return checks
