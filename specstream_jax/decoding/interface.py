# SPDX-License-Identifier: Apache-2.0
"""What the decode loop asks of a model and of a drafter.

Axis letters: B rows, M tree nodes including the root, S cache slots,
J streams, D model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from specstream_jax import arrays, config, sampling
from specstream_jax.decoding import (
  edits as edits_lib,
  tree as tree_lib,
  verify,
)
from specstream_jax.modeling import cache as cache_lib


class Pruned(NamedTuple):
  """Which nodes of a pass went through all layers.

  Attributes:
    survivors: [B, M'] int32 increasing node indices, closed under ancestors.
    num_early_layers: layers that ran all M nodes; their cache holds node m in
      slot length + m, that of later layers survivor i in slot length + i.
  """

  survivors: arrays.Array
  num_early_layers: int


class Forward(NamedTuple):
  """Result of one pass over a tree.

  Attributes:
    hidden: [B, M, D], ready for `ModelFns.logits`; [B, M', D] if pruned.
    cache: node m of each row lies in slot length + m; length not advanced.
    stream_state: pytree of arrays [B, M, ...], opaque to the loop.
    pruned: set if nodes were dropped on the way; their count is static.
  """

  hidden: arrays.Array
  cache: cache_lib.Cache
  stream_state: Any
  pruned: Pruned | None = None


class StreamLogits(NamedTuple):
  """What the streams of one node say.

  Attributes:
    logits: float32 [B, J, V]; stream j (from 0) predicts position + 2 + j.
    hidden: [B, J, ...] state behind them, for `ModelFns.coupling_logits`; None
      where there is no coupling.
  """

  logits: arrays.Array
  hidden: arrays.Array | None = None


class ModelFns(NamedTuple):
  """A model as the decode loop sees it.

  Attributes:
    init_cache: (batch, cache_length) -> empty Cache.
    forward: (params, tokens [B, M], positions [B, M], tree_mask [B, M, M],
      cache, *, with_streams, scores) -> Forward. A node sees the slots below
      cache.length and the nodes that `tree_mask` shows it. `scores` are those
      of `tree.DraftTree` and can only decide where streams run along; passes
      that are not over a draft tree leave them out.
    logits: (params, hidden [..., D]) -> float32 [..., V].
    stream_logits: (params, stream_state of one node [B, ...], cache,
      positions [B] of that node) -> `StreamLogits`. The cache is committed up
      to that node.
    coupling_logits: (params, hidden [B, ...] of one stream, parents [B, W],
      candidates [B, k]) -> float32 [B, W, k] that parents add to the stream's
      logits of candidates; None without such weights.
    recipe: how they were made, for whoever runs the layers one by one; None
      where that cannot be done.
  """

  init_cache: Callable[[int, int], cache_lib.Cache]
  forward: Callable[..., Forward]
  logits: Callable[[Any, arrays.Array], arrays.Array]
  stream_logits: Callable[..., StreamLogits]
  coupling_logits: Callable[..., arrays.Array] | None = None
  recipe: Any = None


def _no_streams() -> StreamLogits:
  raise TypeError('nobody has bound the logits of streams')


class DraftContext(NamedTuple):
  """What a drafter may look at: every row after its last commit.

  Attributes:
    root: [B] int32 last emitted token, not in the cache yet.
    hidden: [B, D] main stream at the leaf, the token before the root.
    stream_state: pytree of arrays [B, ...] at the leaf.
    cache: committed up to the leaf.
    leaf_positions: [B] int32, position of the leaf; the root's is one more.
    tokens: [B, max_new] int32 output so far.
    num_tokens: [B] int32 valid entries of `tokens`.
    row_keys: [B] keys of the position-keyed noise.
    settings: how the rows' tokens are drawn; None is greedy.
    edits: what is done to the target's logits before; None for nothing.
    last_tree: the tree just verified, pruned nodes left out; None after the
      prompt pass.
    draws: [B, M'] int32 token the target drew at each node of `last_tree`;
      None after the prompt pass, or if the verifier draws no such tokens.
    is_drafting: [B] bool, rows whose drafts will be verified; None if that is
      not known.
    stream_logits: () -> what the streams of the leaf say.
    coupling_logits: (hidden [B, ...] of one stream, parents [B, W],
      candidates [B, k]) -> float32 [B, W, k]; None without such weights.
  """

  root: arrays.Array
  hidden: arrays.Array
  stream_state: Any
  cache: cache_lib.Cache
  leaf_positions: arrays.Array
  tokens: arrays.Array
  num_tokens: arrays.Array
  row_keys: arrays.Array
  settings: sampling.RowSettings | None = None
  edits: edits_lib.Edits | None = None
  last_tree: tree_lib.DraftTree | None = None
  draws: arrays.Array | None = None
  is_drafting: arrays.Array | None = None
  stream_logits: Callable[[], StreamLogits] = _no_streams
  coupling_logits: Callable[..., arrays.Array] | None = None


class Drafter(Protocol):
  """Proposes the next tree; any proposal leaves the output unchanged.

  Attributes:
    size: M, nodes including the root.
    max_depth: depth of the deepest node, P - 1.
    with_streams: whether the forward pass should carry streams.
  """

  size: int
  max_depth: int
  with_streams: bool

  def init(
    self, params: Any, prompts: arrays.Array, prompt_lengths: arrays.Array
  ) -> Any:
    """Own state (a pytree, () for none) for prompts [B, T], lengths [B]."""

  def propose(
    self, params: Any, context: DraftContext, state: Any
  ) -> tuple[tree_lib.DraftTree, Any]:
    """The next tree, rooted at `context.root`, and the new own state."""
    ...


@runtime_checkable
class Copier(Drafter, Protocol):
  """A drafter that copies, also from what an answer is guessed to be."""

  def foresee(self, state: Any, guesses: arrays.Array) -> Any:
    """The state of `init` with guesses [B, R] int32, padded with -1."""
    ...

  def num_foreseen(self, state: Any) -> arrays.Array:
    """[B] int32 draft tokens of the guesses that were right so far."""
    ...


class Verification(NamedTuple):
  """What a verifier decides on: one tree, and what the target says of it.

  Attributes:
    tree: all M nodes that were drafted.
    survivors: [B, M'] int32 nodes that went through all layers, or None for
      all of them; the others have no logits.
    logits: [B, M', V] float32 of the surviving nodes, edited (see `edits`).
    row_keys: [B] keys of the row's noise.
    root_positions: [B] int32, position of the token to draw at the root.
  """

  tree: tree_lib.DraftTree
  survivors: arrays.Array | None
  logits: arrays.Array
  row_keys: arrays.Array
  root_positions: arrays.Array


# (verification, how the rows' tokens are drawn, path_length P) -> Verified.
Verifier = Callable[
  [Verification, sampling.RowSettings | None, int], verify.Verified
]


class DecodeSetup(NamedTuple):
  """The static half of a decoder; everything else is arrays.

  Attributes:
    model: used by every step.
    prompt_model: used by the prompt pass, where only the last token needs
      streams: the `deferred` schedule even if `model` runs `parallel`.
    drafter: proposes trees.
    cfg: sizes and stop conditions.
    verifier: decides which drafts to accept.
    chunk_model: as `prompt_model`, for passes over a part of a prompt, whose
      cache is not empty; None takes `model`.
  """

  model: ModelFns
  prompt_model: ModelFns
  drafter: Drafter
  cfg: config.DecodeConfig
  verifier: Verifier
  chunk_model: ModelFns | None = None

  @property
  def path_length(self) -> int:
    """P, the most tokens one call can emit."""
    return self.drafter.max_depth + 1
