# SPDX-License-Identifier: Apache-2.0
"""The draft tree as data: build it from stream logits, mask it, prune it.

Paper, section 3, step 2 and "Pruning". The number of nodes is static, the
shape of the tree is an array like any other and may change every step.

Axis letters: B rows, M tree nodes including the root, J streams, V vocabulary.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specstream_jax import arrays, config, sampling
from specstream_jax.decoding import topology


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftLaw:
  """What the drafts of a tree were drawn from.

  Attributes:
    log_probs: [B, Q, V] float32, -inf where a token cannot be drawn.
    index: [B, M] int32, which of the Q laws the children of a node follow.
  """

  log_probs: arrays.Array
  index: arrays.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftTree:
  """A tree per row; parents precede children, node 0 is the root.

  The root is the last emitted token, whose K/V is not in the cache yet.

  Attributes:
    tokens: [B, M] int32; -1 marks an unused node, which no draw can match.
    parents: [B, M] int32; the root is its own parent.
    depths: [B, M] int32; the root has depth 0, unused nodes depth 1.
    law: of drafts that were drawn at random, siblings in the order of their
      draws; None for drafts that were chosen.
    scores: [B, M] float32 log-probability of each node's path as the drafter
      sees it, 0 of the root, -inf of unused nodes; None if it does not say.
  """

  tokens: arrays.Array
  parents: arrays.Array
  depths: arrays.Array
  law: DraftLaw | None = None
  scores: arrays.Array | None = None


def root_only(root: arrays.Array) -> DraftTree:
  """The tree of autoregressive decoding: root tokens [B], M = 1."""
  tokens = root[:, None].astype(jnp.int32)
  return DraftTree(tokens, jnp.zeros_like(tokens), jnp.zeros_like(tokens))


def without_drafts(tree: DraftTree, rows: arrays.Array) -> DraftTree:
  """The tree with only the root of each of `rows` [B] bool left in use."""
  is_draft = (jnp.arange(tree.tokens.shape[1]) > 0)[None]
  is_gone = is_draft & rows[:, None]
  scores = tree.scores
  if scores is not None:
    scores = jnp.where(is_gone, -jnp.inf, scores)
  tokens = jnp.where(is_gone, -1, tree.tokens)
  return dataclasses.replace(tree, tokens=tokens, scores=scores)


def ancestor_mask(parents: arrays.Array) -> arrays.Array:
  """Which nodes each node sees, bool [B, M, M]: itself and its ancestors.

  A root, two children of it and a child of the first (parents 0 0 0 1):

    1 0 0 0
    1 1 0 0
    1 0 1 0
    1 1 0 1

  Args:
    parents: [B, M] int32, parents before children.
  """
  num_nodes = parents.shape[1]
  nodes = jnp.arange(num_nodes)
  itself = (nodes[:, None] == nodes[None])[None]
  mask = jnp.broadcast_to(itself, (*parents.shape, num_nodes))
  # Each round doubles the number of generations a node has seen.
  for _ in range((num_nodes - 1).bit_length()):
    mask |= jnp.take_along_axis(mask, parents[..., None], axis=1)
    parents = jnp.take_along_axis(parents, parents, axis=1)
  return mask


# (depth of the candidates, grandparents [B, W], parents [B, W], candidates
# [B, k], their log-probabilities [B, k]) -> float32 [B, W, k].
EdgeScores = Callable[..., arrays.Array]


class Limits(NamedTuple):
  """How much of a `best_first` tree's room each row uses.

  Attributes:
    size: [B] int32 nodes, the root among them.
    depth: [B] int32.
    branching: [B] int32 candidates per depth.
  """

  size: arrays.Array
  depth: arrays.Array
  branching: arrays.Array


def blank(root: arrays.Array, size: int) -> DraftTree:
  """Room for `size` nodes of which only the root [B] is used."""
  shape = len(root), size
  tokens = jnp.full(shape, -1, jnp.int32).at[:, 0].set(root)
  zeros = jnp.zeros(shape, jnp.int32)
  depths = zeros.at[:, 1:].set(1)
  scores = jnp.full(shape, -jnp.inf, jnp.float32).at[:, 0].set(0.0)
  return DraftTree(tokens, zeros, depths, scores=scores)


def from_stream_logits(
  logits: arrays.Array,
  root: arrays.Array,
  cfg: config.TreeConfig,
  *,
  edge_scores: EdgeScores | None = None,
  before_root: arrays.Array | None = None,
  limits: Limits | None = None,
) -> DraftTree:
  """The draft tree that the streams of one leaf propose.

  Args:
    logits: [B, J, V]; stream j (from 0) proposes the nodes of depth j + 1.
    root: [B] int32 last emitted token.
    cfg: kind and sizes of the tree.
    edge_scores: added to the log-probabilities of a `best_first` tree, see
      `EdgeScores`.
    before_root: [B] int32 token before the root, for `edge_scores`.
    limits: of a `best_first` tree, where rows do not use all of `cfg`.

  Raises:
    ValueError: the tree is deeper than there are streams, or wider than the
      vocabulary.
  """
  if cfg.kind == 'best_first':
    return best_first(
      logits,
      root,
      cfg,
      edge_scores=edge_scores,
      before_root=before_root,
      limits=limits,
    )
  logits = _checked(logits, cfg)
  parents, depths, ranks = topology.arrays(cfg)
  log_probs, top = sampling.top_k(
    jax.nn.log_softmax(logits, axis=-1), topology.width(cfg)
  )
  drafts = top[:, depths[1:] - 1, ranks[1:]]
  tokens = jnp.concatenate([root[:, None], drafts], axis=1).astype(jnp.int32)
  spread = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), tokens.shape)
  tree = DraftTree(tokens, spread(parents), spread(depths))
  own = log_probs[:, jnp.maximum(depths - 1, 0), ranks]
  scores = path_scores(tree, own, max_depth=cfg.max_depth)
  return dataclasses.replace(tree, scores=scores)


def _checked(logits, cfg):
  """The logits that a tree needs, if it fits them."""
  cfg.check_fits(config.StreamConfig(num_streams=logits.shape[1]))
  topology.check_vocabulary(cfg, logits.shape[-1])
  return logits[:, : cfg.max_depth].astype(jnp.float32)


def best_first(
  logits: arrays.Array,
  root: arrays.Array,
  cfg: config.TreeConfig,
  *,
  edge_scores: EdgeScores | None = None,
  before_root: arrays.Array | None = None,
  limits: Limits | None = None,
) -> DraftTree:
  """The M - 1 nodes of highest joint probability; closed under ancestors.

  Level by level the best M - 1 nodes, then the best M - 1 of all levels: a
  child never outscores its parent, so each chosen node's ancestors are chosen.
  Arguments and errors are those of `from_stream_logits`.
  """
  logits = _checked(logits, cfg)
  batch, num_drafts = logits.shape[0], cfg.num_nodes - 1
  log_probs, tokens = sampling.top_k(
    jnp.minimum(jax.nn.log_softmax(logits, axis=-1), 0.0), cfg.branching
  )
  is_within = None
  if limits is not None:
    is_within = jnp.arange(cfg.branching)[None] < limits.branching[:, None]
    log_probs = jnp.where(is_within[:, None], log_probs, -jnp.inf)
  scores, levels = jnp.zeros((batch, 1)), []
  first_parent, num_candidates = 0, 1  # of all candidates, the root being 0
  above = None if before_root is None else before_root[:, None]
  own = root[:, None]
  for depth in range(1, cfg.max_depth + 1):
    edges = log_probs[:, depth - 1, None]  # [B, W or 1, k]
    if edge_scores is not None:
      candidates = tokens[:, depth - 1], log_probs[:, depth - 1]
      edges += edge_scores(depth, above, own, *candidates)
      # Never above 0, so that no child outscores its parent.
      edges = jnp.minimum(edges, 0.0)
    if limits is not None and is_within is not None:
      is_kept = is_within & (depth <= limits.depth)[:, None]
      edges = jnp.where(is_kept[:, None], edges, -jnp.inf)
    joint = (scores[:, :, None] + edges).reshape(batch, -1)
    scores, best = jax.lax.top_k(joint, min(num_drafts, joint.shape[1]))
    rank = best % cfg.branching
    token = jnp.take_along_axis(tokens[:, depth - 1], rank, axis=1)
    parent = first_parent + best // cfg.branching
    above = jnp.take_along_axis(own, best // cfg.branching, axis=1)
    own = token
    levels.append((scores, token, parent, jnp.full_like(token, depth)))
    first_parent = num_candidates
    num_candidates += scores.shape[1]
  scores, tokens, parents, depths = (
    jnp.concatenate(x, axis=1) for x in zip(*levels, strict=True)
  )
  if limits is not None:
    scores = within(scores, limits.size - 1)
  return _select(scores, tokens, parents, depths, root, num_drafts)


def within(scores: arrays.Array, counts: arrays.Array) -> arrays.Array:
  """Scores [B, C] with -inf for what is not of a row's best `counts` [B]."""
  # A row's last node is as good as any that it has no room for, or better.
  best = jax.lax.top_k(scores, scores.shape[1])[0]
  last = jnp.clip(counts - 1, 0, best.shape[1] - 1)
  least = jnp.take_along_axis(best, last[:, None], axis=1)
  return jnp.where(scores >= least, scores, -jnp.inf)


def _select(scores, tokens, parents, depths, root, num_drafts):
  """Tree of the root and the best `num_drafts` candidates [B, C]."""
  short = max(num_drafts - scores.shape[1], 0)
  # The root comes before the candidates, unused nodes after them.
  pad = lambda x, unused: jnp.pad(
    x, ((0, 0), (1, short)), constant_values=((0, 0), (0, unused))
  ).astype(jnp.int32)
  scores = jnp.pad(scores, ((0, 0), (1, short)), constant_values=-jnp.inf)
  tokens = pad(tokens, -1).at[:, 0].set(root)
  whole = DraftTree(tokens, pad(parents, 0), pad(depths, 1))
  return likeliest(whole, scores, num_drafts + 1)


def likeliest(tree: DraftTree, scores: arrays.Array, keep: int) -> DraftTree:
  """The tree that `prune` leaves, with the scores of its nodes."""
  tree, survivors = prune(tree, scores, keep)
  scores = jnp.take_along_axis(scores, survivors, axis=1)
  scores = jnp.where(tree.tokens < 0, -jnp.inf, scores).at[:, 0].set(0.0)
  return dataclasses.replace(tree, scores=scores)


def coupled_edges(
  coupling_logits: Callable[..., arrays.Array], hidden: arrays.Array
) -> EdgeScores:
  """Edge scores that share out the candidates' mass anew, parent by parent.

  log P(c | p) = log_softmax over the candidates of (log P_stream(c) + C(p, c))
  + log of the mass that the stream gives them together; the score is what that
  adds to log P_stream(c).

  Args:
    coupling_logits: (hidden [B, ...], parents [B, W], candidates [B, k]) ->
      C [B, W, k].
    hidden: [B, J, ...] states of the streams; stream j (from 0) drafts the
      candidates of depth j + 1.
  """

  def score(depth, grandparents, parents, candidates, log_probs):
    del grandparents
    own, state = log_probs[:, None], hidden[:, depth - 1]
    coupled = own + coupling_logits(state, parents, candidates)
    mass = jax.nn.logsumexp(own, axis=-1, keepdims=True)
    return jax.nn.log_softmax(coupled, axis=-1) + mass - own

  return score


def path_scores(
  tree: DraftTree, log_probs: arrays.Array, *, max_depth: int
) -> arrays.Array:
  """Cumulative log-probability [B, M] of each node's path; the root has 0.

  Args:
    tree: the tree.
    log_probs: [B, M] float32, log-probability of each node given its parent;
      the root's entry is ignored.
    max_depth: depth of the deepest node.
  """
  own = jnp.where(tree.depths > 0, jnp.minimum(log_probs, 0.0), 0.0)
  scores = own
  # Summed from the root down, so that rounding cannot lift a child above its
  # parent.
  for _ in range(max_depth - 1):
    scores = own + jnp.take_along_axis(scores, tree.parents, axis=1)
  return scores


def prune(
  tree: DraftTree, scores: arrays.Array, keep: int
) -> tuple[DraftTree, arrays.Array]:
  """The `keep` nodes of highest score, root included.

  Paper: nodes below a threshold go. Here: the best `keep`, because shapes are
  static. The set is closed under ancestors as a child never outscores its
  parent and comes after it. Nodes that score -inf or NaN come back unused.

  Args:
    tree: M nodes.
    scores: [B, M] float32, cumulative along the path (see `path_scores`).
    keep: nodes that survive, 1 <= keep <= M.

  Returns:
    The tree of `keep` nodes, and their indices [B, keep] in the old one.

  Raises:
    ValueError: `keep` is out of range.
  """
  num_nodes = scores.shape[1]
  if not 1 <= keep <= num_nodes:
    raise ValueError(
      f'cannot keep {keep} of {num_nodes} draft tree nodes; use keep_nodes '
      f'between 1 and {num_nodes}'
    )
  # NaN would sort above the root, and lose it.
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  scores = scores.at[:, 0].set(jnp.inf)
  survivors = jnp.sort(jax.lax.top_k(scores, keep)[1], axis=1)
  is_used = jnp.take_along_axis(scores, survivors, axis=1) > -jnp.inf
  return restrict(tree, survivors, is_used), survivors


def restrict(
  tree: DraftTree, survivors: arrays.Array, is_used: arrays.Array | None = None
) -> DraftTree:
  """The tree of the surviving nodes, parents renumbered; without its law.

  Args:
    tree: M nodes.
    survivors: [B, keep] int32 increasing node indices, closed under ancestors,
      the root first.
    is_used: [B, keep] bool, survivors that come back unused where False.
  """
  gather = lambda x: jnp.take_along_axis(x, survivors, axis=1)
  new_index = jax.vmap(jnp.searchsorted)(survivors, gather(tree.parents))
  tokens, depths = gather(tree.tokens), gather(tree.depths)
  used = tokens >= 0 if is_used is None else is_used & (tokens >= 0)
  used = used.at[:, 0].set(True)
  return DraftTree(
    jnp.where(used, tokens, -1),
    jnp.where(used, new_index, 0).astype(jnp.int32),
    jnp.where(used, depths, 1),
  )


def tree_hits(tree: DraftTree, true_tokens: arrays.Array) -> arrays.Array:
  """How deep the true continuation walks into the tree, [B] int32.

  Args:
    tree: the tree.
    true_tokens: [B, J] int32, token j (from 0) is the one at depth j + 1;
      negative entries match nothing.
  """
  num_true = true_tokens.shape[1]
  index = jnp.clip(tree.depths - 1, 0, num_true - 1)
  truth = jnp.take_along_axis(true_tokens, index, axis=1)
  is_true = (tree.tokens == truth) & (truth >= 0) & (tree.depths <= num_true)
  is_true |= tree.depths == 0
  on_path = jnp.all(is_true[:, None] | ~ancestor_mask(tree.parents), axis=-1)
  return jnp.where(on_path, tree.depths, 0).max(axis=1).astype(jnp.int32)
