# SPDX-License-Identifier: Apache-2.0
"""Draft trees drawn from laws, for verifiers that test drafts (RSD).

RSD (arXiv 2402.14160): `gumbel_top_k` is its RSD-C, siblings drawn without
replacement under every node of a static tree; `beam` its RSD-S, stochastic beam
search (Kool et al., arXiv 1903.06059). `independent` draws siblings with
replacement (SpecInfer).

All children of depth d + 1 follow one law, that of stream d. At temperature 0
nothing is drawn: the best tokens take the place of the drawn ones.

Axis letters: B rows, M tree nodes, W nodes of one depth, J streams (laws),
V vocabulary.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config, sampling
from specstream_jax.decoding import topology, tree as tree_lib


def check(drafting: str, cfg: config.TreeConfig, verifier: str) -> None:
  """Raises ValueError if `drafting` cannot grow this tree for this verifier."""
  accepted = ('full', 'chain', 'fixed')
  if drafting == 'beam':
    accepted = ('best_first',)
  if cfg.kind not in accepted:
    raise ValueError(
      f'drafting {drafting!r} cannot grow a tree of kind {cfg.kind!r}; set '
      f'kind to one of {accepted}'
    )
  if drafting != 'beam':
    return
  if cfg.num_nodes <= cfg.depth:
    raise ValueError(
      f'a beam of depth {cfg.depth} needs a node per depth and the root but '
      f'num_nodes is {cfg.num_nodes}; use num_nodes >= {cfg.depth + 1}'
    )
  if cfg.keep_nodes and verifier == 'recursive_rejection':
    raise ValueError(
      f"drafting 'beam' with keep_nodes={cfg.keep_nodes} would bias "
      "'recursive_rejection'; use keep_nodes=0, drafting 'gumbel_top_k' or "
      "verifier 'walk'"
    )


def draw(
  logits: arrays.Array,
  root: arrays.Array,
  keys: arrays.Array,
  cfg: config.TreeConfig,
  settings: sampling.RowSettings | None,
  drafting: str,
) -> tree_lib.DraftTree:
  """A tree drawn from stream logits, with its law.

  Args:
    logits: [B, J, V]; stream j (from 0) proposes the nodes of depth j + 1.
    root: [B] int32 last emitted token.
    keys: [B] of this call, see `sampling.call_keys`.
    cfg: a tree that passes `check`.
    settings: the drafts are drawn as the target draws its tokens.
    drafting: `gumbel_top_k`, `independent` or `beam`.
  """
  scores = sampling.process_logits(logits[:, : cfg.max_depth], settings)
  log_probs = jax.nn.log_softmax(scores, axis=-1)
  noise = functools.partial(_noise, keys, log_probs.shape[-1], settings)
  if drafting == 'beam':
    tree = _beam(log_probs, root, cfg, noise, settings)
  else:
    tree = _static(log_probs, root, cfg, noise, drafting == 'independent')
  index = jnp.minimum(tree.depths, cfg.max_depth - 1)
  law = tree_lib.DraftLaw(log_probs, index)
  return tree_lib.DraftTree(tree.tokens, tree.parents, tree.depths, law)


def _noise(keys, vocab_size, settings, numbers):
  """Gumbel noise float32 [B, N, V] of the sources `numbers`; 0 if greedy."""
  shape = (keys.shape[0], len(numbers))
  numbers = jnp.broadcast_to(jnp.asarray(numbers, jnp.int32), shape)
  return sampling.row_noise(keys, numbers, vocab_size, settings)


class Sources(NamedTuple):
  """Who draws in a static tree.

  Attributes:
    number: int [N], of each source: a node, or a depth less one.
    level: int [N], stream that each draws from.
    of_node: int [M - 1], index of the source of every node but the root.
    rank: int [M - 1], how many earlier nodes share a node's parent. (Not the
      rank in a `fixed` tree that skips some: a sibling follows its law given
      the earlier draws, so each of them must take the test.)
  """

  number: np.ndarray
  level: np.ndarray
  of_node: np.ndarray
  rank: np.ndarray


@functools.lru_cache
def sources(cfg: config.TreeConfig) -> Sources:
  """Whether the nodes of a depth share their draws, or each draws its own.

  A walk visits one node of each depth, so they may share. Pruning compares a
  node with the descendants of others, which must then tell nothing of its own
  children: each node draws its own.
  """
  parents, depths, _ = topology.arrays(cfg)
  above = parents[1:] if cfg.keep_nodes else depths[1:] - 1
  number, of_node = np.unique(above, return_inverse=True)
  level = depths[number] if cfg.keep_nodes else number
  siblings = parents[1:, None] == parents[None, 1:]
  return Sources(number, level, of_node, np.tril(siblings, -1).sum(axis=1))


def _static(log_probs, root, cfg, noise, with_replacement):
  """The draws of every node of a static tree."""
  drawn_by = sources(cfg)
  width = 1 + int(drawn_by.rank.max())
  _check_width(width, log_probs.shape[-1])
  laws = log_probs[:, drawn_by.level]  # [B, N, V]
  if with_replacement:
    draws = _independent(laws, noise, width)
  else:
    scores = laws + noise(drawn_by.number)
    values, draws = sampling.top_k(scores, width)
    draws = jnp.where(values > -jnp.inf, draws, -1)
  return mark_unused(cfg, root, draws[:, drawn_by.of_node, drawn_by.rank])


def _independent(laws, noise, width):
  """[B, N, width] draws with replacement."""
  count = laws.shape[1]
  ranked = [
    jnp.argmax(laws + noise(np.arange(count) + rank * count), axis=-1)
    for rank in range(width)
  ]
  return jnp.stack(ranked, axis=-1)


def _check_width(width, vocab_size):
  if width > vocab_size:
    raise ValueError(
      f'draft tree draws {width} siblings but the vocabulary has {vocab_size} '
      f'tokens; use at most {vocab_size} children per node'
    )


def mark_unused(
  cfg: config.TreeConfig, root: arrays.Array, drafts: arrays.Array
) -> tree_lib.DraftTree:
  """The static tree of `drafts` [B, M - 1], unused (-1) and below all unused."""
  parents, depths, _ = topology.arrays(cfg)
  tokens = jnp.concatenate([root[:, None], drafts], axis=1).astype(jnp.int32)
  mask = tree_lib.ancestor_mask(jnp.broadcast_to(parents, tokens.shape))
  is_used = jnp.all((tokens >= 0)[:, None] | ~mask, axis=-1)
  is_used = is_used.at[:, 0].set(True)
  return tree_lib.DraftTree(
    jnp.where(is_used, tokens, -1).at[:, 0].set(root),
    jnp.where(is_used, parents, 0).astype(jnp.int32),
    jnp.where(is_used, depths, 1).astype(jnp.int32),
  )


def beam_widths(cfg: config.TreeConfig) -> list[int]:
  """Nodes of each depth; what does not divide goes to the first depths."""
  share, rest = divmod(cfg.num_nodes - 1, cfg.depth)
  return [share + (depth < rest) for depth in range(cfg.depth)]


def _beam(log_probs, root, cfg, noise, settings):
  """Stochastic beam search over the streams.

  Why `recursive_rejection` is exact here. A child's score is its path's
  log-probability plus Gumbel noise, given that the best child scores what its
  parent does. In the order of their scores the children of a node are draws
  without replacement, and who comes next is independent of the scores
  themselves given who came before. A beam keeps the best of a depth: of each
  node's children a prefix, whose length depends on scores and on earlier
  siblings only, so it says nothing of who comes next. What the children of a
  kept node score is drawn afresh. (Pruning is another matter: scores two levels
  down depend on who the children are, decide which of other nodes' grandchildren
  exist, and with these a node may be compared. Hence `check`.)
  """
  steps, first_parent = [first_beam(root)], 0
  for depth, width in enumerate(beam_widths(cfg)):
    num_parents = steps[-1].plain.shape[1]
    own = noise(first_parent + np.arange(num_parents))
    laws = log_probs[:, depth, None]
    steps.append(beam_step(steps[-1], laws, own, width, settings))
    first_parent += num_parents
  return beam_tree(root, steps)


class Beam(NamedTuple):
  """The nodes that a beam kept at one depth.

  Attributes:
    tokens: [B, W] int32, -1 where unused.
    parents: [B, W] int32, index among the nodes of the depth above.
    plain: [B, W] float32, log-probability of each node's path.
    perturbed: [B, W] float32, the same with noise.
  """

  tokens: arrays.Array
  parents: arrays.Array
  plain: arrays.Array
  perturbed: arrays.Array


def first_beam(root: arrays.Array) -> Beam:
  """The beam that holds the root [B] alone."""
  tokens = root[:, None]
  return Beam(
    tokens,
    jnp.zeros_like(tokens),
    jnp.zeros(tokens.shape),
    jnp.zeros(tokens.shape),
  )


def beam_step(
  beam: Beam,
  log_probs: arrays.Array,
  noise: arrays.Array,
  width: int,
  settings: sampling.RowSettings | None,
) -> Beam:
  """The next depth of a stochastic beam search.

  Args:
    beam: the depth above, W nodes.
    log_probs: [B, W or 1, V] of their children.
    noise: Gumbel [B, W, V].
    width: nodes to keep.
    settings: greedy rows take the best.
  """
  vocab_size = log_probs.shape[-1]
  plain = beam.plain[..., None] + log_probs  # [B, W, V]
  scores = plain
  if settings is not None:
    is_random = (settings.temperature > 0)[:, None, None]
    drawn = _condition(plain + noise, beam.perturbed)
    scores = jnp.where(is_random, drawn, plain)
  values, best = _best(scores, width)
  is_used = values > -jnp.inf
  return Beam(
    jnp.where(is_used, best % vocab_size, -1),
    jnp.where(is_used, best // vocab_size, 0),
    _pick(plain, best, is_used),
    values,
  )


def beam_tree(root: arrays.Array, steps: Sequence[Beam]) -> tree_lib.DraftTree:
  """The tree of all depths' beams, `first_beam` being the first."""
  parents, depths, first = [steps[0].parents], [steps[0].parents], 0
  for depth, (above, step) in enumerate(itertools.pairwise(steps), start=1):
    is_used = step.tokens >= 0
    parents.append(jnp.where(is_used, first + step.parents, 0))
    depths.append(jnp.where(is_used, depth, 1))
    first += above.tokens.shape[1]
  join = lambda x: jnp.concatenate(x, axis=1).astype(jnp.int32)
  tokens = join([step.tokens for step in steps]).at[:, 0].set(root)
  return tree_lib.DraftTree(tokens, join(parents), join(depths))


def _pick(plain, best, is_used):
  """Log-probabilities [B, W] of the kept nodes, -inf where unused."""
  kept = jnp.take_along_axis(plain.reshape(plain.shape[0], -1), best, axis=1)
  return jnp.where(is_used, kept, -jnp.inf)


def _best(scores, width):
  """The best `width` of [B, W, V]: values and flat indices, both [B, width]."""
  batch, num_parents, vocab_size = scores.shape
  num_each = min(width, vocab_size)
  values, tokens = sampling.top_k(scores, num_each)
  flat = tokens + jnp.arange(num_parents)[None, :, None] * vocab_size
  values, flat = values.reshape(batch, -1), flat.reshape(batch, -1)
  short = max(width - values.shape[1], 0)
  values = jnp.pad(values, ((0, 0), (0, short)), constant_values=-jnp.inf)
  flat = jnp.pad(flat, ((0, 0), (0, short)))
  values, best = jax.lax.top_k(values, width)
  return values, jnp.take_along_axis(flat, best, axis=1)


def _condition(scores, maximum):
  """Gumbel variables [B, W, V] given that their maxima are `maximum` [B, W].

  Kool et al., appendix B.3, in the form that does not overflow.
  """
  best, maximum = scores.max(axis=-1, keepdims=True), maximum[..., None]
  has_any = (best > -jnp.inf) & (maximum > -jnp.inf)
  best, maximum = (
    jnp.where(has_any, best, 0.0),
    jnp.where(has_any, maximum, 0.0),
  )
  gap = jnp.minimum(jnp.where(has_any, scores - best, -jnp.inf), 0.0)
  # log(1 - exp(gap)), -inf for the best itself.
  left = jnp.where(
    gap > -0.6931472,
    jnp.log(-jnp.expm1(gap)),
    jnp.log1p(-jnp.exp(gap)),
  )
  shift = maximum - scores + left
  shifted = (
    maximum - jnp.maximum(shift, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(shift)))
  )
  return jnp.where(has_any & (scores > -jnp.inf), shifted, -jnp.inf)
